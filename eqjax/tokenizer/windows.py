"""Decodes images of any width with a few compiled programs.

A program decodes a window, an array with room for a fixed number of columns, and the number of columns in it, which is
data. Where the image ends inside of its window, all layers see the border that it would have alone: convolutions
reflect there, attention and group norms leave out what is behind.

- Tokenizers with a halo have three windows, of 16 and 64 columns and one for tiles. Images that do not fit the largest
  are decoded in tiles, as in `eqjax.tokenizer.tiling`; windows at the ends are moved inside.
- Other tokenizers, such as the published one, see the whole image, which has to be in one window: of 16, 32, 64 …
  columns.

The first image that needs a window compiles it.

Letters: B images, L columns, C columns that a window has room for, D latent size, H height, W width in pixels.
"""

from collections.abc import Callable, Hashable, Iterator
import contextlib
import functools
import threading
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped
import numpy as np

from eqjax import pixels, sharding
from eqjax.tokenizer.filters import Filter
from eqjax.tokenizer.layers import AttentionBlock, Conv
from eqjax.tokenizer.tiling import TILE_COLUMNS
from eqjax.tokenizer.tokenizer import Tokenizer
from eqjax.typing import AnyArray, Params

# Columns of the smallest window.
_SMALLEST = 16
# Windows that `compiling` has compiled.
_compiled: set[Hashable] = set()


