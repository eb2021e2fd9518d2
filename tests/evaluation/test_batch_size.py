"""Images at a time: by the memory of the device that has least, and never more than there are."""

import types

import jax
import jax.numpy as jnp
import pytest

from eqjax import Generator, Tokenizer, sharding
from eqjax.evaluation import Extractor, batch_size, evaluate_reconstruction, generate, image_sets
from tests.evaluation import test_generation, tiny_models

GB = 10**9


@pytest.fixture(name="free")
def _free(monkeypatch):
    """Sets the free bytes of all devices."""

    def set_free(*values):
        stats = iter([*values] * 100)
        monkeypatch.setattr(batch_size, "_free_bytes", lambda _: next(stats))

    return set_free


def test_devices_that_report_nothing_have_the_default():
    mesh = sharding.make_mesh()
    assert batch_size.free_bytes(mesh) is None
    assert batch_size.by_memory(10**9, mesh) == 16 and batch_size.by_memory(10**9, mesh, default=32) == 32


def test_free_is_what_the_limit_leaves():
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 9 * GB, "bytes_in_use": 2 * GB})
    assert batch_size._free_bytes(device) == 7 * GB
    assert batch_size._free_bytes(types.SimpleNamespace(memory_stats=lambda: None)) == 0


@pytest.mark.parametrize(
    ("free_gigabytes", "num_images", "expected"),
    [(1, None, 4), (18, None, 64), (105, None, 256), (1000, None, 256), (0.01, None, 1), (105, 40, 10), (105, 3, 1)],
)
def test_the_number_follows_the_memory_and_the_images(free, caplog, free_gigabytes, num_images, expected):
    free(int(free_gigabytes * GB))
    with caplog.at_level("INFO"):
        found = batch_size.by_memory(134_000_000, sharding.make_mesh(), num_images=num_images)
    assert found == expected
    assert f"{expected} images at a time on each device" in caplog.text and "--batch_size" in caplog.text


def test_the_device_with_least_memory_decides(free):
    free(50 * GB, 9 * GB, 50 * GB, 50 * GB)
    assert batch_size.free_bytes(sharding.make_mesh()) == 9 * GB


def test_the_published_models_take_what_their_arrays_take():
    assert batch_size.decoder_bytes(Tokenizer(), 16) == 4 * 256 * 256 * 128 * 4
    assert batch_size.decoder_bytes(Tokenizer(dtype=jnp.bfloat16), 8) == 4 * 256 * 128 * 128 * 2
    wide = Generator(window_size=4, num_cond_tokens=16, depth=2, width=64, num_heads=2)
    assert batch_size.sampler_bytes(wide, 16) == 2 * 2 * 20 * 2 * 64 * 4
    assert batch_size.sampler_bytes(wide, 3) == 2 * 2 * 19 * 2 * 64 * 4


@pytest.mark.slow
def test_evaluations_take_the_number_by_memory(monkeypatch, tmp_path):
    asked = []

    def by_memory(needed, mesh, **options):
        del mesh
        asked.append((needed, options))
        return 2

    monkeypatch.setattr(batch_size, "by_memory", by_memory)
    model, mesh = tiny_models.model(), sharding.make_mesh(jax.devices()[:1])
    decoder = batch_size.decoder_bytes(model.require("tokenizer"), test_generation.OPTIONS.num_columns)
    sampler = batch_size.sampler_bytes(model.require("generator"), test_generation.OPTIONS.num_columns)
    samples = generate(model, test_generation.OPTIONS, 3, tmp_path, mesh=mesh)
    assert sorted(len(batch) for batch in samples.batches()) == [1, 2]
    assert Extractor(tiny_models.network(), mesh).batch_size == 2
    width = test_generation.OPTIONS.num_columns * model.require("tokenizer").column_width
    images = image_sets.ImageSet(3, "noise", lambda: iter([next(samples.batches())[:1]] * 3))
    assert next(images.batches()).shape[2] == width
    evaluate_reconstruction(model, images, mesh=mesh)
    assert asked[0] == (decoder + sampler, {"num_images": 3}) and asked[1][1] == {"default": 32}
    assert asked[2] == (decoder, {"num_images": 3})
