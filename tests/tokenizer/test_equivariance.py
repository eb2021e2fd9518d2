"""The strictly local tokenizer: shifts, tiles, halo. The published one: why it has no halo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import Tokenizer
from eqjax.tokenizer import tiling
from tests.random_params import random_params

FIELDS = dict(
    channels=8,
    channel_multipliers=(1, 2, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    resolution=16,
    z_channels=4,
    embed_dim=6,
    square_downsamples=2,
)
STRICT = dict(norm="pixel", attention_window=1)


def make(**fields):
    tokenizer = Tokenizer(**{**FIELDS, **fields})
    return tokenizer, random_params(tokenizer, gain=1.5)


@pytest.fixture(
    scope="module",
    params=[
        {},
        dict(patch_size=2, channel_multipliers=(1, 2)),
        dict(patch_size=2, channel_multipliers=(1, 2), refine_channels=4),
    ],
    ids=["pixels", "patches", "refined"],
)
def strict(request):
    return make(**{**STRICT, **request.param})


@pytest.fixture(scope="module")
def images(strict):
    columns = 4 * strict[0].halo_columns + 6
    return jax.random.uniform(jax.random.key(2), (1, 16, 4 * columns, 3), minval=-1.0)


def worst(out, reference):
    """The largest difference over the largest value."""
    return float(jnp.max(jnp.abs(out - reference)) / jnp.max(jnp.abs(reference)))


def test_a_shift_by_whole_columns_shifts_latents_and_images(strict, images):
    tokenizer, params = strict
    halo, width = tokenizer.halo_columns, tokenizer.column_width
    latents = tiling.encode_whole(tokenizer, params, images)
    shifted = tiling.encode_whole(tokenizer, params, jnp.roll(images, 3 * width, axis=2))
    inside = slice(halo + 3, -halo)
    assert worst(shifted[:, inside], jnp.roll(latents, 3, axis=1)[:, inside]) < 1e-5
    decoded = tiling.decode_whole(tokenizer, params, latents)
    moved = tiling.decode_whole(tokenizer, params, jnp.roll(latents, 3, axis=1))
    inside = slice((halo + 3) * width, -halo * width)
    assert worst(moved[:, :, inside], jnp.roll(decoded, 3 * width, axis=2)[:, :, inside]) < 1e-5


def test_tiles_equal_the_whole(strict, images):
    tokenizer, params = strict
    whole = tiling.encode_whole(tokenizer, params, images)
    parts = tiling.encode_images(tokenizer, params, images, tile_columns=5)
    assert worst(parts, whole) < 1e-5
    parts = tiling.decode_images(tokenizer, params, whole, tile_columns=5)
    assert worst(parts, tiling.decode_whole(tokenizer, params, whole)) < 1e-5


def test_all_windows_have_one_shape(strict, images):
    tokenizer, _ = strict
    seen = set()

    def apply(first, last):
        seen.add(last - first)
        return images[:, :, first * 4 : last * 4]

    columns = images.shape[2] // 4
    joined = tiling._in_tiles(apply, columns, tokenizer.halo_columns, 5, axis=2, scale=4)
    assert seen == {5 + 2 * tokenizer.halo_columns}
    assert (joined == images).all()


def test_the_halo_bounds_the_influence_of_a_column(strict, images):
    tokenizer, params = strict
    halo, columns = tokenizer.halo_columns, images.shape[2] // 4
    center = columns // 2

    def influence(fn, x, changed, axis):
        difference = jnp.abs(fn(x) - fn(changed))
        return np.flatnonzero(difference.max(axis=tuple(i for i in range(difference.ndim) if i != axis)))

    changed = images.at[:, :, 4 * center : 4 * center + 4].add(0.5)
    touched = influence(lambda x: tiling.encode_whole(tokenizer, params, x), images, changed, axis=1)
    assert abs(touched - center).max() <= halo
    assert abs(touched - center).max() >= halo // 2  # A halo of all columns would bound nothing.
    latents = tiling.encode_whole(tokenizer, params, images)
    changed = latents.at[:, center].add(0.5)
    touched = influence(lambda z: tiling.decode_whole(tokenizer, params, z), latents, changed, axis=2) // 4
    assert abs(touched - center).max() <= halo
    assert abs(touched - center).max() >= halo // 2


def test_the_published_style_mixes_all_columns_and_is_never_tiled():
    tokenizer, params = make()
    assert tokenizer.halo_columns is None
    assert make(norm="pixel")[0].halo_columns is None  # Global attention alone is enough.
    images = jax.random.uniform(jax.random.key(2), (1, 16, 160, 3), minval=-1.0)
    before = tiling.encode_whole(tokenizer, params, images)
    after = tiling.encode_whole(tokenizer, params, images.at[:, :, :4].set(1.0))
    assert float(jnp.abs(after - before)[:, -1].max()) > 1e-4
    np.testing.assert_array_equal(tiling.encode_images(tokenizer, params, images, tile_columns=5), before)
