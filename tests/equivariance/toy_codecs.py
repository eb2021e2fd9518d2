"""Codecs whose behavior is known, and a strict tokenizer small enough for tests."""

import jax
import jax.numpy as jnp
import numpy as np

from eqjax import Tokenizer
from eqjax.equivariance import Codec, ColumnGeometry
from eqjax.tokenizer.tiling import decode_whole, encode_whole
from tests.random_params import random_params


def columns_codec(stride=4, height=16, boundary="crop", interpolation="linear"):
    """Every column is its own mean colors in four bands of rows: exactly equivariant to shifts by whole columns."""
    geometry = ColumnGeometry(stride, height, boundary, interpolation)

    def encode(x):
        bands = x.reshape(x.shape[0], 4, x.shape[1] // 4, -1, stride, 3).mean((2, 4))  # [B, 4, N, 3]
        return jnp.moveaxis(jnp.asarray(bands), 1, 2).reshape(x.shape[0], -1, 12)

    def decode(z):
        bands = jnp.moveaxis(jnp.asarray(z).reshape(*z.shape[:2], 4, 3), 2, 1)
        return jnp.repeat(jnp.repeat(bands, height // 4, axis=1), stride, axis=2)

    return Codec(encode, decode, geometry)


def blind_codec(height=16, stride=4):
    """Its latents ignore the image."""
    return Codec(
        lambda x: jnp.ones((len(x), x.shape[2] // stride, 2)),
        lambda z: jnp.zeros((len(z), height, z.shape[1] * stride, 3)),
        ColumnGeometry(stride, height),
    )


def circular_convolution(stride=8):
    """A strided convolution around the image and a nonlinearity, with random weights; the decoder returns gray."""
    kernel = np.random.default_rng(0).normal(size=(8, 12, 3, 16)).astype(np.float32) / 10

    def encode(x):
        wide = jnp.pad(x, ((0, 0), (0, 0), (6, 6), (0, 0)), mode="wrap")[:, :, : x.shape[2] + 4]
        out = jax.lax.conv_general_dilated(
            wide, jnp.asarray(kernel), (8, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.moveaxis(jax.nn.silu(out), 1, 2).reshape(len(x), -1, 2 * 16)

    geometry = ColumnGeometry(stride, 16, boundary="circular")
    return Codec(encode, lambda z: jnp.zeros((len(z), 16, z.shape[1] * stride, 3)), geometry)


def tokenizer_codec(norm="pixel"):
    """A random tokenizer with columns of 4 pixels, and the number of columns it sees to either side."""
    tokenizer = Tokenizer(
        channels=8,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        attention_resolutions=(),
        resolution=16,
        z_channels=4,
        embed_dim=6,
        patch_size=4,
        square_downsamples=0,
        norm=norm,
        attention_window=1,
    )
    params = random_params(tokenizer, 0)
    codec = Codec(
        lambda x: encode_whole(tokenizer, params, x),
        lambda z: decode_whole(tokenizer, params, z),
        ColumnGeometry(tokenizer.column_width, 16),
    )
    return codec, tokenizer.halo_columns or 0


def photograph_rows(count, width, seed=0):
    """Returns images [count, 16, width, 3] with the smoothness of photographs."""
    noise = np.random.default_rng(seed).normal(size=(count, 16, width, 3))
    spectrum = np.fft.rfft2(noise, axes=(1, 2))
    rows, columns = np.fft.fftfreq(16)[:, None], np.fft.rfftfreq(width)
    spectrum /= (0.05 + np.hypot(rows, columns))[..., None]
    images = np.fft.irfft2(spectrum, (16, width), axes=(1, 2))
    return (0.9 * images / np.abs(images).max((1, 2, 3), keepdims=True)).astype(np.float32)
