"""Footprints: which pixels a column controls, and which pixels it depends on; and how footprints follow transforms.

A *footprint* is a column's influence map. The decoder's: how much every pixel changes when this column's latent is
replaced. The encoder's: how much this column's latent depends on every pixel.

Letters: B and N images, L columns, H height, W width.

Source: scores of explanations under transforms: arXiv 2304.06715, sections 2 and 3; the map of the encoder is the
squared gradient of a representation's norm, as in its feature importance.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from eqjax.equivariance.actions import Action, act_columns, act_image, check_fit, is_identity
from eqjax.equivariance.geometry import Codec, ColumnGeometry
from eqjax.equivariance.groups import Group
from eqjax.equivariance.orbits import decode, encode, interior
from eqjax.rules import Choice, Instance
from eqjax.typing import AnyArray

KINDS = ("equivariance", "invariance")


def decoder_footprints(codec: Any, images: Any) -> Float[np.ndarray, "L H W"]:
    """Returns the footprint of every column in the decoded image, averaged over images.

    Each column in turn is replaced by that of the next image, and the decoded images are compared.

    Args:
      codec: a `Codec`.
      images: at least two images [N, H, W, 3] in [-1, 1].

    Returns:
      Mean squared change of every pixel, divided by the sum over all pixels.

    Raises:
      TypeError: an argument is of another type.
      ValueError: there is only one image, or the images do not fit.
    """
    Instance(Codec, "a Codec").check("codec", codec)
    if len(images) < 2:
        raise ValueError("footprints of a decoder exchange columns between images: give at least 2.")
    latents = encode(codec, images)
    before, maps = decode(codec, latents), []
    for k in range(latents.shape[1]):
        changed = latents.at[:, k].set(jnp.roll(latents[:, k], 1, axis=0))
        difference = np.asarray(decode(codec, changed) - before, np.float64)
        change = np.square(difference).mean((0, 3))
        maps.append(change / change.sum())
    return np.stack(maps)


def encoder_footprints(codec: Any, images: Any) -> Float[np.ndarray, "B L H W"]:
    """Returns the footprint of every column in every encoded image.

    Args:
      codec: a `Codec` whose encoder JAX can differentiate.
      images: [B, H, W, 3] in [-1, 1].

    Returns:
      (∂‖z_k‖² / ∂ pixel)², summed over colors and divided by the sum over all pixels.

    Raises:
      TypeError: an argument is of another type.
      ValueError: the images do not fit, or JAX cannot differentiate the encoder.

    Source: arXiv 2304.06715, section 2 (feature importance of representations, by gradients).
    """
    Instance(Codec, "a Codec").check("codec", codec)
    codec.encode(images)  # Its errors come before those of JAX.
    images = jnp.asarray(images)

    def norms(x: jax.Array) -> jax.Array:
        return jnp.square(codec.encode(x)).sum((0, 2))  # Images do not depend on each other.

    try:
        _, pull = jax.vjp(norms, images)
    except jax.errors.TracerArrayConversionError:
        raise ValueError(
            "JAX cannot differentiate the encoder, which turns images into NumPy arrays (or another framework's): "
            "measure decoder_footprints, which needs no gradients."
        ) from None
    columns = images.shape[2] // codec.geometry.stride
    maps = []
    for k in range(columns):
        (gradient,) = pull(jnp.zeros(columns).at[k].set(1.0))
        maps.append(np.square(np.asarray(gradient, np.float64)).sum(-1))
    found = np.stack(maps, axis=1)
    total = found.sum((2, 3), keepdims=True)
    return found / np.where(total > 0, total, np.nan)


def footprint_fractions(
    maps: Float[np.ndarray, "L H W"], column_width: int, reach: Sequence[int] = (0, 1, 2)
) -> dict[int, float]:
    """Returns the fraction of a column's footprint inside its own pixels and those of its neighbors.

    Args:
      maps: footprints.
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


