"""Adaptive polyphase anchoring: the position of the grid of columns follows from the image.

A strided encoder sees another image when its input moves by a fraction of a column. The pixel columns p, p + s,
p + 2s … of an image are its phase p; a circular shift only permutes the phases. So an image that is first moved such
that its strongest phase comes first is the same image after any shift, up to whole columns, and an encoder that
commutes with whole columns becomes equivariant to all shifts.

Letters: B images, H height, W width in pixels, N columns, s stride.

Source: Reviving shift equivariance in vision transformers, arXiv 2306.07470 (adaptive polyphase anchoring).
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped
import numpy as np

from eqjax.equivariance.actions import Action
from eqjax.equivariance.canonicalize import check_images, make_elements
from eqjax.equivariance.geometry import BOUNDARIES, ColumnGeometry
from eqjax.rules import Boolean, Choice, Integer
from eqjax.typing import AnyArray

ENERGIES = ("l2", "gradient")


@dataclasses.dataclass(frozen=True)
class PolyphaseAnchor:
    """Anchors images at their strongest phase: a canonicalizer of circular shifts.

    Exact for circular shifts by any number of pixels. Where new content enters at a border, as in crops of a larger
    scene, another phase may become the strongest: `anchor_consistency` measures how often it stays.

    Attributes:
      stride: pixels per column, s.
      energy: what makes a phase strong: "l2", its squared values, as published; or "gradient", the squared horizontal
        differences at it.
      boundary: "circular": the last pixel's difference is the one to the first; "crop": it has none, as both ends of a
        crop have nothing to do with each other. Shifts of images that wrap around are then no longer exact.
      positions: also moves the strongest column of the phase to the left end. The canonical image is then the same for
        all shifts, so that any encoder whatsoever is exact, also one that does not commute with whole columns; the
        latents are moved back by whole columns.

    Raises:
      TypeError: a field is of another type.
      ValueError: a field is out of range.

    Source: arXiv 2306.07470, its adaptive polyphase anchoring.

    Example:
      >>> image = jnp.zeros((1, 1, 8, 3)).at[0, 0, 2].set(1.0)
      >>> [int(PolyphaseAnchor(stride=4).element(jnp.roll(image, k, 2)).shift[0]) for k in (0, 1, 2)]
      [2, 3, 0]
    """

    stride: Any = 16
    energy: Any = "l2"
    boundary: Any = "circular"
    positions: Any = False

    def __post_init__(self) -> None:
        checked = {
            "stride": Integer(least=1).check("stride", self.stride),
            "energy": Choice(ENERGIES).check("energy", self.energy),
            "boundary": Choice(BOUNDARIES).check("boundary", self.boundary),
            "positions": Boolean().check("positions", self.positions),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def element(self, images: Any) -> Action:
        """Returns the shift of every image, leaves [B]: its strongest phase, 0 … s − 1, or position, 0 … W − 1.

        Args:
          images: [B, H, W, 3] in [-1, 1], W a multiple of the stride.

        Raises:
          TypeError: the images are no array of floats.
          ValueError: there are none, or their width is no multiple of the stride.
        """
        images = check_images(ColumnGeometry(self.stride), images)
        shift = jax.vmap(self._anchor)(jnp.asarray(images, jnp.float32))
        return make_elements(shift, jnp.zeros(len(images), bool))

    def _anchor(self, image: Float[jax.Array, "H W 3"]) -> Int[jax.Array, ""]:
        if self.energy == "gradient":
            image = jnp.roll(image, -1, axis=1) - image
            image = image if self.boundary == "circular" else image.at[:, -1].set(0.0)
        energy = jnp.square(image).sum((0, 2)).reshape(-1, self.stride)  # [N, s]
        phase = jnp.argmax(energy.sum(0))
        if not self.positions:
            return phase
        return phase + self.stride * jnp.argmax(energy[:, phase])


def anchor_consistency(
    anchor: PolyphaseAnchor, images: Shaped[AnyArray, "B H W 3"], width: int, shifts: Sequence[int]
) -> dict[int, float]:
    """Returns how often crops of an image are anchored at the same place of the scene after they move.

    Args:
      anchor: the canonicalizer.
      images: floats, at least `width` + the largest shift wide.
      width: width of the crops, a multiple of the stride.
      shifts: shifts in pixels, each ≥ 0.

    Returns:
      {shift: fraction of images whose crop has its columns on the same pixels as the crop of shift 0}. By chance it is
      1 / stride.

    Raises:
      ValueError: the images are too narrow, or the width does not fit.

    Example:
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 40, 3))
      >>> anchor_consistency(PolyphaseAnchor(stride=4), images, 32, [0])
      {0: 1.0}
    """
    farthest = max(shifts, default=0)
    if images.shape[2] < width + farthest or min(shifts, default=0) < 0:
        raise ValueError(
            f"shifts={list(shifts)} of crops {width} pixels wide need images of {width + farthest} pixels and shifts "
            f"≥ 0; the images are {images.shape[2]} pixels wide."
        )

    def grid(shift: int) -> np.ndarray:
        crops = jnp.asarray(images[:, :, shift : shift + width], jnp.float32)
        return (np.asarray(anchor.element(crops).shift) + shift) % anchor.stride

    return {int(shift): float(np.mean(grid(shift) == grid(0))) for shift in shifts}
