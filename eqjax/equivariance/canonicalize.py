"""Canonicalizers: exact equivariance for any codec, without training it.

A canonicalizer finds an element h(x) of a group for every image such that h(T x) = T h(x). The codec then sees the
canonical image h(x)⁻¹ x alone, which is the same for x and T x, and its results are moved back:

    encode: z = E(h(x)⁻¹ x), kept with h(x)        decode: h(x) D(z)

Whole columns and flips act on columns exactly, so this part of h(x) moves the latents; the code is a pair of columns
and an element: what an image shows, and how it is placed. `CanonicalCodec` does this for any `Codec`.

Shifts are circular here, whatever the boundary of the geometry: nothing is lost, and decoding undoes them.

Letters: B images, H height, W width in pixels, N columns, D latent size.

Source: Equivariance with learned canonicalization functions, arXiv 2211.06489, section 3.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from eqjax.equivariance.actions import Action, act_image, inverse
from eqjax.equivariance.geometry import Codec, ColumnGeometry
from eqjax.rules import Array, Choice, Function, Instance
from eqjax.typing import AnyArray

FLIP_SCORES = ("gradient", "position")

_IMAGES = Array(("images", "height", "width", 3))


@runtime_checkable
class Canonicalizer(Protocol):
    """Finds a group element for every image. Any object with this method is one."""

    def element(self, images: Any) -> Action:
        """Returns the element h(x) of every image, an `Action` with leaves [B], such that h(T x) = T h(x).

        Args:
          images: [B, H, W, 3] in [-1, 1].
        """
        ...


_A_CANONICALIZER = Instance(Canonicalizer, "a canonicalizer: an object with a method element(images)")


@flax.struct.dataclass
class Code:
    """An image as columns and a group element: what it shows, and how it is placed.

    Attributes:
      latents: columns; they move with the image by whole columns and with flips.
      element: the element that the canonicalizer found, leaves [B]: the side information that decoding needs.
    """

    latents: Float[AnyArray, "B N D"]
    element: Action


@dataclasses.dataclass(frozen=True)
class CanonicalCodec:
    """A codec that sees canonical images alone, and is therefore exactly equivariant.

    Attributes:
      codec: any codec.
      canonicalizer: finds the element of an image.

    Raises:
      TypeError: a field is of another type.

    Source: arXiv 2211.06489, section 3.

    Example:
      >>> averages = lambda x: x.reshape(*x.shape[:2], -1, 4, 3).mean((1, 3))  # The mean color of every column.
      >>> flat = lambda z: jnp.repeat(z, 4, axis=1)[:, None].repeat(16, axis=1)
      >>> canonical = CanonicalCodec(Codec(averages, flat, ColumnGeometry(stride=4)), FlipCanonicalizer())
      >>> images = jax.random.uniform(jax.random.key(0), (1, 16, 32, 3))
      >>> code, mirrored = canonical.encode(images), canonical.encode(images[:, :, ::-1])
      >>> bool((code.latents == mirrored.latents[:, ::-1]).all())
      True
      >>> canonical.decode(code).shape
      (1, 16, 32, 3)
    """

    codec: Any
    canonicalizer: Any

    def __post_init__(self) -> None:
        Instance(Codec, "a Codec of eqjax.equivariance").check("codec", self.codec)
        _A_CANONICALIZER.check("canonicalizer", self.canonicalizer)

    def encode(self, images: Any) -> Code:
        """Returns the columns of images and their elements.

        Args:
          images: [B, H, W, 3] in [-1, 1].

        Raises:
          TypeError: the images are no array of floats.
          ValueError: there are none, or their size does not fit the geometry or the encoder.
        """
        geometry = self.codec.geometry
        images = check_images(geometry, images)
        element = self.canonicalizer.element(images)
        latents = jnp.asarray(self.codec.encode(place(geometry, inverses(element), images)))
        part = _column_part(geometry, element)
        return Code(permute(latents, part.shift, part.flip), element)

    def decode(self, code: Code) -> Float[AnyArray, "B H W 3"]:
        """Returns the images of columns and elements.

        Raises:
          ValueError: latents or decoder do not fit the geometry.
        """
        geometry = self.codec.geometry
        part = inverses(_column_part(geometry, code.element))
        latents = permute(jnp.asarray(code.latents), part.shift, part.flip)
        return place(geometry, code.element, self.codec.decode(latents))

    def equivariant_codec(self) -> Codec:
        """Returns the codec whose encoder returns the columns alone; the decoder is unchanged.

        Its encoder is equivariant to flips and shifts by whole columns, and to other shifts up to the element's.
        """
        return Codec(lambda images: self.encode(images).latents, self.codec.decoder, self.codec.geometry)


def check_images(geometry: ColumnGeometry, images: Any) -> Any:
    """Returns images after a check.

    Raises:
      TypeError: they are no array of floats.
      ValueError: there are none, or their size does not fit the geometry.
    """
    images = _IMAGES.check("images", images)
    geometry.check_images(images)
    return images


def inverses(element: Action) -> Action:
    """Returns the inverse of every element; leaves [B]."""
    return jax.vmap(inverse)(element)


def make_elements(shift: Int[AnyArray, "B"], flip: Bool[AnyArray, "B"]) -> Action:
    """Returns elements of shifts by whole pixels and flips, leaves [B]."""
    return Action(jnp.asarray(shift, jnp.float32), jnp.asarray(flip, bool))


def place(geometry: ColumnGeometry, element: Action, images: Float[AnyArray, "B H W C"]) -> Float[jax.Array, "B H W C"]:
    """Moves every image by its element: exactly where these are shifts by whole pixels, circular, and flips.

    Args:
      geometry: how columns lie on images, for warps.
      element: leaves [B], with shifts by whole pixels and of scale 1.
      images: the images.

    Raises:
      ValueError: the elements change the width.
    """
    if element.scale != 1:
        raise ValueError(f"scale={element.scale} changes the width of images; a canonicalizer's elements have scale=1.")
    if element.warp is None:
        return permute(jnp.asarray(images), element.shift, element.flip)
    return jax.vmap(lambda a, x: act_image(geometry, a, x)[0])(element, jnp.asarray(images))


def permute(
    x: Float[jax.Array, "B *H n C"], shift: Float[AnyArray, "B"], flip: Bool[AnyArray, "B"]
) -> Float[jax.Array, "B *H n C"]:
    """Flips and then shifts each array of a batch along its width, circularly: no arithmetic touches the values.

    Args:
      x: images or columns.
      shift: whole positions to the right.
      flip: whether left and right are exchanged first.
    """
    size = x.shape[-2]

    def one(a: jax.Array, by: jax.Array, flipped: jax.Array) -> jax.Array:
        places = jnp.arange(size) - by
        return jnp.take(a, jnp.where(flipped, size - 1 - places, places) % size, axis=-2)

    return jax.vmap(one)(x, jnp.round(jnp.asarray(shift)).astype(jnp.int32), jnp.asarray(flip))


def _column_part(geometry: ColumnGeometry, element: Action) -> Action:
    """Returns the part of elements that acts on columns exactly, in columns: whole ones and flips; none of a warp."""
    if element.warp is not None:
        return make_elements(jnp.zeros_like(element.shift, jnp.int32), jnp.zeros_like(element.flip))
    return Action(jnp.floor_divide(jnp.asarray(element.shift), float(geometry.stride)), jnp.asarray(element.flip))


@dataclasses.dataclass(frozen=True)
class FlipCanonicalizer:
    """Flips images whose score is negative: codecs become exactly equivariant to horizontal flips.

    The score of an image is c(x) − c(flip x), which changes its sign with the image, whatever c is. Where it is zero,
    as on images that are their own mirror image, either choice is right and the canonical image jumps.

    Attributes:
      score: "gradient": c is the mean of the positive horizontal differences of brightness, cubed, which shifts do not
        change; "position": the mean brightness weighted by the position from left to right; or any function from
        images [B, H, W, 3] to [B].

    Raises:
      TypeError: the score is neither a name nor a function.
      ValueError: the name is unknown.

    Source: arXiv 2211.06489, section 3, for a group of two elements.

    Example:
      >>> ramp = jnp.linspace(-1.0, 1.0, 8)[None, None, :, None] * jnp.ones((1, 4, 1, 3))
      >>> canonicalizer = FlipCanonicalizer("position")
      >>> canonicalizer.element(ramp).flip, canonicalizer.element(ramp[:, :, ::-1]).flip
      (Array([False], dtype=bool), Array([ True], dtype=bool))
    """

    score: Any = "gradient"

    def __post_init__(self) -> None:
        if isinstance(self.score, str):
            Choice(FLIP_SCORES).check("score", self.score)
        else:
            Function().check("score", self.score)

    def element(self, images: Any) -> Action:
        """Returns the flip of every image, leaves [B].

        Args:
          images: [B, H, W, 3] in [-1, 1].

        Raises:
          TypeError: the images are no array of floats.
          ValueError: there are none.
        """
        images = jnp.asarray(_IMAGES.check("images", images))
        return make_elements(jnp.zeros(len(images), jnp.int32), self.scores(images) < 0)

    def scores(self, images: Float[jax.Array, "B H W 3"]) -> Float[jax.Array, "B"]:
        """Returns the antisymmetric scores of images; those with a negative one are flipped."""
        functions = {"gradient": _steepness, "position": _position}
        score: Any = functions[self.score] if isinstance(self.score, str) else self.score
        return score(images) - score(images[:, :, ::-1])


def _steepness(images: Float[jax.Array, "B H W 3"]) -> Float[jax.Array, "B"]:
    """Returns a large number where brightness rises steeply and falls slowly from left to right."""
    brightness = images.mean(-1)
    rise = jnp.roll(brightness, -1, axis=2) - brightness
    return jnp.mean(jnp.maximum(rise, 0) ** 3, axis=(1, 2))


def _position(images: Float[jax.Array, "B H W 3"]) -> Float[jax.Array, "B"]:
    width = images.shape[2]
    return jnp.mean(images.mean((1, 3)) * (jnp.arange(width, dtype=jnp.float32) / width)[None], axis=1)


@dataclasses.dataclass(frozen=True)
class Chain:
    """Two canonicalizers, one after another: the second sees what the first has made canonical.

    The first must not depend on what the second removes: `Chain(FlipCanonicalizer(), PolyphaseAnchor())` makes a codec
    equivariant to flips and to all circular shifts, as the score "gradient" does not see shifts.

    Attributes:
      first: a canonicalizer of shifts and flips.
      second: another.

    Raises:
      TypeError: a field is no canonicalizer.

    Example:
      >>> from eqjax.equivariance import PolyphaseAnchor
      >>> both = Chain(FlipCanonicalizer(), PolyphaseAnchor(stride=4))
      >>> both.element(jax.random.uniform(jax.random.key(0), (2, 8, 16, 3))).shift.shape
      (2,)
    """

    first: Any
    second: Any

    def __post_init__(self) -> None:
        _A_CANONICALIZER.check("first", self.first)
        _A_CANONICALIZER.check("second", self.second)

    def element(self, images: Any) -> Action:
        """Returns the products of both elements, leaves [B].

        Args:
          images: [B, H, W, 3] in [-1, 1].
        """
        first = self.first.element(images)
        back = inverses(first)
        second = self.second.element(permute(jnp.asarray(images), back.shift, back.flip))
        sign = jnp.where(first.flip, -1.0, 1.0)
        return Action(first.shift + sign * second.shift, jnp.logical_xor(first.flip, second.flip))