def footprint_score(
    footprints: Callable[[Any], Float[AnyArray, "B L H W"]],
    geometry: Any,
    images: Any,
    group: Any,
    *,
    kind: Any = "equivariance",
    margin: int = 1,
) -> float:
    """Returns the mean cosine between footprints before and after transforms.

    Args:
      footprints: function from images to a footprint per image and column, such as
        `lambda x: encoder_footprints(codec, x)`.
      geometry: a `ColumnGeometry`.
      images: [B, H, W, 3] in [-1, 1].
      group: a `Group`, whose grid is taken, or a sequence of `Action`; the identity does not count.
      kind: "equivariance" compares the transformed footprints with those of the transformed image (columns and pixels
        move); "invariance" compares the footprints themselves, column by column.
      margin: columns that are left out next to borders and invalid columns; footprints that leave the image do not
        count either.

    Raises:
      TypeError: an argument is of another type.
      ValueError: the kind is unknown, an element does not fit, or there is none but the identity.

    Source: arXiv 2304.06715, definitions of explanation equivariance and invariance in section 2.

    Example:
      >>> from eqjax.equivariance import shifts
      >>> def own_pixels(images):  # Every column sees its own four pixels.
      ...     return np.repeat(np.eye(8), 4, axis=1)[None, :, None] * np.ones((len(images), 1, 16, 1))
      >>> images, geometry = np.zeros((2, 16, 32, 3), np.float32), ColumnGeometry(stride=4)
      >>> footprint_score(own_pixels, geometry, images, shifts(8, step=4))
      1.0
      >>> footprint_score(own_pixels, geometry, images, shifts(8, step=4), kind="invariance")
      1.0
    """
    Instance(ColumnGeometry, "a ColumnGeometry").check("geometry", geometry)
    kind = Choice(KINDS).check("kind", kind)
    columns = geometry.check_images(images)
    actions = list(group.grid() if isinstance(group, Group) else group)
    before, cosines = np.asarray(footprints(images), np.float32), []
    for action in actions:
        Instance(Action, "an Action, such as make_action returns").check("action", action)
        check_fit(geometry, action, columns)
        if is_identity(action):
            continue
        if kind == "invariance" and action.scale != 1:
            raise ValueError(f"scale={action.scale} changes the columns, so footprints cannot be invariant to it.")
        moved, known = act_image(geometry, action, jnp.asarray(images))
        after = np.asarray(footprints(moved), np.float64) * np.asarray(known)
        valid = np.asarray(act_columns(geometry, action, np.zeros((columns, 1), np.float32))[1])
        valid = interior(valid, margin, geometry.boundary)
        expected = before if kind == "invariance" else _move_footprints(geometry, action, before)
        cosines.append(_cosines(np.asarray(expected, np.float64) * np.asarray(known), after)[:, valid])
    found = [np.nanmean(values) for values in cosines if np.isfinite(values).any()]
    if not found:
        raise ValueError("no element but the identity leaves a column valid; give a group that moves something.")
    return float(np.mean(found))


def _move_footprints(
    geometry: ColumnGeometry, action: Action, maps: Float[np.ndarray, "B L H W"]
) -> Float[np.ndarray, "B L2 H W2"]:
    """Moves both the columns to which footprints belong and the pixels in which they lie."""
    batch, columns, height, width = maps.shape
    moved = act_columns(geometry, action, maps.reshape(batch, columns, height * width))[0]
    pixels = moved.reshape(batch, -1, height, width)[..., None]  # One channel.
    return np.asarray(act_image(geometry, action, pixels)[0][..., 0])


def _cosines(first: Float[np.ndarray, "B L H W"], second: Float[np.ndarray, "B L H W"]) -> Float[np.ndarray, "B L"]:
    """Returns the cosine between footprints; NaN where one has left the image."""
    products = (first * second).sum((2, 3))
    lengths = np.sqrt(np.square(first).sum((2, 3)) * np.square(second).sum((2, 3)))
    return products / np.where(lengths > 0, lengths, np.nan)
