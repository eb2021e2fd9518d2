"""Encodes and decodes images of any width, in tiles if the tokenizer allows it.

A tokenizer with a halo (`Tokenizer.halo_columns`) sees only that many columns to either side. A long
image is then processed in overlapping windows of one size, and every result is cut to the tile that its
window determines: the result of the whole image, in memory that does not grow with its width.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from eqjax.tokenizer.tokenizer import Tokenizer
from eqjax.typing import AnyArray, Params

# Columns that one window adds to the result. Wider tiles waste less on the halo and take more memory.
TILE_COLUMNS = 64


def encode_images(
    tokenizer: Tokenizer, params: Params, images: Shaped[AnyArray, "..."], *, tile_columns: int = TILE_COLUMNS
) -> Float[jax.Array, "B L D"]:
    """Encodes images to posterior means, jitted and in tiles if the tokenizer has a halo.

    Args:
      tokenizer: the module.
      params: its parameters.
      images: [B, H, W, 3] in [-1, 1].
      tile_columns: columns that one window adds to the result.

    Returns:
      Latents, unscaled.

    Raises:
      ValueError: the shape does not fit the tokenizer.

    Example:
      >>> import eqjax
      >>> model = eqjax.load_pretrained("photos")
      >>> encode_images(model.tokenizer, model.tokenizer_params, jnp.zeros((1, 128, 128, 3))).shape
      (1, 8, 128)
    """
    tokenizer.check_images(images.shape)
    width = tokenizer.column_width

    def encode(first: int, last: int) -> jax.Array:
        return encode_whole(tokenizer, params, images[:, :, first * width : last * width])

    return _in_tiles(encode, images.shape[2] // width, tokenizer.halo_columns, tile_columns, axis=1, scale=1)


def decode_images(
    tokenizer: Tokenizer, params: Params, latents: Shaped[AnyArray, "..."], *, tile_columns: int = TILE_COLUMNS
) -> Float[jax.Array, "B H W 3"]:
    """Decodes latents to images, jitted and in tiles if the tokenizer has a halo.

    Args:
      tokenizer: the module.
      params: its parameters.
      latents: [B, L, D], unscaled.
      tile_columns: columns that one window adds to the result.

    Returns:
      Images in [-1, 1] up to overshoot.

    Raises:
      ValueError: the shape does not fit the tokenizer.

    Example:
      >>> import eqjax
      >>> model = eqjax.load_pretrained("photos")
      >>> decode_images(model.tokenizer, model.tokenizer_params, jnp.zeros((1, 8, 128))).shape
      (1, 128, 128, 3)
    """
    tokenizer.check_latents(latents.shape)

    def decode(first: int, last: int) -> jax.Array:
        return decode_whole(tokenizer, params, latents[:, first:last])

    columns = latents.shape[1]
    return _in_tiles(decode, columns, tokenizer.halo_columns, tile_columns, axis=2, scale=tokenizer.column_width)


@functools.partial(jax.jit, static_argnums=0)
def encode_whole(tokenizer: Tokenizer, params: Params, images: Shaped[AnyArray, "..."]) -> Float[jax.Array, "B L D"]:
    """Encodes images [B, H, W, 3] to posterior means without tiles; see `encode_images`."""
    posterior: Any = tokenizer.apply({"params": params}, images, method="encode")
    return posterior.mode()


@functools.partial(jax.jit, static_argnums=0)
def decode_whole(tokenizer: Tokenizer, params: Params, latents: Shaped[AnyArray, "..."]) -> Float[jax.Array, "B H W 3"]:
    """Decodes latents [B, L, D] to images without tiles; see `decode_images`."""
    decoded: Any = tokenizer.apply({"params": params}, latents, method="decode")
    return decoded.images


def _in_tiles(
    apply: Callable[[int, int], jax.Array], columns: int, halo: int | None, tile: int, *, axis: int, scale: int
) -> jax.Array:
    """Joins tiles of the results `apply(first, last)` of windows; an input column makes `scale` along `axis`."""
    if halo is None or columns <= tile + 2 * halo:
        return apply(0, columns)
    window, tiles = tile + 2 * halo, []
    for start in range(0, columns, tile):
        stop = min(start + tile, columns)
        # Windows at the ends are moved inside, so that all have one shape and the image's own
        # borders stay borders.
        first = min(max(start - halo, 0), columns - window)
        out = apply(first, first + window)
        tiles.append(jax.lax.slice_in_dim(out, (start - first) * scale, (stop - first) * scale, axis=axis))
    return jnp.concatenate(tiles, axis=axis)
