"""Requests that cannot fit are refused at once, with what they would take and what to lower."""

import time
from typing import Any

import jax
import numpy as np
import pytest

from eqjax import Generator, outpaint, panorama, sample_latents
from eqjax.sampling import memory
from eqjax.sampling.options import SamplingOptions
from tests.sampling.small_models import local_model


def refused(function, error, message, *arguments, **options):
    begin = time.monotonic()
    with pytest.raises(error, match=message):
        function(*arguments, **options)
    assert time.monotonic() - begin < 5


def test_images_that_are_too_wide_or_too_many_are_refused():
    m = local_model()
    arguments = m.require("generator"), m.generator_params, np.zeros(4, int)
    message = r"num_columns=2000000000 of 4 images make 128 GB of latents, and this machine has .*lower num_columns"
    options: dict[str, Any] = dict(num_columns=2_000_000_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "host_bytes", lambda: 24 * 10**9)
        refused(sample_latents, MemoryError, message, *arguments, key=jax.random.key(0), **options)
        refused(m.sample, MemoryError, "make 32 GB of latents", 0, **options)
        message = (
            r"1 images of 2000000000 × 16 pixels \(num_columns=1000000000\) take 96 GB, and this machine has 24 GB"
        )
        refused(m.sample, MemoryError, message, 0, num_columns=10**9)
        refused(outpaint, MemoryError, "images of", m, np.zeros((16, 4, 3), np.uint8), 0, right=10**9)
        refused(panorama, MemoryError, "a batch of 1 images", local_model(window_size=None), 0, num_columns=10**9)
    assert next(panorama(m, 0, num_columns=10**9, num_flow_steps=1)).shape == (16, 32, 3)  # It is streamed.


def test_a_batch_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "device_bytes", lambda: 80 * 10**9)
    memory.check_latents(Generator(), (1000,), 16, True)
    message = (
        r"a batch of 100000 images \(200000 rows with guidance, 16 columns\) takes at least 1.1 TB for conditions, KV "
        r"cache and modulations on a device, which has 80 GB: sample fewer images at a time\."
    )
    refused(memory.check_latents, MemoryError, message, Generator(), (100_000,), 16, True)
    memory.check_latents(Generator(), (100_000,), 16, True, num_devices=32)
    memory.check_latents(Generator(), (1000,), 16, True, modulations_at_once=1)
    message = r"takes at least 49 GB .* which has 40 GB: sample fewer images at a time, or leave parallel_steps out\."
    monkeypatch.setattr(memory, "device_bytes", lambda: 40 * 10**9)
    refused(memory.check_latents, MemoryError, message, Generator(), (1000,), 16, True, modulations_at_once=100)


def test_steps_beyond_the_resolution_of_times_are_refused():
    message = r"num_flow_steps=1000000000 must be an integer ≥ 1 and ≤ 16777216"
    refused(SamplingOptions, ValueError, message, num_flow_steps=10**9)


def test_memory_is_that_of_the_host_or_its_container(tmp_path, monkeypatch):
    host = memory.host_bytes()
    assert host is not None and 10**8 < host < 10**15 and memory.device_bytes() == host
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("1000000\n")
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (tmp_path / "max", tmp_path / "none"))
    assert memory.host_bytes() not in (None, 1_000_000)
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (tmp_path / "max", tmp_path / "limit"))
    assert memory.host_bytes() == 1_000_000


def test_bytes_as_text():
    assert [memory.format_bytes(n) for n in (900, 1.5e6, 24.6e9, 3e12)] == ["1 kB", "1.5 MB", "25 GB", "3.0 TB"]
