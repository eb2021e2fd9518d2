"""Orbits: how encoder and decoder follow every element of a group, image by image and column by column.

For images x, elements g with actions T on images and T' on columns, an encoder E and a decoder D:

    encoder error       ‖T'E(x) − E(T x)‖ / ‖E(T x)‖
    decoder error       ‖D(T'z) − T D(z)‖ / ‖T D(z) − its mean‖,  z = E(x)
    transformed PSNR    of D(T'E(x)) against T x: what decoding transformed latents is worth
    consensus error     ‖T'⁻¹E(T x) − z̄‖ / ‖z̄‖,  z̄ the mean of T'⁻¹E(T x) over the orbit: needs no reference

All over the columns that T leaves valid. An error alone means nothing: latents that ignore the image follow every
transform perfectly. So PSNR of the plain reconstruction is in every result.

Letters: G elements, B images, N columns, D latent size, H height, W width.

Source: orbit curves and consensus: NERO evaluation, arXiv 2305.19889, sections 3 and 4; relative error: EQ-VAE, arXiv
2502.09509, section 3 (there squared); error of the decoder: AF-LDM, arXiv 2503.09419, section 3.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float
import numpy as np

from eqjax.equivariance.actions import Action, act_columns, act_image, check_fit, describe, inverse, is_identity
from eqjax.equivariance.geometry import Codec, ColumnGeometry
from eqjax.equivariance.groups import Group
from eqjax.evaluation.image_metrics import psnr
from eqjax.rules import Instance, Integer
from eqjax.typing import AnyArray

# Images are encoded in batches of at most so many.
BATCH_SIZE = 32


class EquivarianceError(NamedTuple):
    """Means over the elements of an orbit other than the identity, always with the PSNR of reconstructions.

    Attributes:
      encoder: relative error of the encoder.
      decoder: relative error of the decoder.
      consensus: relative error against the mean of the orbit.
      transformed_psnr: PSNR of decoded transformed latents against transformed images, dB.
      psnr: PSNR of plain reconstructions, dB.
    """

    encoder: float
    decoder: float
    consensus: float
    transformed_psnr: float
    psnr: float


@dataclasses.dataclass(frozen=True)
class Orbit:
    """Errors along an orbit; see the head of this file.

    Attributes:
      actions: the elements.
      encoder_errors: one curve per image.
      decoder_errors: the same of the decoder.
      consensus_errors: the same against the mean of the orbit.
      transformed_psnr: PSNR of decoded transformed latents, dB.
      column_errors: the encoder's error in every column of the result, over all images, divided by the root mean square
        of all valid latents; NaN where nothing is valid, and beyond the columns that a scaling makes.
      psnr: PSNR of the plain reconstructions, dB.
    """

    actions: Sequence[Action]
    encoder_errors: Float[np.ndarray, "G B"]
    decoder_errors: Float[np.ndarray, "G B"]
    consensus_errors: Float[np.ndarray, "G B"]
    transformed_psnr: Float[np.ndarray, "G B"]
    column_errors: Float[np.ndarray, "G N"]
    psnr: Float[np.ndarray, "B"]

    @property
    def labels(self) -> list[str]:
        """The elements in words."""
        return [describe(action) for action in self.actions]

    def summary(self) -> EquivarianceError:
        """Returns the means over images and over the elements other than the identity."""
        moved = [i for i, action in enumerate(self.actions) if not is_identity(action)]
        found = (self.encoder_errors, self.decoder_errors, self.consensus_errors, self.transformed_psnr)
        means = [float(values[moved].mean()) if moved else float("nan") for values in found]
        return EquivarianceError(*means, psnr=float(self.psnr.mean()))


def measure_orbit(codec: Any, images: Any, group: Any, margin: Any = 1) -> Orbit:
    """Measures how encoder and decoder follow every element of a group.

    Args:
      codec: a `Codec`.
      images: [B, H, W, 3] in [-1, 1].
      group: a `Group`, whose grid is the orbit, or a sequence of `Action`.
      margin: columns that are left out next to the image's borders and to invalid columns, in which the encoder sees
        what is outside; with the circular boundary there are none.

    Raises:
      TypeError: an argument is of another type.
      ValueError: the images do not fit the geometry, or an element leaves no column.

    Source: NERO evaluation, arXiv 2305.19889, sections 3 and 4; EQ-VAE, arXiv 2502.09509, section 3.

    Example:
      >>> from eqjax.equivariance import ColumnGeometry, shifts
      >>> codec = Codec(  # The mean color of every column of 4 pixels.
      ...     lambda x: x.reshape(*x.shape[:2], -1, 4, 3).mean((1, 3)),
      ...     lambda z: jnp.repeat(z, 4, axis=1)[:, None].repeat(16, axis=1),
      ...     ColumnGeometry(stride=4),
      ... )
      >>> images = jax.random.uniform(jax.random.key(0), (2, 16, 32, 3), minval=-1)
      >>> measure_orbit(codec, images, shifts(4, step=2)).encoder_errors.mean(1).round(2)
      array([0.  , 0.76, 0.  , 0.76, 0.  ])
    """
    Instance(Codec, "a Codec").check("codec", codec)
    margin = Integer(least=0).check("margin", margin)
    actions = list(group.grid() if isinstance(group, Group) else group)
    if not actions:
        raise ValueError("an orbit needs at least one element; the sequence is empty.")
    geometry, latents = codec.geometry, encode(codec, images)
    images = jnp.asarray(images)
    columns = latents.shape[1]
    checks = [check_element(geometry, action, columns, margin) for action in actions]
    decoded = decode(codec, latents)
    width = max(len(valid) for valid, _ in checks)
    rows, backs, seen = [], [], []
    column_errors = np.full((len(actions), width), np.nan)
    for i, (action, (valid, valid_pixels)) in enumerate(zip(actions, checks, strict=True)):
        moved_images = _image(geometry, action, images)
        moved_latents = _columns(geometry, action, latents)
        found = encode(codec, moved_images)
        encoder, by_column = _latent_errors(moved_latents, found, valid)
        column_errors[i, : len(valid)] = by_column
        remade = decode(codec, moved_latents)
        decoder, transformed = _image_errors(remade, _image(geometry, action, decoded), moved_images, valid_pixels)
        back, seen_back = _back(geometry, action, found, valid)
        rows.append((encoder, decoder, transformed))
        backs.append(back)
        seen.append(seen_back)
    encoder, decoder, transformed = (np.stack(values) for values in zip(*rows, strict=True))
    return Orbit(
        actions,
        encoder,
        decoder,
        _consensus_errors(np.stack(backs), np.stack(seen)),
        transformed,
        column_errors,
        np.asarray(psnr(images, decoded), np.float64),
    )


def encode(codec: Codec, images: Any) -> jax.Array:
    """Returns the latents of images, which are encoded in batches."""
    if getattr(images, "ndim", 0) != 4 or len(images) <= BATCH_SIZE:
        return jnp.asarray(codec.encode(images))
    parts = [codec.encode(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)]
    return jnp.concatenate([jnp.asarray(part) for part in parts])


def decode(codec: Codec, latents: Float[AnyArray, "B N D"]) -> jax.Array:
    """Returns the images of latents, which are decoded in batches."""
    parts = [codec.decode(latents[i : i + BATCH_SIZE]) for i in range(0, len(latents), BATCH_SIZE)]
    return jnp.concatenate([jnp.asarray(part, jnp.float32) for part in parts])


def interior(valid: Bool[np.ndarray, "n"], margin: int, boundary: str) -> Bool[np.ndarray, "n"]:
    """Returns which of the valid places are farther than a margin from invalid ones and from the image's borders.

    Args:
      valid: valid places.
      margin: their least distance to others, in places.
      boundary: "circular": there are no borders.

    Example:
      >>> interior(np.array([False, True, True, True, True]), 1, "crop").tolist()
      [False, False, True, True, False]
    """
    padded = np.pad(valid, margin, mode="wrap") if boundary == "circular" else np.pad(valid, margin)
    return np.all(np.lib.stride_tricks.sliding_window_view(padded, 2 * margin + 1), axis=1)


def check_element(geometry: ColumnGeometry, action: Any, columns: int, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the columns and pixels that count for an element.

    Raises:
      TypeError: it is no element.
      ValueError: it does not fit, or leaves nothing.
    """
    Instance(Action, "an Action, such as make_action returns").check("action", action)
    check_fit(geometry, action, columns)
    _, valid = act_columns(geometry, action, np.zeros((columns, 1), np.float32))
    valid = interior(np.asarray(valid), margin, geometry.boundary)
    if not valid.any():
        raise ValueError(
            f"{describe(action)} leaves none of {columns} columns valid at a margin of {margin}; give wider images, a "
            "smaller margin, or a smaller transform."
        )
    return valid, np.repeat(valid, geometry.stride)


