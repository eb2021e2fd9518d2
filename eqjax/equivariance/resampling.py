"""Resampling along one axis as a product with a matrix, whose rows are the kernel at each output's place in the input.

A matrix needs neither gathers nor an FFT: gradients are products too (the same on every run of a GPU), images may be
sharded, places may be traced, and rows of whole-number places are exact unit vectors.

Letters: n input samples, m outputs, P period of a continued signal.

Source: the trigonometric kernel: Trefethen, Spectral Methods in MATLAB, 2000, chapter 3; antialiasing by widening the
triangle kernel as `jax.image.resize` does.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from eqjax.equivariance.geometry import ColumnGeometry
from eqjax.typing import AnyArray


def resampling_matrix(
    places: Float[AnyArray, "m"], size: int, geometry: ColumnGeometry, scale: float = 1.0
) -> Float[jax.Array, "m {size}"]:
    """Returns the matrix from samples at 0 … size − 1 to values at given places.

    Args:
      places: index of each output in the input, which may be a fraction and outside.
      size: number of samples, n.
      geometry: its boundary continues the input (circularly, or mirrored at the outer edges of the first and the last
        sample), its interpolation is the kernel.
      scale: output samples per input sample; below 1 the kernel removes what the output cannot represent.

    Example:
      >>> resampling_matrix(jnp.array([0.0, 1.25]), 3, ColumnGeometry(stride=1)).tolist()
      [[1.0, 0.0, 0.0], [0.0, 0.75, 0.25]]
    """
    places, samples = jnp.asarray(places, jnp.float32)[:, None], jnp.arange(size, dtype=jnp.float32)[None]
    band = min(scale, 1.0)
    if geometry.boundary == "circular":
        distance = places - samples
        if geometry.interpolation == "fourier":
            return _trigonometric(distance, size, round(band * size))
        # The nearest copy of each sample; a kernel that is wider than the image covers it with two.
        distance -= size * jnp.round(distance / size)
        return _normalize(sum((_triangle(distance + k * size, band) for k in (-1, 0, 1)), jnp.zeros(())))
    # Mirrored at the edges −½ and n − ½.
    places = size - jnp.abs(jnp.mod(places + 0.5, 2 * size) - size) - 0.5
    if geometry.interpolation == "fourier":
        kept = round(2 * band * size)
        return _trigonometric(places - samples, 2 * size, kept) + _trigonometric(places + samples + 1, 2 * size, kept)
    return _normalize(_triangle(places - samples, band))


def _triangle(distance: Float[jax.Array, "m n"], band: float) -> Float[jax.Array, "m n"]:
    return jnp.maximum(1 - band * jnp.abs(distance), 0)


def _normalize(weights: Float[jax.Array, "m n"]) -> Float[jax.Array, "m n"]:
    """Scales rows to sum 1: at the ends of the input, the part of the kernel that is outside is left out."""
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def _trigonometric(distance: Float[jax.Array, "m n"], period: int, kept: int) -> Float[jax.Array, "m n"]:
    """Returns the sum of the `kept` lowest frequencies of a unit impulse of a period, at distances from it.

    Of an even number, the highest frequency is a cosine of half weight on either side.
    """
    turns = distance * (kept / period)
    nearest = jnp.round(turns)
    # sin(π·turns), which is exactly zero at whole numbers.
    sine = jnp.sin(jnp.pi * (turns - nearest)) * jnp.where(jnp.mod(nearest, 2) == 0, 1.0, -1.0)
    angle = jnp.pi * (distance / period - jnp.round(distance / period))
    at_impulse = jnp.abs(angle) < 1e-6
    angle = jnp.where(at_impulse, 1.0, angle)  # Keeps gradients finite.
    divisor = jnp.tan(angle) if kept % 2 == 0 else jnp.sin(angle)
    # Over odd periods the sine changes its sign from one impulse to the next.
    wraps = jnp.round(distance / period)
    sign = jnp.where(jnp.mod(wraps * kept, 2) == 0, 1.0, -1.0) if kept % 2 else jnp.ones_like(wraps)
    return jnp.where(at_impulse, kept / period, sine * sign / (period * divisor))
