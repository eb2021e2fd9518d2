"""Decoding in windows of a fixed size equals decoding whole images of any width."""

import itertools

import jax
import numpy as np
import pytest

from eqjax import Tokenizer, pixels
from eqjax.tokenizer import tiling, windows
from tests.compilations import count_compilations
from tests.random_params import random_params

FIELDS = dict(
    channels=8, channel_multipliers=(1, 2), num_res_blocks=1, resolution=16, z_channels=2, embed_dim=4,
    attention_resolutions=(8,),
)  # fmt: skip


def make(**fields):
    tokenizer = Tokenizer(**{**FIELDS, **fields})
    return tokenizer, random_params(tokenizer)


@pytest.fixture(scope="module", name="local")
def _local():
    return make(norm="pixel", attention_window=1, patch_size=2)


@pytest.fixture(scope="module", name="published")
def _published():
    return make(semantic=dict(channels=16, channel_multipliers=(1,), num_res_blocks=1, out_channels=16, downsamples=0))


@pytest.fixture(scope="module", name="filtered")
def _filtered():
    return make(resample="kaiser")


@pytest.fixture(scope="module", name="ideal")
def _ideal():
    return make(norm="pixel", attention_window=1, resample="fft", padding="circular")


def latents_of(columns, batch_size=2):
    return np.asarray(jax.random.normal(jax.random.key(columns), (batch_size, columns, 4)))


@pytest.mark.parametrize(
    ("kind", "columns"),
    [*itertools.product(["local", "published"], [1, 2, 13]), ("filtered", 13), ("ideal", 13)],
)
def test_an_image_in_a_wider_window_is_the_image_alone(kind, columns, request):
    tokenizer, params = request.getfixturevalue(kind)
    latents = latents_of(columns)
    behind = np.full((2, 16 - columns, 4), 9.0, np.float32)  # What is behind the image has no effect.
    window = np.concatenate([latents, behind], axis=1)
    images = windows.decode_window(tokenizer, params, window, np.int32(columns), to_uint8=False)
    whole = tiling.decode_whole(tokenizer, params, latents)
    np.testing.assert_allclose(images[:, :, : whole.shape[2]], whole, atol=2e-5)


def test_images_of_all_sizes_equal_those_decoded_whole(local):
    tokenizer, params = local
    small, middle, large = windows.window_sizes(tokenizer)
    assert (small, middle, large) == (16, 64, 64 + 2 * tokenizer.halo_columns)
    for columns in (small + 1, large + 1):
        latents = latents_of(columns, 1)
        images = windows.decode_columns(tokenizer, params, 0.5 * latents, scale=0.5, to_uint8=False)
        whole = tiling.decode_whole(tokenizer, params, latents)
        assert images.shape == whole.shape
        np.testing.assert_allclose(images, whole, atol=2e-5)


def test_three_windows_serve_all_widths(local):
    tokenizer, params = local

    latents = latents_of(200, 3)

    def decode(columns):
        return windows.decode_columns(tokenizer, params, latents[:, :columns], scale=1.0, to_uint8=True)

    for columns in windows.window_sizes(tokenizer):
        decode(columns)
    with count_compilations() as compiled:
        for columns in (1, 16, 17, 64, 65, 90, 200):
            assert decode(columns).shape[2] == columns * tokenizer.column_width
    assert not compiled


def test_whole_image_tokenizers_have_one_window_for_a_range_of_widths(published):
    tokenizer, params = published
    sizes = [windows.window_size(tokenizer, columns) for columns in (1, 16, 17, 32, 33, 1000)]
    assert sizes == [16, 16, 32, 32, 64, 1024]
    latents = latents_of(20)

    def decode(columns):
        return windows.decode_columns(tokenizer, params, latents[:, :columns], scale=1.0, to_uint8=True)

    decode(3)
    with count_compilations() as compiled:
        decode(11)
    assert not compiled
    with count_compilations() as compiled:
        decode(20)
    assert len(compiled) == 1


def test_uint8_is_that_of_the_floats(local):
    tokenizer, params = local
    latents = latents_of(4)
    floats = windows.decode_columns(tokenizer, params, latents, scale=1.0, to_uint8=False)
    images = windows.decode_columns(tokenizer, params, latents, scale=1.0, to_uint8=True)
    np.testing.assert_array_equal(images, pixels.to_uint8(floats))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_that_are_not_finite_are_refused(local, value):
    tokenizer, params = local
    latents = np.asarray(latents_of(3)).copy()
    latents[1, 2, 0] = value
    with pytest.raises(ValueError, match=rf"1 of {latents.size} latents are not finite. If they were sampled"):
        windows.decode_columns(tokenizer, params, latents, scale=1.0, to_uint8=True)
