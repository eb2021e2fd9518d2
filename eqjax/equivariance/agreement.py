"""How well the latents of transformed copies of an image agree: a score of single images, which needs no reference.

    f_i = T_i'⁻¹ E(T_i x)        score = mean over pairs i < j of the cosine of f_i and f_j

It is 1 where the encoder is equivariant, and falls for images that it follows badly. Agreement says nothing about what
latents are worth: those that ignore the image agree perfectly.

Letters: B images, N columns, D latent size, G elements.

Source: Robust perception through equivariance, arXiv 2212.06079 (its equivariance score, there for segmentation).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float
import numpy as np

from eqjax.equivariance.actions import Action, act_columns, act_image, inverse
from eqjax.equivariance.geometry import Codec
from eqjax.equivariance.groups import Group
from eqjax.equivariance.orbits import check_element
from eqjax.rules import Instance, Integer

_SMALLEST = 1e-12


def equivariance_score(codec: Any, images: Any, group: Any, margin: Any = 1) -> Float[jax.Array, "B"]:
    """Returns the mean cosine between the latents of transformed copies of every image, moved back.

    Gradients with respect to the images pass through it.

    Args:
      codec: a `Codec`.
      images: [B, H, W, 3] in [-1, 1].
      group: a `Group`, whose grid is used, or a sequence of two or more `Action`.
      margin: columns that are left out next to the image's borders and to invalid columns.

    Returns:
      Scores in [-1, 1].

    Raises:
      TypeError: an argument is of another type.
      ValueError: the images do not fit the geometry, there are fewer than two elements, an element leaves no column, or
        two elements leave none in common.

    Source: arXiv 2212.06079, its equivariance score.

    Example:
      >>> from eqjax.equivariance import ColumnGeometry, flips
      >>> codec = Codec(  # The mean color of every column of 4 pixels.
      ...     lambda x: x.reshape(*x.shape[:2], -1, 4, 3).mean((1, 3)),
      ...     lambda z: jnp.repeat(z, 4, axis=1)[:, None].repeat(16, axis=1),
      ...     ColumnGeometry(stride=4),
      ... )
      >>> images = jax.random.uniform(jax.random.key(0), (2, 16, 32, 3), minval=-1)
      >>> equivariance_score(codec, images, flips()).round(3)
      Array([1., 1.], dtype=float32)
    """
    Instance(Codec, "a Codec").check("codec", codec)
    margin = Integer(least=0).check("margin", margin)
    actions = list(group.grid() if isinstance(group, Group) else group)
    if len(actions) < 2:
        raise ValueError(f"a score compares two or more elements; got {len(actions)}.")
    codec.geometry.check_images(images)
    columns = np.shape(images)[2] // codec.geometry.stride
    with jax.ensure_compile_time_eval():  # Masks are known while a caller traces the images.
        masks = [check_element(codec.geometry, action, columns, margin)[0] for action in actions]
    views = [_view(codec, images, action, valid) for action, valid in zip(actions, masks, strict=True)]
    cosines = []
    for i, (first, inside) in enumerate(views):
        for second, also in views[i + 1 :]:
            if not (inside & also).any():
                raise ValueError("two elements leave no column in common; give wider images or smaller transforms.")
            cosines.append(_cosine(first, second, inside & also))
    return jnp.mean(jnp.stack(cosines), axis=0)


def _view(
    codec: Codec, images: Any, action: Action, valid: Bool[np.ndarray, "n"]
) -> tuple[Float[jax.Array, "B N D"], Bool[np.ndarray, "N"]]:
    """Returns the latents of moved images, moved back, and which of their columns come from valid ones alone."""
    with jax.ensure_compile_time_eval():
        undo = inverse(action)
    found = jnp.asarray(codec.encode(act_image(codec.geometry, action, images)[0]))
    back, _ = act_columns(codec.geometry, undo, found)
    with jax.ensure_compile_time_eval():
        carried, inside = act_columns(codec.geometry, undo, np.asarray(valid, np.float32)[:, None])
        known = np.asarray(inside) & (np.asarray(carried)[:, 0] > 0.99)
    return back, known


def _cosine(
    first: Float[jax.Array, "B N D"], second: Float[jax.Array, "B N D"], inside: Bool[np.ndarray, "N"]
) -> Float[jax.Array, "B"]:
    a, b = first[:, inside], second[:, inside]
    lengths = jnp.square(a).sum((1, 2)) * jnp.square(b).sum((1, 2))
    return (a * b).sum((1, 2)) * jax.lax.rsqrt(jnp.maximum(lengths, _SMALLEST))
