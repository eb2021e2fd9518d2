"""Resizing as other frameworks do it, to the last digit: every method is a matrix per axis.

A frozen network has seen images resized in one way, and published numbers depend on it. Output
pixel o of an axis is row o of a matrix [out, in] times the input pixels, so that images are resized
by two products, which differentiate and run anywhere.

Methods:
  bicubic: PyTorch's, a = −0.75, pixel centers at half integers, no antialiasing, edges repeated.
  bicubic_antialias: PyTorch's with antialias=True, a = −0.5; the kernel widens when shrinking.
  area: PyTorch's, which is adaptive average pooling.
  bilinear_tf1: TensorFlow 1's, without half-pixel centers.

Source: cubic convolution: Keys, IEEE Trans. ASSP 29(6), 1981.
"""

import functools

import jax.numpy as jnp
import numpy as np


def resize(images, size, method):
    """Resizes images or feature maps; differentiable, always in float32.

    Args:
      images: [B, H, W, C].
      size: (height, width) in pixels.
      method: see the head of this file.

    Returns:
      float32 [B, height, width, C].
    """
    rows, columns = (interpolation_matrix(n, out, method) for n, out in zip(images.shape[1:3], size, strict=True))
    images = images.astype(jnp.float32)
    # Highest precision: accelerators would otherwise round pixels to 8 or 10 bits of mantissa.
    images = jnp.einsum("oh,bhwc->bowc", rows, images, precision="highest")
    return jnp.einsum("ow,bhwc->bhoc", columns, images, precision="highest")


@functools.lru_cache(maxsize=64)
def interpolation_matrix(size, out, method):
    """The matrix, float32 [out, size], of a method along an axis; every row sums to 1.

    Raises:
      ValueError: there is no such method.
    """
    if method not in _METHODS:
        raise ValueError(f"there is no way of resizing called {method!r}; there are {sorted(_METHODS)}.")
    matrix = _METHODS[method](size, out).astype(np.float32)
    matrix.setflags(write=False)  # It is cached.
    return matrix


def _bicubic(size, out):
    centers = (np.arange(out) + 0.5) * (size / out) - 0.5
    taps = np.floor(centers).astype(int)[:, None] + np.arange(-1, 3)
    weights = _cubic(centers[:, None] - taps, -0.75)
    return _scatter(np.clip(taps, 0, size - 1), weights, size)


def _bicubic_antialias(size, out):
    stretch = max(size / out, 1.0)
    distance = np.arange(size) + 0.5 - (np.arange(out)[:, None] + 0.5) * (size / out)
    weights = _cubic(distance / stretch, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def _area(size, out):
    pixel, o = np.arange(size), np.arange(out)[:, None]
    inside = (pixel >= o * size // out) & (pixel < -(-(o + 1) * size // out))
    return inside / inside.sum(axis=1, keepdims=True)


def _bilinear_tf1(size, out):
    # The product is rounded to float32 there, which decides which pixel comes first.
    position = np.arange(out, dtype=np.float32) * np.float32(size / out)
    low = np.floor(position).astype(int)
    upper = position - low
    taps = np.stack([low, np.minimum(low + 1, size - 1)], axis=1)
    return _scatter(taps, np.stack([1 - upper, upper], axis=1), size)


def _scatter(taps, weights, size):
    """Matrix [out, size] from the positions and weights [out, taps]; what falls together is added."""
    matrix = np.zeros((len(taps), size))
    np.add.at(matrix, (np.arange(len(taps))[:, None], taps), weights)
    return matrix


def _cubic(x, a):
    """The cubic convolution kernel, 0 from |x| = 2 on."""
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
