"""Response of a tokenizer to shifts of the image, and the pixels that each column controls.

An error under shifts alone means nothing: latents that ignore the image do not move at all. `shift_errors`
therefore returns the PSNR of the reconstructions with it.

A column's *footprint* is its decoder influence map: how much every pixel changes when this column's latent is
replaced.

Letters: N images, S shifts, L columns, H height, W width.
"""

from collections.abc import Sequence
import dataclasses

import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped
import numpy as np

from eqjax import pixels
from eqjax.evaluation.image_metrics import psnr
from eqjax.model import Model
from eqjax.tokenizer.tiling import decode_images, encode_images
from eqjax.typing import AnyArray


@dataclasses.dataclass(frozen=True)
class ShiftErrors:
    """Distances between the latents of shifted images and shifted latents.

    Attributes:
      shifts: shifts in pixels.
      errors: root mean square error over images and channels, divided by the root mean square of all latents; NaN if
        a column's counterpart is outside the image.
      unrelated: the same error between different images, as an encoder without any equivariance would give.
      psnr: PSNR of the reconstructions of the same images, dB.
    """

    shifts: Int[np.ndarray, "S"]
    errors: Float[np.ndarray, "S L"]
    unrelated: float
    psnr: float


def shift_errors(
    model: Model, images: Shaped[AnyArray, "N H W 3"], shifts: Sequence[int] | Int[np.ndarray, "S"], width: int
) -> ShiftErrors:
    """Compares latents of shifted crops with shifted latents.

    The crop of shift s is cut s pixels further right from wider images, so real content enters at its border. Its
    column k is compared with column k + s / column_width of the crop of shift 0. If s is not a multiple of the column
    width, the two neighboring columns are interpolated linearly, which even a perfectly equivariant tokenizer need
    not obey.

    Args:
      model: a model with a tokenizer.
      images: at least two uint8 images, at least `width` + the largest shift wide.
      shifts: shifts in pixels, each ≥ 0.
      width: width of the crops in pixels.

    Raises:
      ValueError: the images are too narrow, or there is only one.

    Example:
      >>> model = eqjax.load_pretrained("photos")  # doctest: +SKIP
      >>> shift_errors(model, images, [16], width=128).errors.mean()  # doctest: +SKIP
      0.026
    """
    shifts = np.asarray(shifts)
    if images.shape[2] < width + shifts.max() or shifts.min() < 0 or len(images) < 2:
        raise ValueError(
            f"shifts of {shifts.min()} … {shifts.max()} pixels of crops {width} wide need at least 2 images of "
            f"{width + shifts.max()} pixels; these are {images.shape[0]} of {images.shape[2]}."
        )

    def encode(shift: int) -> Float[np.ndarray, "N L D"]:
        return np.asarray(model.encode(images[:, :, shift : shift + width]), np.float64)

    column_width = model.require("tokenizer").column_width
    latents = encode(0)
    scale = np.sqrt(np.square(latents).mean())
    count, errors = latents.shape[1], []
    for shift in shifts.tolist():
        position = np.arange(count) + shift / column_width
        inside = position <= count - 1
        low = np.floor(position[inside]).astype(int)
        weight = (position[inside] - low)[:, None]
        expected = (1 - weight) * latents[:, low] + weight * latents[:, np.minimum(low + 1, count - 1)]
        row = np.full(count, np.nan)
        row[inside] = np.sqrt(np.square(encode(shift)[:, inside] - expected).mean((0, 2))) / scale
        errors.append(row)
    unrelated = np.sqrt(np.square(latents - np.roll(latents, 1, axis=0)).mean()) / scale
    crops = images[:, :, :width]
    decibels = psnr(pixels.from_uint8(crops), pixels.from_uint8(model.decode(model.encode(crops))))
    return ShiftErrors(shifts, np.stack(errors), float(unrelated), float(np.mean(decibels)))


def footprints(model: Model, images: Shaped[AnyArray, "N H W 3"]) -> Float[np.ndarray, "L H W"]:
    """Returns the footprint (decoder influence map) of every column.

    Each column in turn is replaced by that of the next image, and the decoded images are compared.

    Args:
      model: a model with a tokenizer.
      images: at least two uint8 images.

    Returns:
      Mean squared change of every pixel, divided by the sum over all pixels.

    Raises:
      ValueError: there is only one image.
    """
    if len(images) < 2:
        raise ValueError("footprints exchange columns between images: give at least 2.")
    tokenizer, params = model.require("tokenizer"), model.tokenizer_params
    latents = encode_images(tokenizer, params, pixels.from_uint8(images))
    before = decode_images(tokenizer, params, latents)
    maps = []
    for k in range(latents.shape[1]):
        changed = latents.at[:, k].set(jnp.roll(latents[:, k], 1, axis=0))
        difference = np.asarray(decode_images(tokenizer, params, changed) - before, np.float64)
        change = np.square(difference).mean((0, 3))
        maps.append(change / change.sum())
    return np.stack(maps)


def footprint_fractions(
    maps: Float[np.ndarray, "L H W"], column_width: int, reach: Sequence[int] = (0, 1, 2)
) -> dict[int, float]:
    """Returns the fraction of a column's footprint inside its own pixels and those of its neighbors.

    Args:
      maps: footprints of `footprints`.
      column_width: width of a column in pixels.
      reach: numbers of neighbors to either side.

    Returns:
      Fraction in [0, 1] for each number of neighbors, averaged over the columns that have as many on both sides (the
      middle column if there is none).

    Example:
      >>> footprint_fractions(np.array([[[0.75, 0.25]], [[0.25, 0.75]]]), 1, reach=[0])
      {0: 0.75}
    """
    rows = maps.sum(1)  # [L, W]
    count, result = len(rows), {}
    for r in reach:
        centers = range(r, count - r) if count > 2 * r else [count // 2]
        fractions = [rows[k, max(k - r, 0) * column_width : (k + r + 1) * column_width].sum() for k in centers]
        result[r] = float(np.mean(fractions))
    return result
