"""Alias-free tokenizers: shifts by half a column; filters by their definition; the published program without them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import Tokenizer, pretrained
from eqjax.tokenizer import filters, layers, tiling
from tests.random_params import random_params

FIELDS: dict[str, Any] = dict(
    channels=8, channel_multipliers=(1, 2, 2), num_res_blocks=1, attention_resolutions=(4,), resolution=16,
    z_channels=4, embed_dim=6, square_downsamples=2, norm="pixel", attention_window=1, padding="circular",
)  # fmt: skip


def shifted(x, positions, axis):
    """Moves a map that wraps around by a fraction of a position: a factor of every frequency."""
    size = x.shape[axis]
    spectrum = np.moveaxis(np.fft.rfft(x, axis=axis), axis, -1)
    turned = spectrum * np.exp(-2j * np.pi * np.fft.rfftfreq(size) * positions)
    return np.fft.irfft(np.moveaxis(turned, -1, axis), n=size, axis=axis).astype(np.float32)


def relative_error(out, reference, axis):
    """The error over what varies along the width: a constant is equivariant to everything."""
    varying = reference - reference.mean(axis=axis, keepdims=True)
    return float(jnp.linalg.norm(out - reference) / jnp.linalg.norm(varying))


def half_column_errors(resample):
    """Returns the errors of encoder and decoder under a shift by half a column of 4 pixels."""
    tokenizer = Tokenizer(**FIELDS, resample=resample)
    assert tokenizer.halo_columns is None
    params = random_params(tokenizer)
    images = jax.random.uniform(jax.random.key(0), (2, 16, 64, 3), minval=-1.0)
    latents = tiling.encode_whole(tokenizer, params, images)
    moved = tiling.encode_whole(tokenizer, params, jnp.roll(images, 2, axis=2))
    # Latents without the highest frequencies, as an encoder with filters makes them.
    smooth = np.asarray(filters.low_pass(jax.random.normal(jax.random.key(1), (2, 16, 6)), "fft", "circular"))
    there = tiling.decode_whole(tokenizer, params, shifted(smooth, 0.5, 1))
    decoded = jnp.roll(tiling.decode_whole(tokenizer, params, smooth), 2, axis=2)
    whole = tiling.encode_whole(tokenizer, params, jnp.roll(images, 4, axis=2))
    assert relative_error(whole, jnp.roll(latents, 1, axis=1), 1) < 1e-5
    return relative_error(shifted(latents, 0.5, 1), moved, 1), relative_error(there, decoded, 2)


@pytest.mark.slow
def test_latents_move_by_half_a_column_with_the_image():
    assert min(half_column_errors("shuffle")) > 0.3
    assert max(half_column_errors("kaiser")) < 0.01


@pytest.mark.slow
def test_ideal_filters_move_latents_too():
    assert max(half_column_errors("fft")) < 0.01


@pytest.mark.slow
def test_finite_filters_are_exact_in_tiles():
    fields = {**FIELDS, "padding": "reflect", "channel_multipliers": (1, 2), "attention_resolutions": ()}
    tokenizer = Tokenizer(**fields, resample="kaiser")
    params, halo = random_params(tokenizer), tokenizer.halo_columns
    assert halo is not None
    images = jax.random.uniform(jax.random.key(0), (1, 16, 2 * (2 * halo + 20), 3), minval=-1.0)
    whole = tiling.encode_whole(tokenizer, params, images)
    parts = tiling.encode_images(tokenizer, params, images, tile_columns=5)
    assert jnp.abs(parts - whole).max() < 1e-5 * jnp.abs(whole).max()
    decoded = tiling.decode_whole(tokenizer, params, whole)
    parts = tiling.decode_images(tokenizer, params, whole, tile_columns=5)
    assert jnp.abs(parts - decoded).max() < 1e-5 * jnp.abs(decoded).max()
    center = whole.shape[1] // 2
    changed = tiling.encode_whole(tokenizer, params, images.at[:, :, 2 * center : 2 * center + 2].add(0.5))
    touched = np.flatnonzero(np.abs(changed - whole).max((0, 2)))
    # The bound holds, and is no bound of everything. The tails of many filters in a row vanish in rounding.
    assert halo // 3 <= np.abs(touched - center).max() <= halo


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["reflect", "circular"])
@pytest.mark.parametrize("kernel", ["kaiser", "fft"])
def test_filters_end_where_the_image_ends(kernel, padding):
    x = jax.random.normal(jax.random.key(0), (2, 20, 3))
    for width in (2, 13):
        alone, behind = x[:, :width], x.at[:, width:].set(9.0)
        for apply in (filters.low_pass, filters.interpolate):
            out = apply(alone, kernel, padding)
            window = apply(behind, kernel, padding, jnp.int32(width))
            np.testing.assert_allclose(window[:, : out.shape[1]], out, atol=1e-5)
        double = filters.interpolate(alone, kernel, padding)
        behind = jnp.pad(double, ((0, 0), (0, 40 - 2 * width), (0, 0)), constant_values=9.0)
        window = filters.decimate(behind, kernel, padding, jnp.int32(2 * width))
        np.testing.assert_allclose(window[:, :width], filters.decimate(double, kernel, padding), atol=1e-5)


@pytest.mark.parametrize("kernel", ["kaiser", "fft"])
def test_low_frequencies_pass_and_high_ones_do_not(kernel):
    position = np.arange(64.0)
    wave = lambda cycles, at=position: jnp.asarray(np.cos(2 * np.pi * cycles * at / 64)[:, None], jnp.float32)  # noqa: E731
    np.testing.assert_allclose(filters.low_pass(wave(4), kernel, "circular"), wave(4), atol=0.05)
    assert jnp.abs(filters.low_pass(wave(17), kernel, "circular")).max() < 0.01
    half = np.arange(0, 64, 0.5)
    double = filters.interpolate(wave(16), kernel, "circular")
    np.testing.assert_allclose(double, wave(16, half), atol=0.03)
    assert (double[::2] == wave(16)).all()
    np.testing.assert_allclose(filters.decimate(wave(4, half), kernel, "circular"), wave(4), atol=0.05)
    assert jnp.abs(filters.decimate(wave(40, half), kernel, "circular")).max() < 0.01


def test_filters_keep_bfloat16_and_compute_in_float32():
    x = jax.random.normal(jax.random.key(0), (2, 20, 3)).astype(jnp.bfloat16)
    for kernel in ("kaiser", "fft"):
        out = filters.low_pass(x, kernel, "circular")
        assert out.dtype == jnp.bfloat16
        exact = filters.low_pass(x.astype(jnp.float32), kernel, "circular")
        assert (out == exact.astype(jnp.bfloat16)).all()


def test_filters_add_no_parameters():
    """Weights of a tokenizer as published fit an alias-free one, which is then trained on."""
    plain, filtered = (pretrained.abstract_params(Tokenizer(**FIELDS, resample=kind)) for kind in ("shuffle", "kaiser"))
    assert plain == filtered


def test_without_filters_the_program_is_the_published_one():
    fields = {**FIELDS, "padding": "reflect"}
    tokenizer = Tokenizer(**fields)
    params, images = random_params(tokenizer), jnp.zeros((1, 16, 16, 3))

    class PlainDown(layers.Down):
        @layers.nn.compact
        def __call__(self, x):
            ratio = self.stride[0] * self.stride[1]
            main = layers.Conv(x.shape[-1] // ratio, name="conv")(x)
            skip = layers.space_to_depth(x, self.stride)
            skip = skip.reshape(*skip.shape[:-1], -1, ratio).mean(-1)
            return layers.space_to_depth(main, self.stride) + skip

    class PlainUp(layers.Up):
        @layers.nn.compact
        def __call__(self, x):
            ratio = self.stride[0] * self.stride[1]
            main = layers.Conv(x.shape[-1] * ratio, name="conv")(x)
            return layers.depth_to_space(main + jnp.repeat(x, ratio, axis=-1), self.stride)

    def plain_activate(x, options, _, name):
        return layers.nn.silu(layers.normalize(x, options.norm, options.dtype, name))

    def text():
        apply = lambda p, x: tokenizer.apply({"params": p}, x)  # noqa: E731
        return jax.jit(apply).lower(params, images).as_text()

    ours = text()
    with pytest.MonkeyPatch.context() as patch:
        for module in ("encoder", "decoder", "layers"):
            patch.setattr(f"eqjax.tokenizer.{module}.activate", plain_activate)
        patch.setattr("eqjax.tokenizer.encoder.Down", PlainDown)
        patch.setattr("eqjax.tokenizer.decoder.Up", PlainUp)
        assert text() == ours
