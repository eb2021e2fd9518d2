"""Symmetrization: averages over a group, and the distance of a predicted shift to the group's orbit.

The average of g⁻¹ f(g x) over a group is equivariant to it; over some of its elements it is more so than f. Unlike a
canonicalizer it keeps the images as they are and costs one evaluation per element.

A network may also predict a shift softly, as a kernel p over positions with which the image is convolved. Shifts are
the kernels with a flat spectrum: `orbit_distance_loss` is zero on them alone, and differentiable elsewhere.

Letters: B images, N columns, D latent size, G elements.

Source: symmetrization by orbit distance minimization, arXiv 2311.07143, sections 2 and 3.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from eqjax.equivariance.actions import Action, act_columns, act_image, inverse
from eqjax.equivariance.geometry import Codec, ColumnGeometry
from eqjax.rules import Instance
from eqjax.typing import AnyArray


def symmetrize(codec: Any, elements: Any) -> Codec:
    """Returns the codec averaged over elements of a group: E(x) ← mean of g⁻¹ E(g x), D(z) ← mean of g⁻¹ D(g z).

    Where elements move pixels of unknown content into the image, those results are left out of the mean.

    Args:
      codec: any codec.
      elements: an `Action` with leaves [G] of scale 1, with the identity among them: `shift_flip_group`, or any others.

    Raises:
      TypeError: an argument is of another type.
      ValueError: the elements change the width, or are not stacked.

    Source: arXiv 2311.07143, equation 2, with a uniform distribution.

    Example:
      >>> averages = lambda x: x.reshape(*x.shape[:2], -1, 4, 3).mean((1, 3))  # The mean color of every column.
      >>> flat = lambda z: jnp.repeat(z, 4, axis=1)[:, None].repeat(16, axis=1)
      >>> from eqjax.equivariance import shift_flip_group
      >>> geometry = ColumnGeometry(stride=4, boundary="circular")
      >>> averaged = symmetrize(Codec(averages, flat, geometry), shift_flip_group(32, 8))
      >>> averaged.encode(jnp.zeros((1, 16, 32, 3))).shape
      (1, 8, 3)
    """
    Instance(Codec, "a Codec of eqjax.equivariance").check("codec", codec)
    Instance(Action, "an Action with leaves [G], such as shift_flip_group returns").check("elements", elements)
    if elements.scale != 1 or jnp.ndim(elements.shift) != 1:
        raise ValueError(
            f"elements have scale={elements.scale} and leaves of shape {jnp.shape(elements.shift)}; a mean needs "
            "scale=1 and leaves [G], one entry per element."
        )
    geometry: ColumnGeometry = codec.geometry

    def encode(images: jax.Array) -> jax.Array:
        return _mean(geometry, elements, images, act_image, codec.encode, act_columns)

    def decode(latents: jax.Array) -> jax.Array:
        return _mean(geometry, elements, latents, act_columns, codec.decode, act_image)

    return Codec(encode, decode, geometry)


def _mean(
    geometry: ColumnGeometry,
    elements: Action,
    x: Float[AnyArray, "..."],
    act: Callable[..., Any],
    function: Callable[..., Any],
    act_back: Callable[..., Any],
) -> Float[jax.Array, "..."]:
    """Returns the mean of g⁻¹ f(g x) over elements, one after another in one loop, where it is known."""

    def one(element: Action) -> tuple[jax.Array, jax.Array]:
        result = jnp.asarray(function(act(geometry, element, x)[0]))
        # What enters from outside while moving there is unknown after moving back.
        _, entered = act_back(geometry, element, result)
        weight = jax.lax.broadcast_to_rank(jnp.asarray(entered, result.dtype)[:, None], result.ndim)
        back = inverse(element)
        moved, inside = act_back(geometry, back, result)
        weight, _ = act_back(geometry, back, weight)
        known = jax.lax.broadcast_to_rank(inside[:, None], result.ndim) & (weight > 1 - 1e-3)
        return jnp.where(known, moved, 0), jnp.asarray(known, result.dtype)

    def add(total: tuple[jax.Array, jax.Array], element: Action) -> tuple[tuple[jax.Array, jax.Array], None]:
        value, weight = one(element)
        return (total[0] + value, total[1] + weight), None

    first = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], elements)
    rest = jax.tree.map(lambda leaf: jnp.asarray(leaf)[1:], elements)
    (value, weight), _ = jax.lax.scan(add, one(first), rest)
    return value / jnp.maximum(weight, 1)


def orbit_distance_loss(kernels: Float[AnyArray, "B N"]) -> Float[jax.Array, ""]:
    """Returns how far kernels are from circular shifts: mean of abs(abs(p̂_k)² − 1) over frequencies, plus (Σ p − 1)².

    Args:
      kernels: soft shifts p over N positions, such as a softmax.

    Raises:
      ValueError: there are no kernels.

    Source: arXiv 2311.07143, section 3, with the invariants of circular shifts: the power spectrum of the kernel.

    Example:
      >>> round(float(orbit_distance_loss(jax.nn.one_hot(jnp.array([3]), 8))), 6)
      0.0
    """
    if jnp.ndim(kernels) != 2 or 0 in jnp.shape(kernels):
        raise ValueError(f"kernels have shape {jnp.shape(kernels)}; expected [batch ≥ 1, positions ≥ 1].")
    kernels = jnp.asarray(kernels, jnp.float32)
    spectrum = jnp.fft.rfft(kernels, axis=1)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return jnp.mean(jnp.abs(power - 1)) + jnp.mean(jnp.square(kernels.sum(1) - 1))


def soft_shift(
    columns: Float[AnyArray, "B N D"], kernels: Float[AnyArray, "B N"], back: bool = False
) -> Float[jax.Array, "B N D"]:
    """Returns columns shifted softly: the mean of all circular shifts, weighted by a kernel.

    Args:
      columns: latents, or any other arrays along a width that wraps around.
      kernels: weight of the shift by 0, 1, … N − 1 positions to the right.
      back: shifts to the left instead, the inverse for kernels that are shifts.

    Source: arXiv 2311.07143, section 2.

    Example:
      >>> soft_shift(jnp.arange(4.0)[None, :, None], jax.nn.one_hot(jnp.array([1]), 4)).ravel().tolist()
      [3.0, 0.0, 1.0, 2.0]
    """
    columns, size = jnp.asarray(columns), columns.shape[1]
    distance = jnp.arange(size)[:, None] - jnp.arange(size)[None, :]
    matrix = jnp.asarray(kernels)[:, (-distance if back else distance) % size]  # [B, N, N]
    return jnp.einsum("bnm,bmd->bnd", matrix, columns, precision="highest")