def window_sizes(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the columns of the windows of a tokenizer with a halo, ascending; the last one is that of tiles."""
    tile = TILE_COLUMNS + 2 * (tokenizer.halo_columns or 0)
    return tuple(sorted({_SMALLEST, min(64, tile), tile}))


def window_size(tokenizer: Tokenizer, columns: int) -> int:
    """Returns the columns of the window for an image of `columns` columns, which may need several windows."""
    if tokenizer.halo_columns is None:
        return max(_SMALLEST, 1 << (columns - 1).bit_length())
    sizes = window_sizes(tokenizer)
    return next((size for size in sizes if columns <= size), sizes[-1])


@contextlib.contextmanager
def compiling(tokenizer: Tokenizer, params: Params, batch_size: int, columns: int, precision: str) -> Iterator[None]:
    """Compiles the window of an image in a thread while the body of the `with` statement runs, once for each window.

    The body compiles and runs the sampler, on another core.

    Args:
      tokenizer: the module.
      params: its parameters, on one device.
      batch_size: number of images.
      columns: columns of the images, which will be decoded to uint8.
      precision: JAX's name for the precision of products; every thread has its own.
    """
    size = window_size(tokenizer, columns)
    key = (tokenizer, batch_size, size, precision)
    if key in _compiled:
        yield
        return
    _compiled.add(key)

    def compile_window() -> None:
        zeros = np.zeros((batch_size, size, tokenizer.embed_dim), np.float32)
        # Decoding will meet the same errors.
        with contextlib.suppress(Exception), jax.default_matmul_precision(precision):
            decode_window(tokenizer, params, zeros, np.int32(1), True)

    thread = threading.Thread(target=compile_window, name="compile")
    thread.start()
    yield
    thread.join()


@functools.partial(jax.jit, static_argnames=("tokenizer", "to_uint8"))
def decode_window(
    tokenizer: Tokenizer, params: Params, latents: Float[AnyArray, "B C D"], count: Int[AnyArray, ""], to_uint8: bool
) -> Shaped[jax.Array, "B H W 3"]:
    """Decodes one window.

    Args:
      tokenizer: the module.
      params: its parameters.
      latents: unscaled latents.
      count: columns of the window that belong to the image, 1 … C; pixels behind them mean nothing.
      to_uint8: returns uint8, not floats in [-1, 1] up to overshoot.
    """
    with _image_ends_at(count, latents.shape[1]):
        decoded: Any = tokenizer.apply({"params": params}, latents, method="decode")
    images: Any = pixels.to_uint8(decoded.images) if to_uint8 else decoded.images
    return images


@functools.partial(jax.jit, static_argnames="tokenizer")
def encode_window(
    tokenizer: Tokenizer, params: Params, images: Float[AnyArray, "B H W 3"], count: Int[AnyArray, ""]
) -> Float[jax.Array, "B C D"]:
    """Encodes one window to posterior means, unscaled.

    Args:
      tokenizer: the module.
      params: its parameters.
      images: [B, H, W, 3] in [-1, 1].
      count: columns of the window that belong to the images, 1 … C; latents behind them mean nothing.
    """
    with _image_ends_at(count, images.shape[2] // tokenizer.column_width):
        posterior: Any = tokenizer.apply({"params": params}, images, method="encode")
    return posterior.mode()


def _image_ends_at(count: Int[AnyArray, ""], size: int) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which all layers see an image that ends after `count` of the `size` columns of a window."""

    def end_image(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name == "__call__":
            if isinstance(context.module, Conv | AttentionBlock | Filter):
                kwargs = {**kwargs, "width": args[0].shape[-2] * count // size}
            elif isinstance(context.module, nn.GroupNorm):
                columns = args[0].shape[-2]
                mask = (jnp.arange(columns) < columns * count // size)[:, None]
                kwargs = {**kwargs, "mask": jnp.broadcast_to(jax.lax.broadcast_to_rank(mask, 4), args[0].shape)}
        return next_fun(*args, **kwargs)

    return nn.intercept_methods(end_image)


def check_finite(latents: Float[np.ndarray, "..."]) -> None:
    """Refuses latents that are not finite: what they decode to looks like an image and means nothing.

    Raises:
      ValueError: some are NaN or infinite.
    """
    wrong = int(np.sum(~np.isfinite(latents)))
    if wrong:
        raise ValueError(
            f"{wrong} of {latents.size} latents are not finite. If they were sampled, the guidance scale or the "
            "temperature is too large for the dtype (float16 overflows first, take bfloat16 or float32), or the "
            "weights are those of a run that diverged."
        )


def decode_columns(
    tokenizer: Tokenizer, params: Params, latents: Shaped[AnyArray, "..."], *, scale: float, to_uint8: bool
) -> Shaped[jax.Array, "B H W 3"]:
    """Decodes latents of any number of columns, which is no shape of a compiled program.

    Args:
      tokenizer: the module.
      params: its parameters.
      latents: [B, L, D]; where they are sharded, so are the images.
      scale: factor that latents have been multiplied by.
      to_uint8: returns uint8, not floats in [-1, 1] up to overshoot.

    Raises:
      ValueError: the latents have another shape, or values that are not finite.
    """
    tokenizer.check_latents(latents.shape)
    where = latents.sharding if isinstance(latents, jax.Array) else None
    rows = np.asarray(sharding.to_host(latents), np.float32) / np.float32(scale)
    check_finite(rows)
    columns, halo = rows.shape[1], tokenizer.halo_columns or 0
    size = window_size(tokenizer, columns)
    if columns <= size:
        spans = [(0, 0, columns)]
    else:  # First column of the window, and the columns that it determines.
        starts = range(0, columns, size - 2 * halo)
        spans = [
            (min(max(start - halo, 0), columns - size), start, min(start + size - 2 * halo, columns))
            for start in starts
        ]
    parts = []
    for first, start, stop in spans:
        window = rows[:, first : first + size]
        count = window.shape[1]
        window = np.pad(window, ((0, 0), (0, size - count), (0, 0)))
        images = decode_window(tokenizer, params, sharding.put_where(window, where), np.int32(count), to_uint8)
        parts.append((images, (start - first) * tokenizer.column_width, (stop - first) * tokenizer.column_width))
    joined = np.concatenate([sharding.to_host(images)[:, :, start:stop] for images, start, stop in parts], axis=2)
    return sharding.put_where(joined, parts[0][0].sharding)
