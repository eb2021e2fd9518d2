"""A distance of images that compares how much detail there is, and not where exactly each of its lines lies.

An absolute or squared error per pixel is least for a blurred image, wherever detail cannot be predicted. The amplitudes
of a short Fourier transform do not change much when detail moves by a pixel, so detail of the right strength and
direction is better than none.

Letters: B batch, H height, W width, C channels, S side of a window.

Source: amplitudes of short transforms at several sizes as a loss, arXiv 1910.11480, section 2.2 (there of sound).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from eqjax.typing import AnyArray

# Sides of the windows in pixels: detail, texture, and structure of half a column to two columns.
SIDES = (8, 16, 32)
# Below this amplitude, a quarter of a gray level, the gradient fades instead of jumping between signs.
_FLOOR = 2e-3


def local_spectrum_distance(
    x: Float[AnyArray, "B H W C"], y: Float[AnyArray, "B H W C"], sides: Sequence[int] = SIDES
) -> Float[jax.Array, "B"]:
    """Returns the mean absolute difference of local amplitudes of two images.

    Every image is cut into square windows, at two offsets so that no line is at a border of both; each window is
    weighted with a Hann function and transformed. Amplitudes are in the unit of the values: white noise of standard
    deviation σ has the mean square σ² at every frequency.

    Args:
      x, y: images, in [-1, 1].
      sides: sides of the windows in pixels; those larger than the image are left out.

    Returns:
      Distances ≥ 0, means over windows, frequencies, channels and sides.

    Raises:
      ValueError: the image is smaller than every window.

    Example:
      >>> noise = np.random.default_rng(0).normal(size=(2, 1, 64, 64, 3)).astype(np.float32)
      >>> blurred = np.zeros_like(noise[0])
      >>> bool(local_spectrum_distance(noise[0], noise[1]) < local_spectrum_distance(noise[0], blurred))
      True
    """
    height, width = x.shape[1:3]
    fitting = [side for side in sides if side <= min(height, width)]
    if not fitting:
        raise ValueError(
            f"images of {height} × {width} pixels are smaller than every window of a local spectrum, of which the "
            f"least is {min(sides)} pixels wide; set objective.spectrum_weight=0, or enlarge the images."
        )
    both = jnp.concatenate([x, y]).astype(jnp.float32)
    distances = []
    for side in fitting:
        for offset in (0, side // 2):
            if side + offset > min(height, width):
                continue
            ours, theirs = jnp.split(_amplitudes(both[:, offset:, offset:], side), 2)
            distances.append(jnp.mean(jnp.abs(ours - theirs), axis=tuple(range(1, ours.ndim))))
    return jnp.mean(jnp.stack(distances), axis=0)


def _amplitudes(images: Float[jax.Array, "B H W C"], side: int) -> Float[jax.Array, "B C h w u v"]:
    """Returns the amplitudes of all whole windows of an image."""
    rows, columns = images.shape[1] // side, images.shape[2] // side
    cut = images[:, : rows * side, : columns * side]
    windows = cut.reshape(cut.shape[0], rows, side, columns, side, cut.shape[3]).transpose(0, 5, 1, 3, 2, 4)
    hann = np.hanning(side + 2)[1:-1]
    weights = np.outer(hann, hann)
    weights = (weights / np.sqrt(np.sum(weights**2))).astype(np.float32).reshape(1, 1, 1, 1, side, side)
    spectrum = jnp.fft.rfft2(windows * weights)
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + _FLOOR**2)