@functools.partial(jax.jit, static_argnums=0)
def _image(geometry: ColumnGeometry, action: Action, images: jax.Array) -> jax.Array:
    return act_image(geometry, action, images)[0]


@functools.partial(jax.jit, static_argnums=0)
def _columns(geometry: ColumnGeometry, action: Action, latents: jax.Array) -> jax.Array:
    return act_columns(geometry, action, latents)[0]


def _back(
    geometry: ColumnGeometry, action: Action, latents: jax.Array, valid: Bool[np.ndarray, "n"]
) -> tuple[np.ndarray, np.ndarray]:
    """Moves latents back, and which of the columns come from valid ones alone."""
    undo = inverse(action)
    back = _columns(geometry, undo, latents)
    _, inside = act_columns(geometry, undo, np.zeros((len(valid), 1), np.float32))
    carried = _columns(geometry, undo, jnp.asarray(valid, jnp.float32)[:, None])[:, 0]
    return np.asarray(back, np.float64), np.asarray(inside) & (np.asarray(carried) > 0.99)


def _latent_errors(
    moved: jax.Array, found: jax.Array, valid: Bool[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "B"], Float[np.ndarray, "n"]]:
    """Returns the relative error of each image, and that of each column over all images."""
    reference = np.asarray(found, np.float64)
    squares = np.square(np.asarray(moved, np.float64) - reference)
    by_image = np.sqrt(squares[:, valid].sum((1, 2)) / _positive(np.square(reference[:, valid]).sum((1, 2))))
    by_column = np.sqrt(squares.mean((0, 2)) / _positive(np.square(reference[:, valid]).mean()))
    return by_image, np.where(valid, by_column, np.nan)


