"""One set of compiled programs serves all numbers of columns."""

from typing import Any

import jax
import numpy as np
import pytest

from eqjax import outpaint, panorama, sample_latents
from eqjax.sampling import chunks
from tests.compilations import count_compilations
from tests.sampling.small_models import local_model, published_model

OPTIONS: dict[str, Any] = dict(guidance_scale=2.0, num_flow_steps=2)
# One width for each program of the decoder; the sampler's are those of the first.
WINDOWS = [5, 60, 90]
LENGTHS = [1, 2, 16, 17, 40, 65, 100]


@pytest.fixture(scope="module", name="prefix")
def _prefix():
    return np.asarray(jax.random.normal(jax.random.key(1), (1, 40, 4)))


def test_an_image_of_another_width_compiles_nothing():
    m = local_model()
    for n in WINDOWS:
        m.sample(1, num_columns=n, **OPTIONS)
    with count_compilations() as compiled:
        for n in LENGTHS:
            assert m.sample(1, num_columns=n, **OPTIONS).shape == (1, 16, 2 * n, 3)
            m.sample(2, num_columns=n, seed=n, max_position=n, temperature=0.5, guidance_scale=np.full(n, 3.0),
                     num_flow_steps=2, progress=lambda _: None)  # fmt: skip
    assert not compiled


def test_a_prefix_and_classes_of_another_length_compile_nothing(prefix):
    m = local_model()

    def sample(n, given):
        classes = [("cat", given + 1), ("dog", None)]
        return m.sample(classes, num_columns=n, transition=given % 3, prefix=prefix[:, :given], **OPTIONS)

    for n in WINDOWS:
        sample(n, 2)
    with count_compilations() as compiled:
        for n, given in ((7, 2), (40, 1), (40, 17), (41, 40), (40, 40)):
            assert sample(n, given).shape == (1, 16, 2 * n, 3)
    assert not compiled


def test_noise_of_another_length_compiles_nothing():
    m = local_model()
    noise = np.asarray(jax.random.normal(jax.random.key(1), (2, 40, 4)))

    def sample(n):
        return sample_latents(
            m.require("generator"), m.generator_params, np.array([0, 1]), num_columns=n, noise=noise[:, :n], **OPTIONS
        )

    sample(5)
    with count_compilations() as compiled:
        assert [sample(n).shape[1] for n in (1, 16, 40)] == [1, 16, 40]
    assert not compiled


def test_panoramas_of_another_length_compile_nothing(prefix):
    m = local_model()

    def widths(n, given):
        strips = panorama(m, 1, num_columns=n, prefix=prefix[:, :given], **OPTIONS)
        return sum(strip.shape[1] for strip in strips)

    widths(30, 3)
    with count_compilations() as compiled:
        assert [widths(n, given) for n, given in ((1, 1), (20, 0), (70, 20))] == [2, 40, 140]
    assert not compiled


def test_continuations_of_another_length_compile_nothing():
    m, image = local_model(), np.zeros((16, 24, 3), np.uint8)
    for n in (2, 45, 80):
        outpaint(m, image, "dog", right=n, **OPTIONS)
    with count_compilations() as compiled:
        for left, right in ((0, 1), (5, 30), (60, 0)):
            assert outpaint(m, image, "dog", left=left, right=right, **OPTIONS).shape[1] == 24 + 2 * (left + right)
    assert not compiled


@pytest.mark.parametrize("make_model", [local_model, published_model])
def test_a_width_beyond_a_window_compiles_only_the_decoder(make_model):
    m = make_model()
    m.sample([1, 2, 0], num_columns=5, **OPTIONS)
    with count_compilations() as compiled:
        m.sample([1, 2, 0], num_columns=16, **OPTIONS)
    assert not compiled
    with count_compilations() as compiled:
        m.sample([1, 2, 0], num_columns=17, **OPTIONS)
    assert [name for name in compiled if "decode_window" in name] == compiled and len(compiled) == 1


def test_a_cache_without_window_has_a_power_of_two(prefix):
    generator = local_model(window_size=None).require("generator")
    sizes = [chunks.cache_columns(generator, n) for n in (1, 16, 17, 64, 65)]
    assert sizes == [16, 16, 32, 64, 128]
    m = local_model(window_size=None)
    m.sample(1, num_columns=18, prefix=prefix[:, :1], **OPTIONS)
    with count_compilations() as compiled:
        m.sample(1, num_columns=31, prefix=prefix[:, :20], **OPTIONS)
    assert not compiled
