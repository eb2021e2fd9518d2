"""Shows images and animations in notebooks."""

import base64
from collections.abc import Sequence
import dataclasses
import io
import os

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from eqjax import image_files
from eqjax.typing import AnyArray


def show(image: UInt8[AnyArray, "H W 3"] | Image.Image | str | os.PathLike[str], scale: int = 2) -> Image.Image:
    """Returns an image enlarged for the screen; a notebook displays it if it is a cell's last value.

    Args:
      image: uint8 array, PIL image, or path of an image file.
      scale: factor of both sides.

    Example:
      >>> show(np.zeros((64, 128, 3), np.uint8)).size
      (256, 128)
    """
    if isinstance(image, str | os.PathLike):
        image = Image.fromarray(image_files.read(image))
    elif not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    return image.resize((scale * image.width, scale * image.height), Image.Resampling.BICUBIC)


@dataclasses.dataclass(frozen=True)
class Animation:
    """An animation that a notebook displays if it is a cell's last value.

    Attributes:
      gif: the bytes of a GIF file.
    """

    gif: bytes

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """Returns the contents that Jupyter displays."""
        del include, exclude
        return {"image/gif": base64.b64encode(self.gif).decode("ascii")}


def animate(frames: Sequence[Image.Image], milliseconds: int | Sequence[int] = 80) -> Animation:
    """Makes an endless animation.

    Args:
      frames: images of one size, such as those of `show`.
      milliseconds: time of every frame, or one per frame.

    Raises:
      ValueError: there are no frames.
    """
    if not frames:
        raise ValueError("an animation needs at least one frame.")
    file = io.BytesIO()
    duration = milliseconds if isinstance(milliseconds, int) else list(milliseconds)
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0)
    return Animation(file.getvalue())