def _image_errors(
    remade: jax.Array, moved_decoded: jax.Array, moved_images: jax.Array, valid: Bool[np.ndarray, "W"]
) -> tuple[Float[np.ndarray, "B"], Float[np.ndarray, "B"]]:
    """Returns the decoder's relative error of each image, and the PSNR of decoded transformed latents."""
    found, expected = (np.asarray(x, np.float64)[:, :, valid] for x in (remade, moved_decoded))
    spread = np.square(expected - expected.mean((1, 2, 3), keepdims=True)).mean((1, 2, 3))
    errors = np.sqrt(np.square(found - expected).mean((1, 2, 3)) / _positive(spread))
    target = np.asarray(moved_images)[:, :, valid]
    return errors, np.asarray(psnr(target, found.astype(np.float32)), np.float64)


def _consensus_errors(back: Float[np.ndarray, "G B N D"], seen: Bool[np.ndarray, "G N"]) -> Float[np.ndarray, "G B"]:
    """Returns the distance of each element's latents, moved back, from the mean of all that see a column."""
    weights = seen[:, None, :, None].astype(np.float64)
    mean = (weights * back).sum(0) / np.maximum(weights.sum(0), 1)
    squares = (weights * np.square(back - mean)).sum((2, 3))
    reference = (weights * np.square(mean)).sum((2, 3))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(squares / np.where(reference > 0, reference, np.nan))


def _positive(values: Any) -> Any:
    return np.maximum(values, 1e-20)
