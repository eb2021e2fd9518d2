"""Resizing as other frameworks do it, to the last digit: every method is a matrix per axis.

A frozen network has seen images resized in one way, and published metrics depend on it. Output
pixel o of an axis is row o of a matrix [out, in] times the input pixels, so images are resized
by two products, which differentiate and run anywhere.

Methods:
  bicubic: PyTorch's, a = −0.75, pixel centers at half integers, no antialiasing, edges repeated.
  bicubic_antialias: PyTorch's with antialias=True, a = −0.5; the kernel widens when shrinking.
  area: PyTorch's, which is adaptive average pooling.
  bilinear_tf1: TensorFlow 1's, without half-pixel centers.

Letters: B images, H and W their height and width, h and w the new ones, C channels.

Source: cubic convolution: Keys, IEEE Trans. ASSP 29(6), 1981.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int, Shaped
import numpy as np

from eqjax.typing import AnyArray


def resize(images: Shaped[AnyArray, "B H W C"], size: Sequence[int], method: str) -> Float[jax.Array, "B h w C"]:
    """Resizes images or feature maps; differentiable, always in float32.

    Args:
      images: of any dtype.
      size: height and width in pixels.
      method: one of the methods at the head of this file.

    Returns:
      Resized images, float32.

    Raises:
      ValueError: the method is unknown.

    Example:
      >>> resize(jnp.arange(4.0).reshape(1, 1, 4, 1), (1, 2), "area").ravel()
      Array([0.5, 2.5], dtype=float32)
    """
    rows, columns = (interpolation_matrix(n, out, method) for n, out in zip(images.shape[1:3], size, strict=True))
    x = jnp.asarray(images).astype(jnp.float32)
    # Highest precision: accelerators would otherwise round pixels to 8 or 10 bits of mantissa.
    x = jnp.einsum("oh,bhwc->bowc", rows, x, precision="highest")
    return jnp.einsum("ow,bhwc->bhoc", columns, x, precision="highest")


@functools.lru_cache(maxsize=64)
def interpolation_matrix(size: int, out: int, method: str) -> Float32[np.ndarray, "{out} {size}"]:
    """Returns the matrix of a method along an axis of `size` pixels; every row sums to 1.

    Raises:
      ValueError: the method is unknown.
    """
    if method not in _METHODS:
        raise ValueError(f"unknown resize method {method!r}; expected one of {sorted(_METHODS)}.")
    matrix = _METHODS[method](size, out).astype(np.float32)
    matrix.setflags(write=False)  # The cache returns it again.
    return matrix


def _bicubic(size: int, out: int) -> Float[np.ndarray, "{out} {size}"]:
    centers = (np.arange(out) + 0.5) * (size / out) - 0.5
    taps = np.floor(centers).astype(int)[:, None] + np.arange(-1, 3)
    weights = _cubic(centers[:, None] - taps, -0.75)
    return _scatter(np.clip(taps, 0, size - 1), weights, size)


def _bicubic_antialias(size: int, out: int) -> Float[np.ndarray, "{out} {size}"]:
    stretch = max(size / out, 1.0)
    distance = np.arange(size) + 0.5 - (np.arange(out)[:, None] + 0.5) * (size / out)
    weights = _cubic(distance / stretch, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def _area(size: int, out: int) -> Float[np.ndarray, "{out} {size}"]:
    pixel, o = np.arange(size), np.arange(out)[:, None]
    inside = (pixel >= o * size // out) & (pixel < -(-(o + 1) * size // out))
    return inside / inside.sum(axis=1, keepdims=True)


def _bilinear_tf1(size: int, out: int) -> Float[np.ndarray, "{out} {size}"]:
    # TensorFlow rounds the product to float32, which determines the first pixel.
    position = np.arange(out, dtype=np.float32) * np.float32(size / out)
    low = np.floor(position).astype(int)
    upper = position - low
    taps = np.stack([low, np.minimum(low + 1, size - 1)], axis=1)
    return _scatter(taps, np.stack([1 - upper, upper], axis=1), size)


def _scatter(
    taps: Int[np.ndarray, "out taps"], weights: Float[np.ndarray, "out taps"], size: int
) -> Float[np.ndarray, "out {size}"]:
    """Returns the matrix with given weights at given positions; weights of one position add up."""
    matrix = np.zeros((len(taps), size))
    np.add.at(matrix, (np.arange(len(taps))[:, None], taps), weights)
    return matrix


def _cubic(x: Float[np.ndarray, "out taps"], a: float) -> Float[np.ndarray, "out taps"]:
    """Evaluates the cubic convolution kernel, 0 from |x| = 2 on."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_METHODS = {
    "area": _area,
    "bicubic": _bicubic,
    "bicubic_antialias": _bicubic_antialias,
    "bilinear_tf1": _bilinear_tf1,
}
