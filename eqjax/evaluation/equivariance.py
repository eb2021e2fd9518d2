"""What a tokenizer does when the image moves, and which pixels a column governs.

An error under shifts says nothing alone: latents that ignore the image do not move at all. `shift_errors`
therefore returns the PSNR of the reconstructions with it.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from eqjax import pixels
from eqjax.tokenizer.tiling import decode_images, encode_images


@dataclasses.dataclass(frozen=True)
class ShiftErrors:
    """How far latents are from where a shift of the image should have put them.

    Attributes:
      shifts: pixels, [S].
      errors: [S, L]; root mean square over images and channels, over that of all latents; NaN where a
        column's partner lies outside the image.
      unrelated: the same error between different images: what an encoder without any equivariance gives.
      psnr: of the reconstructions of the same images, dB.
    """

    shifts: np.ndarray
    errors: np.ndarray
    unrelated: float
    psnr: float


def shift_errors(model, images, shifts, width):
    """Compares latents of shifted crops with shifted latents.

    Crop s is cut s pixels further right out of wider images, so that real content enters at its border.
    Its column k is compared with column k + s / column width of the crop at 0; between columns (s no
    multiple of the column width) with the straight line between the two neighbors, which even a perfectly
    equivariant tokenizer need not follow.

    Args:
      model: an `eqjax.Model` with a tokenizer.
      images: uint8 [N ≥ 2, H, ≥ width + largest shift, 3].
      shifts: pixels, each ≥ 0.
      width: of the crops, pixels.

    Returns:
      `ShiftErrors`.

    Raises:
      ValueError: images that are too narrow, or only one of them.
    """
    shifts = np.asarray(shifts)
    if images.shape[2] < width + shifts.max() or shifts.min() < 0 or len(images) < 2:
        raise ValueError(
            f"shifts of {shifts.min()} … {shifts.max()} pixels of crops {width} wide need at least 2 images of "
            f"{width + shifts.max()} pixels; these are {images.shape[0]} of {images.shape[2]}."
        )

    def latents(shift):
        return np.asarray(model.encode(images[:, :, shift : shift + width]), np.float64)

    still = latents(0)  # [N, L, D]
    scale = np.sqrt(np.square(still).mean())
    count, errors = still.shape[1], []
    for shift in shifts:
        place = np.arange(count) + shift / model.tokenizer.column_width
        inside = place <= count - 1
        low = np.floor(place[inside]).astype(int)
        share = (place[inside] - low)[:, None]
        expected = (1 - share) * still[:, low] + share * still[:, np.minimum(low + 1, count - 1)]
        row = np.full(count, np.nan)
        row[inside] = np.sqrt(np.square(latents(shift)[:, inside] - expected).mean((0, 2))) / scale
        errors.append(row)
    unrelated = np.sqrt(np.square(still - np.roll(still, 1, axis=0)).mean()) / scale
    crops = images[:, :, :width]
    psnr = pixels.psnr(pixels.from_uint8(crops), pixels.from_uint8(model.decode(model.encode(crops))))
    return ShiftErrors(shifts, np.stack(errors), float(unrelated), float(np.mean(psnr)))


def footprints(model, images):
    """Which pixels every column's latent governs.

    Each column in turn is replaced by that of the next image, and the decoded images are compared.

    Args:
      model: an `eqjax.Model` with a tokenizer.
      images: uint8 [N ≥ 2, H, W, 3].

    Returns:
      float64 [L, H, W]: mean square change of the pixel, over its sum over all pixels.

    Raises:
      ValueError: only one image.
    """
    if len(images) < 2:
        raise ValueError("footprints exchange columns between images: give at least 2.")
    tokenizer, params = model.tokenizer, model.tokenizer_params
    latents = encode_images(tokenizer, params, pixels.from_uint8(images))
    before = decode_images(tokenizer, params, latents)
    maps = []
    for k in range(latents.shape[1]):
        changed = latents.at[:, k].set(jnp.roll(latents[:, k], 1, axis=0))
        difference = np.asarray(decode_images(tokenizer, params, changed) - before, np.float64)
        change = np.square(difference).mean((0, 3))
        maps.append(change / change.sum())
    return np.stack(maps)


def footprint_shares(maps, column_width, reach=(0, 1, 2)):
    """Share of a column's effect inside its own pixels and those of its neighbors.

    Args:
      maps: [L, H, W] of `footprints`.
      column_width: pixels.
      reach: columns to either side.

    Returns:
      {reach: share in [0, 1]}, averaged over columns that have such neighbors on both sides (the middle
      one where none has).
    """
    rows = maps.sum(1)  # [L, W]
    count, result = len(rows), {}
    for r in reach:
        centers = range(r, count - r) if count > 2 * r else [count // 2]
        shares = [rows[k, max(k - r, 0) * column_width : (k + r + 1) * column_width].sum() for k in centers]
        result[r] = float(np.mean(shares))
    return result
