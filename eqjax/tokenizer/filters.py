"""Alias-free resampling along the width: low-pass filters, interpolation to twice the rate and back.

A downsampling that drops high frequencies first, and a nonlinearity that is computed at twice the rate, commute with
shifts by a fraction of a position; without filters high frequencies fold back (alias) and break it. Height needs none
of this, as it lives in the channels of a column.

Two kinds of filters: "kaiser", windowed sincs of a few taps, which reach a bounded number of positions, so that tiles
equal the whole; and "fft", ideal filters over the whole width, for images that wrap around. Both are float32 inside.

    low_pass      w → w    keeps frequencies below half of the map's highest
    interpolate   w → 2w   positions 0, ½, 1, … w − ½
    decimate     2w → w    the low-pass of positions 0, ½, 1, … at 0, 1, 2, …

At the ends maps are mirrored about their first and last position ("reflect"), or wrap around ("circular"). `width`
says how many positions belong to the image, if the map is wider; those behind have no effect.

Letters: B images, h rows, w positions along the width, C channels, r reach of a filter.

Source: AF-LDM, arXiv 2503.09419, section 4.1 (ideal filters, filtered nonlinearities); arXiv 2411.09174, section 3
(Kaiser windows); Alias-Free GAN, arXiv 2106.12423, section 3.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from eqjax.typing import Scalar

# Reach of the low-pass filter, in positions of the map that it is applied to; that of interpolation is half as many.
REACH = 8
# Middle of the transition, as a fraction of the highest frequency that survives, at which the stop band begins.
_CUTOFF = 0.65
# Shapes of the Kaiser windows, which trade the width of the transition for what is left in the stop band (0.3 %).
_LOW_PASS_BETA, _INTERPOLATION_BETA = 4.0, 5.0


@functools.cache
def low_pass_taps() -> tuple[float, ...]:
    """Returns taps 0 … `REACH` of the symmetric low-pass filter; all taps sum to 1."""
    taps = np.sinc(0.5 * _CUTOFF * np.arange(-REACH, REACH + 1)) * np.kaiser(2 * REACH + 1, _LOW_PASS_BETA)
    return tuple((taps / taps.sum())[REACH:].tolist())


@functools.cache
def interpolation_taps() -> tuple[float, ...]:
    """Returns the weights of the neighbors at distances ½, 1½, … of a point between two positions; they sum to ½."""
    distance = np.arange(REACH // 2) + 0.5
    window = np.i0(_INTERPOLATION_BETA * np.sqrt(1 - (2 * distance / (REACH + 1)) ** 2))
    taps = np.sinc(distance) * window
    return tuple((taps / (2 * taps.sum())).tolist())


def extend(
    x: Float[jax.Array, "*B w C"], before: int, behind: int, padding: str, width: Scalar | None
) -> Float[jax.Array, "*B w2 C"]:
    """Pads a map along the width.

    Args:
      x: the map.
      before: positions to add before the first.
      behind: positions to add behind the last.
      padding: "reflect" or "circular".
      width: positions that belong to the image, behind whose last the padding begins; None: all.
    """
    if width is None:
        pads = [(0, 0)] * (x.ndim - 2) + [(before, behind), (0, 0)]
        return jnp.pad(x, pads, mode="reflect" if padding == "reflect" else "wrap")
    positions = jnp.arange(-before, x.shape[-2] + behind)
    if padding == "circular":
        index = positions % width
    else:
        period = jnp.maximum(2 * (width - 1), 1)
        index = positions % period
        index = jnp.minimum(index, period - index)  # Counts down behind the last position.
        index = jnp.minimum(index, width - 1)
    return jnp.take(x, index, axis=-2)


def low_pass(
    x: Float[jax.Array, "*B w C"], kernel: str, padding: str, width: Scalar | None = None
) -> Float[jax.Array, "*B w C"]:
    """Removes the upper half of the frequencies along the width.

    Args:
      x: the map.
      kernel: "kaiser" or "fft".
      padding: "reflect", or "circular"; "fft" wraps around in any case.
      width: positions that belong to the image; None: all.

    Returns:
      A map of the same shape and dtype.

    Example:
      >>> wave = jnp.cos(jnp.pi * jnp.arange(32.0))[:, None]  # The highest frequency.
      >>> bool(jnp.abs(low_pass(1 + wave, "kaiser", "circular") - 1).max() < 0.02)
      True
    """
    size = x.shape[-2]
    if kernel == "fft":
        return _spectral(x, size, np.arange(size), 4, width)
    padded = extend(x.astype(jnp.float32), REACH, REACH, padding, width)
    return _filter(padded, low_pass_taps(), size, 1).astype(x.dtype)


def interpolate(
    x: Float[jax.Array, "*B w C"], kernel: str, padding: str, width: Scalar | None = None
) -> Float[jax.Array, "*B w2 C"]:
    """Doubles the number of positions: those of the map, and those half-way to the next.

    Args:
      x: the map.
      kernel: "kaiser" or "fft".
      padding: "reflect", or "circular"; "fft" wraps around in any case.
      width: positions that belong to the image; None: all.

    Example:
      >>> wave = jnp.cos(2 * jnp.pi * jnp.arange(8.0) / 8)[:, None]
      >>> np.asarray(interpolate(wave, "fft", "circular"))[1:4:2, 0].astype(float).round(3).tolist()
      [0.924, 0.383]
    """
    size = x.shape[-2]
    if kernel == "fft":
        between = _spectral(x, size, np.arange(size) + 0.5, 2, width)
    else:
        reach = REACH // 2
        padded = extend(x.astype(jnp.float32), reach - 1, reach, padding, width)
        between = 0
        for k, tap in enumerate(interpolation_taps()):
            left, right = (jax.lax.slice_in_dim(padded, i, i + size, axis=-2) for i in (reach - 1 - k, reach + k))
            between = between + tap * (left + right)
    both = jnp.stack([x, jnp.asarray(between, x.dtype)], axis=-2)
    return both.reshape(*x.shape[:-2], 2 * size, x.shape[-1])


def decimate(
    x: Float[jax.Array, "*B w2 C"], kernel: str, padding: str, width: Scalar | None = None
) -> Float[jax.Array, "*B w C"]:
    """Halves the number of positions of a map from `interpolate`: low-pass, then every other position.

    Args:
      x: a map of 2w positions.
      kernel: "kaiser" or "fft".
      padding: "reflect", or "circular"; "fft" wraps around in any case.
      width: positions of the 2w that belong to the image; None: all.
    """
    size = x.shape[-2] // 2
    if kernel == "fft":
        return _spectral(x, 2 * size, 2 * np.arange(size), 4, width)
    if padding == "reflect":
        # The mirror is the last whole position: the half-way one behind it is its neighbor's image.
        if width is None:
            x, behind = x[..., : 2 * size - 1, :], REACH + 1
        else:
            width, behind = width - 1, REACH
    else:
        behind = REACH
    padded = extend(x.astype(jnp.float32), REACH, behind, padding, width)
    return _filter(padded, low_pass_taps(), size, 2).astype(x.dtype)


def _filter(
    padded: Float[jax.Array, "*B n C"], taps: tuple[float, ...], size: int, stride: int
) -> Float[jax.Array, "*B {size} C"]:
    """Applies a symmetric filter at `size` positions, `stride` apart, of a map that is padded by its reach.

    A sum of shifted slices is one loop over memory; a convolution of every channel by itself is slow on CPUs.
    """
    reach, span = len(taps) - 1, stride * (size - 1) + 1

    def at(offset: int) -> jax.Array:
        return jax.lax.slice_in_dim(padded, reach + offset, reach + offset + span, stride, axis=-2)

    out = taps[0] * at(0)
    for k, tap in enumerate(taps[1:], 1):
        out = out + tap * (at(-k) + at(k))
    return out


def _spectral(
    x: Float[jax.Array, "*B w C"], size: int, positions: np.ndarray, fraction: int, width: Scalar | None
) -> Float[jax.Array, "*B n C"]:
    """Evaluates the frequencies below 1 / fraction of a map that wraps around, at any positions.

    Args:
      x: the map.
      size: w.
      positions: where, in units of positions of the map.
      fraction: 2 for all frequencies (but the highest of an even number of positions), 4 for their lower half.
      width: positions that belong to the image; None: all.
    """
    x32 = x.astype(jnp.float32)
    if width is None:
        spectrum = jnp.fft.rfft(x32, axis=-2)
        kept = (size - 1) // fraction + 1  # Frequencies 0 … k with k < size / fraction.
        step = positions[1] - positions[0] if len(positions) > 1 else 1
        turns = np.exp(2j * np.pi * np.arange(kept) * positions[0] / size).astype(np.complex64)
        spectrum = spectrum[..., :kept, :] * jax.lax.broadcast_to_rank(jnp.asarray(turns)[:, None], x.ndim)
        length = round(size / step)  # Every other position of a low-pass: the same frequencies, fewer samples.
        out = jnp.fft.irfft(spectrum, n=length, axis=-2) * (length / size)
        return out.astype(x.dtype)
    # The length of the image is data here, and that of a transform is not: the same as a matrix, Dirichlet's kernel.
    inside, width = jnp.arange(size) < width, jnp.asarray(width, jnp.float32)
    distance = jnp.asarray(positions, jnp.float32)[:, None] - jnp.arange(size, dtype=jnp.float32)[None, :]
    count = 2 * jnp.floor((width - 1) / fraction) + 1
    angle = jnp.pi * distance / width
    whole = jnp.abs(jnp.sin(angle)) < 1e-6
    rows = jnp.where(whole, count, jnp.sin(count * angle) / jnp.where(whole, 1.0, jnp.sin(angle))) / width
    rows = jnp.where(inside[None, :], rows, 0.0)
    x32 = jnp.where(jax.lax.broadcast_to_rank(inside[:, None], x.ndim), x32, 0.0)
    return jnp.einsum("nw,...wc->...nc", rows, x32, precision="highest").astype(x.dtype)


class Filter(nn.Module):
    """One of the functions of this module as a layer without parameters, which is told where an image ends.

    Attributes:
      kind: "low_pass", "interpolate" or "decimate".
      kernel: "kaiser" or "fft".
      padding: "reflect" or "circular".
    """

    kind: str
    kernel: str
    padding: str

    def __call__(self, x: Float[jax.Array, "*B w C"], width: Scalar | None = None) -> Float[jax.Array, "*B w2 C"]:
        """Filters a map along its width.

        Args:
          x: the map.
          width: positions of the map that belong to the image; None: all.
        """
        apply = {"low_pass": low_pass, "interpolate": interpolate, "decimate": decimate}[self.kind]
        return apply(x, self.kernel, self.padding, width)
