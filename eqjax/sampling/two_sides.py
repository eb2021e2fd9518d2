"""Panoramas that continue an image to both sides, without end, and may be steered while they grow.

    … left strip 1 │ left strip 0 │ center │ right strip 0 │ right strip 1 …

Each side is a panorama that begins with the image, the left one with the image in the mirror. Its first strip begins
with the image's outermost column, which fades into its reconstruction, so that no edge shows.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any, Unpack

from jaxtyping import Float, UInt8
import numpy as np

from eqjax import pixels
from eqjax.model import Model
from eqjax.rules import Array, Boolean, Instance
from eqjax.sampling.checks import SEED
from eqjax.sampling.class_schedule import parse_classes
from eqjax.sampling.options import SamplingKeywords
from eqjax.sampling.outpainting import fade_at_right, to_floats
from eqjax.sampling.panorama import Panorama, panorama


@dataclasses.dataclass
class Side:
    """Iterator over the strips on one side of an image, uint8 [H, w, 3], as they stand in the whole image.

    Attributes:
      panorama: the panorama, which begins with the image. A state of it (`Panorama.save`) goes on without end too.
      is_mirrored: whether this is the left side, whose panorama grows in the mirror.
    """

    panorama: Panorama
    is_mirrored: bool
    _seam: Float[np.ndarray, "H w 3"] | None
    _hidden: int

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "H w 3"]]:
        return self

    def __next__(self) -> UInt8[np.ndarray, "H w 3"]:
        strip = next(self.panorama)
        while self._hidden >= strip.shape[1]:
            self._hidden -= strip.shape[1]
            strip = next(self.panorama)
        strip, self._hidden = strip[:, self._hidden :], 0
        if self._seam is not None:
            strip = self._fade(strip, self._seam)
            self._seam = None
        return strip[:, ::-1] if self.is_mirrored else strip

    def _fade(self, strip: UInt8[np.ndarray, "H w 3"], seam: Float[np.ndarray, "H v 3"]) -> UInt8[np.ndarray, "H w 3"]:
        """Fades the image's last column into the reconstruction with which the strip begins."""
        width = seam.shape[1]
        faded = fade_at_right(seam, np.asarray(pixels.from_uint8(strip[:, :width])), width)
        return np.concatenate([np.asarray(pixels.to_uint8(faded)), strip[:, width:]], axis=1)

    def steer(self, labels: Any = None, **changes: Any) -> None:
        """Changes how this side goes on; the arguments are those of `Panorama.steer`."""
        self.panorama.steer(labels, **changes)


@dataclasses.dataclass(frozen=True)
class TwoSides:
    """An image that grows to both sides; `two_sides` makes it.

    Attributes:
      center: the image without its first and last column, with which the sides begin.
      left: the strips to its left, from the image outwards.
      right: the strips to its right.
    """

    center: UInt8[np.ndarray, "H w 3"]
    left: Side
    right: Side

    def steer(self, labels: Any = None, **changes: Any) -> None:
        """Changes how both sides go on; the arguments are those of `Panorama.steer`."""
        for side in (self.left, self.right):
            side.steer(labels, **changes)


def two_sides(
    model: Any,
    image: Any,
    labels: Any,
    *,
    resize: Any = False,
    seed: Any = 0,
    transition: Any = 0,
    strip_columns: Any = 16,
    **options: Unpack[SamplingKeywords],
) -> TwoSides:
    """Continues an image to the left and to the right, strip by strip and without end.

    The sides equal the continuations of `eqjax.outpaint` with the same arguments, up to rounding, if the tokenizer has
    a halo and the guidance scale is constant; they are sampled as they are asked for, each on its own.

    Args:
      model: a `Model` with tokenizer and generator.
      image: [H, W, 3], uint8 or floats in [-1, 1], of the model's height and 3 columns wide at least.
      labels: one class, or [(class, columns), …], counted from the image outwards, on both sides alike; None for the
        last number of columns: to the end. The image itself belongs to the first class.
      resize: resizes an image of another size to the model's height, and crops it to whole columns.
      seed: an integer; the left side uses seed + 1.
      transition: columns over which one class blends into the next.
      strip_columns: columns sampled at a time.
      **options: fields of `SamplingOptions`, as in `eqjax.panorama`.

    Returns:
      The image and its two sides.

    Raises:
      ValueError: the image does not fit the model, or is narrower than 3 columns; an argument is out of its range.
      TypeError: an argument is of another type, or unknown.

    Example:
      >>> import eqjax
      >>> model = eqjax.load_pretrained("photos")
      >>> photo = np.zeros((128, 96, 3), np.uint8)
      >>> sides = two_sides(model, photo, "flower", guidance_scale=2.0, num_flow_steps=2)
      >>> sides.center.shape, next(sides.right).shape
      ((128, 64, 3), (128, 176, 3))
      >>> sides.steer(("flower", "rocket"), mix=0.5)
    """
    Instance(Model, "a model, as eqjax.load_pretrained returns it").check("model", model)
    tokenizer, seed = model.require("tokenizer"), SEED.check("seed", seed)
    floats = to_floats(
        np.asarray(Array(("height", "width", 3), "number").check("image", image)),
        tokenizer,
        Boolean().check("resize", resize),
    )
    width = tokenizer.column_width
    known = floats.shape[1] // width
    if known < 3:
        raise ValueError(f"the image has {known} columns of {width} pixels; expected 3 at least, as two fade.")
    names, (first, *rest) = parse_classes(labels if isinstance(labels, list | tuple) else [(labels, None)])
    classes = list(zip(names, (first if first is None else known + first, *rest), strict=True))

    def side(floats: Float[np.ndarray, "H W 3"], seed: int) -> Side:
        strips = panorama(
            model,
            classes,
            seed=seed,
            transition=transition,
            prefix=model.encode(floats[None]),
            strip_columns=strip_columns,
            **options,
        )
        hidden = (known - 1) * width
        return Side(strips, False, floats[:, hidden:], hidden)

    left = dataclasses.replace(side(floats[:, ::-1], seed + 1), is_mirrored=True)
    center = np.asarray(pixels.to_uint8(np.ascontiguousarray(floats[:, width:-width])))
    return TwoSides(center, left, side(floats, seed))
