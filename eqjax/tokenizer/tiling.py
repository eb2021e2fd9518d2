"""Encoding and decoding images of any width, in pieces where the tokenizer allows it.

A tokenizer with a halo (`Tokenizer.halo_columns`) sees only so many columns to either side, so a
long image can be processed in overlapping windows of one size, and each result cut to the part
that its window decides: the numbers of the whole, in memory that does not grow with width.
"""

import functools

import jax
import jax.numpy as jnp

# Columns that one window adds to the result. Wider pieces waste less on the halo, and hold more.
TILE_COLUMNS = 64


@functools.partial(jax.jit, static_argnums=0)
def _encode(tokenizer, params, images):
    return tokenizer.apply({"params": params}, images, method="encode").mode()


@functools.partial(jax.jit, static_argnums=0)
def _decode(tokenizer, params, latents):
    return tokenizer.apply({"params": params}, latents, method="decode").images


def encode_images(tokenizer, params, images, *, tile_columns=TILE_COLUMNS):
    """Posterior means of images [B, H, W, 3] in [-1, 1] → [B, L, D]; jitted, in pieces if it can be.

    Raises:
      ValueError: a shape that does not fit the tokenizer.
    """
    tokenizer.check_images(images.shape)
    width = tokenizer.column_width

    def encode(first, last):
        return _encode(tokenizer, params, images[:, :, first * width : last * width])

    return _in_tiles(encode, images.shape[2] // width, tokenizer.halo_columns, tile_columns, axis=1, scale=1)


def decode_images(tokenizer, params, latents, *, tile_columns=TILE_COLUMNS):
    """Images of latents [B, L, D] (unscaled) → [B, H, W, 3]; jitted, in pieces if it can be.

    Raises:
      ValueError: latents of another size.
    """
    tokenizer.check_latents(latents.shape)

    def decode(first, last):
        return _decode(tokenizer, params, latents[:, first:last])

    columns = latents.shape[1]
    return _in_tiles(decode, columns, tokenizer.halo_columns, tile_columns, axis=2, scale=tokenizer.column_width)


def _in_tiles(apply, columns, halo, piece, *, axis, scale):
    """Joins what `apply(first, last)` gives for windows; each column of input makes `scale` along `axis`."""
    if halo is None or columns <= piece + 2 * halo:
        return apply(0, columns)
    window, parts = piece + 2 * halo, []
    for start in range(0, columns, piece):
        stop = min(start + piece, columns)
        # Windows at the ends are moved inside, so that all have one shape and the image's own
        # borders stay borders.
        first = min(max(start - halo, 0), columns - window)
        out = apply(first, first + window)
        parts.append(jax.lax.slice_in_dim(out, (start - first) * scale, (stop - first) * scale, axis=axis))
    return jnp.concatenate(parts, axis=axis)
