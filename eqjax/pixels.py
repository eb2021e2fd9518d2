"""Conversion of images between uint8 and [-1, 1], and grids of images."""

import math
import sys
from typing import Any
import warnings

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped, UInt8
import numpy as np

from eqjax.arguments import check_arguments
from eqjax.rules import Array, Integer, Text
from eqjax.tracing import is_traced
from eqjax.typing import AnyArray

# Largest absolute value of a float image: resizing and decoding overshoot.
_OVERSHOOT = 1.25


@check_arguments(images=Array(None, "uint8"))
def from_uint8(images: Shaped[AnyArray, "*shape"]) -> Float[jax.Array, "*shape"]:
    """Converts uint8 images to float32 in [-1, 1]: x / 127.5 − 1.

    Example:
      >>> from_uint8(np.array([0, 255], np.uint8))
      Array([-1.,  1.], dtype=float32)
    """
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


@check_arguments(images=Array(None))
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


@check_arguments(name=Text(), images=Array(None))
def check_range(name: str, images: Any) -> None:
    """Checks that floats are images in [-1, 1]; traced arrays are not checked.

    Values up to 1.25 pass, as resizing and decoding overshoot. Values from about 0 to about 1 are very likely an image
    in 0 … 1, but a bright one in [-1, 1] may look the same, so they get a warning and no error.

    Args:
      name: name of the argument, for messages.
      images: floats of any shape.

    Raises:
      ValueError: values are outside, or not finite.

    Example:
      >>> check_range("images", np.array([0.0, 255.0]))
      Traceback (most recent call last):
      ValueError: images has values from 0 to 255; expected floats in [-1, 1]. ...
    """
    if is_traced(images) or not images.size:
        return
    low, high = float(images.min()), float(images.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} has values that are not finite; expected floats in [-1, 1].")
    if low < -_OVERSHOOT or high > _OVERSHOOT:
        raise ValueError(
            f"{name} has values from {low:.4g} to {high:.4g}; expected floats in [-1, 1]. Convert uint8 images by "
            "eqjax.pixels.from_uint8, floats in 0 … 255 by x / 127.5 - 1."
        )
    if 0 <= low <= 0.25 and 0.75 <= high <= 1:
        warnings.warn(
            f"{name} has values from {low:.3g} to {high:.3g}: floats in [-1, 1] are expected, where 0 is gray. If they "
            "are in 0 … 1, convert them by 2 * x - 1.",
            stacklevel=_outside(),
        )


def _outside() -> int:
    """Returns the `stacklevel` of the first caller outside of this package, whose line a warning shows."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("eqjax."):
        level, frame = level + 1, frame.f_back
    return level


@check_arguments(
    images=Array(("images", "height", "width", 3), "uint8"),
    columns=Integer(least=1, optional=True),
    gap=Integer(least=0),
)
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
