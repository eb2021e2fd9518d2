"""How columns lie on images, and pairs of functions from images to columns and back.

Letters: B images, H height, W width in pixels, N columns, D latent size.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
from jaxtyping import Float, Shaped

from eqjax.rules import Array, Choice, Function, Instance, Integer
from eqjax.typing import AnyArray

BOUNDARIES = ("crop", "circular")
INTERPOLATIONS = ("linear", "fourier")

_IMAGES = Array(("images", "height", "width", 3))


@dataclasses.dataclass(frozen=True)
class ColumnGeometry:
    """How columns lie on images, and what transforms do at borders and between samples.

    Attributes:
      stride: pixels per column.
      height: image height in pixels; None: any.
      boundary: "crop": images are parts of a larger scene; what enters is unknown, is filled with the mirrored image,
        and is left out by masks. "circular": images close, as 360° panoramas do; everything is known.
      interpolation: "linear", or "fourier": band-limited (trigonometric), which is exact for shifts of signals without
        energy at the Nyquist frequency. With the crop boundary it continues the mirrored image, as a cosine transform
        does.

    Raises:
      TypeError: a field is of another type.
      ValueError: a field is out of range.

    Example:
      >>> ColumnGeometry(stride=16).num_columns(128)
      8
    """

    stride: Any = 16
    height: Any = None
    boundary: Any = "crop"
    interpolation: Any = "linear"

    def __post_init__(self) -> None:
        checked = {
            "stride": Integer(least=1).check("stride", self.stride),
            "height": Integer(least=1, optional=True).check("height", self.height),
            "boundary": Choice(BOUNDARIES).check("boundary", self.boundary),
            "interpolation": Choice(INTERPOLATIONS).check("interpolation", self.interpolation),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def num_columns(self, width: int) -> int:
        """Returns the number of columns of an image.

        Args:
          width: width of the image in pixels.

        Raises:
          ValueError: it is no positive multiple of the stride.
        """
        if width < self.stride or width % self.stride:
            raise ValueError(
                f"images {width} pixels wide do not divide into columns of stride={self.stride} pixels; crop or "
                f"resize them to {max(self.stride, width // self.stride * self.stride)} pixels."
            )
        return width // self.stride

    def check_images(self, images: Any) -> int:
        """Checks images before they are transformed or encoded; returns their number of columns.

        Args:
          images: floats [..., H, W, C].

        Raises:
          TypeError: they are no array of floats, uint8 images for instance.
          ValueError: they are empty, or their size does not fit.
        """
        images = Array(None).check("images", images)
        if len(images.shape) < 3 or 0 in images.shape:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected one or more of [height, width, channels]."
            )
        if self.height is not None and images.shape[-3] != self.height:
            raise ValueError(
                f"images are {images.shape[-3]} pixels high; the geometry has height={self.height}: resize them."
            )
        return self.num_columns(images.shape[-2])


@dataclasses.dataclass(frozen=True)
class Codec:
    """A pair of functions from images to columns and back, with the geometry of the columns.

    Attributes:
      encoder: function from images [B, H, W, 3] in [-1, 1] to latents [B, W / stride, D]; parameters are inside.
      decoder: function from latents to images.
      geometry: how columns lie on the images.

    Raises:
      TypeError: a field is of another type.

    Example:
      >>> import jax.numpy as jnp
      >>> averages = lambda x: x.reshape(*x.shape[:2], -1, 4, 3).mean((1, 3))  # The mean color of every column.
      >>> flat = lambda z: jnp.repeat(z, 4, axis=1)[:, None].repeat(16, axis=1)
      >>> codec = Codec(averages, flat, ColumnGeometry(stride=4))
      >>> codec.decode(codec.encode(jnp.zeros((2, 16, 32, 3)))).shape
      (2, 16, 32, 3)
    """

    encoder: Any
    decoder: Any
    geometry: Any

    def __post_init__(self) -> None:
        Function().check("encoder", self.encoder)
        Function().check("decoder", self.decoder)
        Instance(ColumnGeometry, "a ColumnGeometry").check("geometry", self.geometry)

    def encode(self, images: Any) -> Float[AnyArray, "B N D"]:
        """Returns the latents of images.

        Args:
          images: [B, H, W, 3] in [-1, 1].

        Raises:
          TypeError: the images are no array of floats.
          ValueError: their size does not fit the geometry, or the encoder returns another shape.
        """
        images = _IMAGES.check("images", images)
        columns = self.geometry.check_images(images)
        latents = self.encoder(images)
        shape = _shape(latents, "encoder")
        if len(shape) != 3 or shape[:2] != (images.shape[0], columns):
            hint = ""
            if len(shape) == 3 and shape[0] == images.shape[0] and shape[1] and not images.shape[2] % shape[1]:
                hint = f" An encoder of {shape[1]} columns has stride={images.shape[2] // shape[1]}."
            raise ValueError(
                f"the encoder returned shape {shape} for images of shape {tuple(images.shape)}; columns of "
                f"stride={self.geometry.stride} pixels are [{images.shape[0]}, {columns}, latent size].{hint}"
            )
        return latents

    def decode(self, latents: Any) -> Float[AnyArray, "B H W 3"]:
        """Returns the images of latents.

        Args:
          latents: [B, N, D].

        Raises:
          TypeError: the latents are no array of floats.
          ValueError: they are no [B, N, D], or the decoder returns images of another size.
        """
        latents = Array(("batch", "columns", "channels")).check("latents", latents)
        images = self.decoder(latents)
        shape, width = _shape(images, "decoder"), latents.shape[1] * self.geometry.stride
        height = self.geometry.height
        if (
            len(shape) != 4
            or (shape[0], shape[2], shape[3]) != (latents.shape[0], width, 3)
            or (height is not None and shape[1] != height)
        ):
            raise ValueError(
                f"the decoder returned shape {shape} for {latents.shape[1]} columns of stride={self.geometry.stride}; "
                f"expected images of shape [{latents.shape[0]}, {height or 'height'}, {width}, 3]."
            )
        return images


def _shape(array: Shaped[AnyArray, "..."] | Any, name: str) -> Sequence[int]:
    """Returns the shape of what a function of a codec returned."""
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise ValueError(f"the {name} returned {type(array).__name__}; expected an array.")
    return tuple(jax.numpy.shape(array))
