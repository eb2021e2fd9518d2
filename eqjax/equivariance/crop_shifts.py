"""Shift errors with real content: crops of wider images, so that what enters at the border is the scene itself.

Letters: N images, S shifts, L columns.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from eqjax.equivariance.actions import act_columns, make_action
from eqjax.equivariance.geometry import Codec
from eqjax.equivariance.orbits import decode, encode
from eqjax.evaluation.image_metrics import psnr
from eqjax.rules import Array, Instance, Integer


@dataclasses.dataclass(frozen=True)
class ShiftErrors:
    """Distances between the latents of shifted crops and shifted latents.

    Attributes:
      shifts: shifts in pixels.
      errors: root mean square error over images and channels, divided by the root mean square of all latents; NaN if
        a column's counterpart is outside the crop.
      unrelated: the same error between different images, as an encoder without any equivariance would give.
      psnr: PSNR of the reconstructions of the same images, dB.
    """

    shifts: Int[np.ndarray, "S"]
    errors: Float[np.ndarray, "S L"]
    unrelated: float
    psnr: float


def crop_shift_errors(codec: Any, images: Any, shifts: Sequence[int] | Int[np.ndarray, "S"], width: Any) -> ShiftErrors:
    """Compares latents of shifted crops with shifted latents.

    The crop of shift s is cut s pixels further right from wider images, so real content enters at its border. Its
    column k is compared with column k + s / stride of the crop of shift 0. If s is not a multiple of the stride, the
    columns between are interpolated as the geometry says, which even a perfectly equivariant tokenizer need not obey.

    Args:
      codec: a `Codec`.
      images: at least two images [N, H, W, 3] in [-1, 1], at least `width` + the largest shift wide.
      shifts: shifts in pixels, each ≥ 0.
      width: width of the crops in pixels.

    Raises:
      TypeError: an argument is of another type.
      ValueError: the images are too narrow, or there is only one.

    Example:
      >>> from eqjax.equivariance import model_codec
      >>> codec = model_codec(eqjax.load_pretrained("photos"))  # doctest: +SKIP
      >>> crop_shift_errors(codec, images, [16], width=128).errors.mean()  # doctest: +SKIP
      0.026
    """
    Instance(Codec, "a Codec").check("codec", codec)
    images = Array(("images", "height", "width", 3)).check("images", images)
    width, shifts = Integer(least=1).check("width", width), np.asarray(shifts)
    if not shifts.size:
        raise ValueError("shifts is empty; give one or more shifts in pixels.")
    if images.shape[2] < width + shifts.max() or shifts.min() < 0 or len(images) < 2:
        raise ValueError(
            f"shifts of {shifts.min()} … {shifts.max()} pixels of crops {width} wide need at least 2 images of "
            f"{width + shifts.max()} pixels; these are {images.shape[0]} of {images.shape[2]}."
        )
    latents = encode(codec, images[:, :, :width])
    scale = jnp.sqrt(jnp.square(latents).mean())
    errors = []
    for shift in shifts.tolist():
        expected, valid = act_columns(codec.geometry, make_action(shift=-shift), latents)
        found = encode(codec, images[:, :, shift : shift + width])
        difference = np.asarray(found - expected, np.float64)
        errors.append(np.where(valid, np.sqrt(np.square(difference).mean((0, 2))) / float(scale), np.nan))
    unrelated = jnp.sqrt(jnp.square(latents - jnp.roll(latents, 1, axis=0)).mean()) / scale
    decibels = psnr(jnp.asarray(images[:, :, :width]), decode(codec, latents))
    return ShiftErrors(shifts, np.stack(errors), float(unrelated), float(np.mean(decibels)))
