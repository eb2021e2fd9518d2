"""Conversion of images between uint8 and [-1, 1], and grids of images."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped, UInt8
import numpy as np

from eqjax.typing import AnyArray


def from_uint8(images: Shaped[AnyArray, "*shape"]) -> Float[jax.Array, "*shape"]:
    """Converts uint8 images to float32 in [-1, 1]: x / 127.5 − 1.

    Example:
      >>> from_uint8(np.array([0, 255], np.uint8))
      Array([-1.,  1.], dtype=float32)
    """
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def to_uint8(images: Shaped[AnyArray, "*shape"]) -> UInt8[AnyArray, "*shape"]:
    """Converts images in [-1, 1] to uint8, rounded to the nearest; values outside are clipped.

    Images on the host stay there.

    Example:
      >>> to_uint8(np.array([-2.0, 0.5, 1.0])).tolist()
      [0, 191, 255]
    """
    xp = np if isinstance(images, np.ndarray) else jnp
    images = xp.clip(xp.asarray(images, xp.float32), -1, 1)
    return xp.round((images + 1) * 127.5).astype(xp.uint8)


def grid(images: UInt8[AnyArray, "N H W 3"], columns: int | None = None, gap: int = 2) -> UInt8[np.ndarray, "h w 3"]:
    """Arranges images of one size in one image, row by row, on white.

    Args:
      images: the images.
      columns: images per row; None: about as many as rows.
      gap: white pixels between images.

    Returns:
      [rows · (H + gap) − gap, columns · (W + gap) − gap, 3].

    Example:
      >>> grid(np.zeros((5, 64, 128, 3), np.uint8), columns=2).shape
      (196, 258, 3)
    """
    images = np.asarray(images)
    n, h, w, c = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    out = np.full((rows * (h + gap), columns * (w + gap), c), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (h + gap), i % columns * (w + gap)
        out[y : y + h, x : x + w] = image
    return out[: out.shape[0] - gap, : out.shape[1] - gap]
