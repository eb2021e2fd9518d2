"""Power spectra of images, summed over octaves: how much of an image's detail a model keeps.

Letters: N images, H height, W width, C channels, O octaves.

Source: power spectra as a test of generated images, arXiv 2003.01826, section 3.
"""

import itertools

from jaxtyping import Float, Shaped
import numpy as np

from eqjax.typing import AnyArray

# The lowest octave of images of this height still holds several frequencies.
_LOWEST = 4


def octave_power(images: Shaped[AnyArray, "N H W C"]) -> Float[np.ndarray, "N O"]:
    """Returns the power of each image's luma per octave of spatial frequency, coarse to fine.

    Frequencies are radial. The last octave is [1/4, 1/2) cycles per pixel, the one before [1/8, 1/4), and so on down
    to about four cycles per height. A Hann window keeps the borders, where images do not continue, from adding power
    to all octaves.

    Args:
      images: uint8 or float images of any range.

    Raises:
      ValueError: the images are smaller than 16 × 16 pixels.

    Example:
      >>> waves = np.sin(np.arange(32) * 2 * np.pi / 6)[None, None, :, None] * np.ones((1, 32, 1, 1))
      >>> (octave_power(waves) / octave_power(waves).sum()).round(2)
      array([[0., 1., 0.]])
    """
    height, width = images.shape[1:3]
    if min(height, width) < 16:
        raise ValueError(f"images of {height} × {width} pixels are too small for a spectrum; give at least 16 × 16.")
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    radius = np.hypot(rows, columns)
    # Frequencies of a real image come in pairs; rfft2 lists one of each, except in its first and last column.
    count = np.where((columns == 0) | (columns == 0.5), 1.0, 2.0) * np.ones_like(radius)
    num_octaves = int(np.log2(min(height, width) / 2 / _LOWEST)) + 1
    edges = 0.5 ** np.arange(num_octaves + 1, 0, -1)
    bands = [count * ((radius >= low) & (radius < high)) for low, high in itertools.pairwise(edges)]
    powers = []
    for image in images:  # One by one: spectra of many images at once take memory.
        luma = np.asarray(image, np.float64).mean(-1)
        luma = (luma - (luma * window).sum() / window.sum()) * window
        power = np.abs(np.fft.rfft2(luma)) ** 2 / (window**2).sum()
        powers.append([(power * band).sum() / (height * width) for band in bands])
    return np.array(powers)


def energy_kept(
    images: Shaped[AnyArray, "N H W C"], reference: Shaped[AnyArray, "M H2 W2 C"]
) -> Float[np.ndarray, "O"]:
    """Returns the mean power of images per octave over that of reference images of the same size, coarse to fine.

    1 is as much as the reference has; blurred images have less in the fine octaves. It says nothing about whether the
    detail is right.

    Args:
      images: reconstructions or samples, in the range of the reference.
      reference: real images.

    Raises:
      ValueError: the sizes differ, or are below 16 × 16 pixels.

    Example:
      >>> noise = np.random.default_rng(0).normal(size=(4, 32, 32, 3))
      >>> energy_kept(noise / 2, noise).round(2)
      array([0.25, 0.25, 0.25])
    """
    if images.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"images are {tuple(images.shape[1:])} and the reference {tuple(reference.shape[1:])}; spectra are "
            "compared at one size: crop both to the smaller."
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        return octave_power(images).mean(0) / octave_power(reference).mean(0)
