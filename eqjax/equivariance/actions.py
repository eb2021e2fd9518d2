"""Transforms along the width, as elements of a group that acts on images and on their columns.

Positions are pixels from the center of the image, u = 0 in the middle, so that one element acts on images of every
width: pixel i of W has its center at i + ½ − W/2. An element moves what is at u to

    φ(u) = shift + sign · scale · warp(u)        sign = −1 with a flip, else 1

Columns move by the same φ, in units of the column width. All of these φ are piecewise linear and increasing or
decreasing, so compositions and inverses are of the same form: none is approximated.

Letters: H height, W width in pixels, C channels, N columns, D latent size, K knots, m places.

Source: transforms of latents beside those of images: EQ-VAE, arXiv 2502.09509, section 3; shifts by parts of a column:
AF-LDM, arXiv 2503.09419, section 3; the group of monotone warps: arXiv 2508.14187, section 3.
"""

import dataclasses
from fractions import Fraction
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Shaped
import numpy as np

from eqjax.equivariance.geometry import ColumnGeometry
from eqjax.equivariance.resampling import resampling_matrix
from eqjax.rules import Array, Boolean, Instance, Number
from eqjax.tracing import is_traced
from eqjax.typing import AnyArray

# Largest denominator of a scale that is given as a float.
_MAX_DENOMINATOR = 1024
# Pixels by which an extent may exceed the image through rounding.
_TOLERANCE = 1e-2


@flax.struct.dataclass
class Warp:
    """An increasing, piecewise linear map of positions, of slope 1 outside of its knots.

    Attributes:
      source: increasing positions [K], in pixels from the center.
      target: where each of them moves, increasing.
    """

    source: Float[AnyArray, "K"]
    target: Float[AnyArray, "K"]


@flax.struct.dataclass
class Action:
    """One element of the group: first the warp, then the scale, the flip and the shift.

    Parameters are leaves of a pytree and may be traced; the scale changes shapes, so it is static. Elements of several
    images are one `Action` with leaves [B, …] under `jax.vmap`.

    Attributes:
      shift: pixels to the right, float32.
      flip: whether left and right are exchanged.
      warp: the warp; None: none, which costs nothing.
      scale: width of the result over the width of the image.
    """

    shift: Float[AnyArray, ""]
    flip: Bool[AnyArray, ""]
    warp: Warp | None = None
    scale: Fraction = flax.struct.field(pytree_node=False, default=Fraction(1))


def make_action(shift: Any = 0.0, flip: Any = False, warp: Any = None, scale: Any = 1) -> Action:
    """Returns an element; without arguments the identity.

    Args:
      shift: pixels to the right; fractions and traced values are fine.
      flip: whether left and right are exchanged; may be traced.
      warp: a `Warp`, such as `eqjax.equivariance.warps` draws, or None.
      scale: width of the result over the width of the image, a positive number; floats are taken as the nearest
        fraction of two small integers.

    Raises:
      TypeError: an argument is of another type.
      ValueError: the scale is not positive, or the shift is not finite.

    Example:
      >>> make_action(shift=8).shift, make_action(scale=0.75).scale
      (array(8., dtype=float32), Fraction(3, 4))
    """
    shift = Number(traceable=True).check("shift", shift)
    flip = Boolean(traceable=True).check("flip", flip.item() if _is_scalar(flip) else flip)
    warp = Instance(Warp, "a Warp of eqjax.equivariance", optional=True).check("warp", warp)
    if not isinstance(scale, Fraction):
        scale = Fraction(Number(above=0).check("scale", scale)).limit_denominator(_MAX_DENOMINATOR)
    if scale <= 0:
        raise ValueError(f"scale={scale} must be positive.")
    # On the host: importing or making an element starts no device.
    shift = shift.astype(jnp.float32) if is_traced(shift) else np.asarray(shift, np.float32)
    return Action(shift, flip if is_traced(flip) else np.asarray(flip), warp, scale)


def move(action: Action, positions: Float[AnyArray, "m"]) -> Float[jax.Array, "m"]:
    """Returns where an element moves positions, φ(u), in pixels from the center.

    Example:
      >>> move(make_action(shift=2, flip=True), np.array([1.0, 5.0])).tolist()
      [1.0, -3.0]
    """
    places = jnp.asarray(positions, jnp.float32)
    if action.warp is not None:
        places = _interpolate(places, action.warp.source, action.warp.target)
    return jnp.asarray(action.shift) + _sign(action) * float(action.scale) * places


def move_back(action: Action, positions: Float[AnyArray, "m"]) -> Float[jax.Array, "m"]:
    """Returns which positions an element moves to the given ones, the inverse of `move`."""
    places = _sign(action) * (jnp.asarray(positions, jnp.float32) - action.shift) / float(action.scale)
    if action.warp is not None:
        places = _interpolate(places, action.warp.target, action.warp.source)
    return places


def compose(after: Action, before: Action) -> Action:
    """Returns the element that acts as `before` and then `after`.

    The knots of two warps are merged, so the result has those of both.

    Example:
      >>> quarter, half = make_action(scale=0.25), make_action(shift=8, scale=0.5)
      >>> both = compose(quarter, half)
      >>> float(both.shift), both.scale
      (2.0, Fraction(1, 8))
    """
    shift = after.shift + _sign(after) * float(after.scale) * before.shift
    flip = jnp.logical_xor(after.flip, before.flip)
    both = Action(jnp.asarray(shift, jnp.float32), flip, scale=after.scale * before.scale)
    knots = [] if before.warp is None else [jnp.asarray(before.warp.source)]
    if after.warp is not None:
        knots.append(move_back(before, after.warp.source))
    if not knots:
        return both
    source = jnp.sort(jnp.concatenate(knots))
    return _with_warp(both, source, move(after, move(before, source)))


def inverse(action: Action) -> Action:
    """Returns the element that undoes another.

    Example:
      >>> inverse(make_action(shift=8, scale=0.5))
      Action(shift=Array(-16., dtype=float32), flip=..., warp=None, scale=Fraction(2, 1))
    """
    shift = -_sign(action) * action.shift / float(action.scale)
    result = Action(jnp.asarray(shift, jnp.float32), jnp.asarray(action.flip), scale=1 / action.scale)
    if action.warp is None:
        return result
    source = jnp.sort(move(action, action.warp.source))  # A flip reverses their order.
    return _with_warp(result, source, move_back(action, source))


def act_image(
    geometry: ColumnGeometry, action: Action, images: Shaped[AnyArray, "..."]
) -> tuple[Float[jax.Array, "... H W2 C"], Bool[jax.Array, "W2"]]:
    """Transforms images.

    Args:
      geometry: how columns lie on the images; boundary and interpolation of the resampling.
      action: one element for all images. An element per image: `jax.vmap` over both.
      images: floats [..., H, W, C].

    Returns:
      Images [..., H, scale · W, C] of the same dtype, and which columns of pixels are valid: their whole extent comes
      from inside the image. Where they are not, there is mirrored content. With the circular boundary all are valid.

    Raises:
      TypeError: the images are no array of floats.
      ValueError: width or height does not fit the geometry, the scale makes no whole columns, or the shift leaves
        nothing of the image.

    Source: EQ-VAE, arXiv 2502.09509, section 3; AF-LDM, arXiv 2503.09419, section 3.

    Example:
      >>> image = jnp.array([1.0, 2, 3, 4])[None, :, None]  # [1, 4, 1]
      >>> moved, valid = act_image(ColumnGeometry(stride=2), make_action(shift=1), image)
      >>> moved.ravel().tolist(), valid.tolist()
      ([1.0, 1.0, 2.0, 3.0], [False, True, True, True])
    """
    columns = geometry.check_images(images)
    check_fit(geometry, action, columns)
    return _resample(geometry, action, jnp.asarray(images), _TOLERANCE)


def act_columns(
    geometry: ColumnGeometry, action: Action, latents: Shaped[AnyArray, "..."]
) -> tuple[Float[jax.Array, "... N2 D"], Bool[jax.Array, "N2"]]:
    """Transforms the columns of latents as `act_image` transforms their image; channels stay as they are.

    Args:
      geometry: how columns lie on images; boundary and interpolation of the resampling.
      action: one element for all latents, in pixels.
      latents: floats [..., N, D].

    Returns:
      Latents [..., scale · N, D] of the same dtype, and which columns are valid: exactly those all of whose pixels are
      valid in `act_image`.

    Raises:
      TypeError: the latents are no array of floats.
      ValueError: they are empty, the scale makes no whole columns, or the shift leaves nothing of them.

    Source: EQ-VAE, arXiv 2502.09509, section 3; AF-LDM, arXiv 2503.09419, section 3.

    Example:
      >>> latents = jnp.array([[1.0], [2.0], [4.0]])  # [3, 1]
      >>> moved, valid = act_columns(ColumnGeometry(stride=16), make_action(shift=-8), latents)
      >>> moved.ravel().tolist(), valid.tolist()
      ([1.5, 3.0, 4.0], [True, True, False])
    """
    latents = Array(None).check("latents", latents)
    if len(latents.shape) < 2 or 0 in latents.shape:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; expected one or more of [columns, channels].")
    check_fit(geometry, action, latents.shape[-2])
    action = in_columns(action, geometry.stride)
    return _resample(geometry, action, jnp.asarray(latents), _TOLERANCE / geometry.stride)


def describe(action: Action) -> str:
    """Returns an element in words, for tables and plots.

    Example:
      >>> describe(make_action(shift=8, flip=True, scale=0.5)), describe(make_action())
      ('scale 1/2, flip, shift +8 px', 'identity')
    """
    shift = float(action.shift)
    parts = [
        "" if action.warp is None or not _bends(action.warp) else "warp",
        "" if action.scale == 1 else f"scale {action.scale}",
        "flip" if bool(action.flip) else "",
        "" if not shift else f"shift {shift:+g} px",
    ]
    return ", ".join(filter(None, parts)) or "identity"


def is_identity(action: Action) -> bool:
    """Returns whether an element moves nothing; it must not be traced."""
    return describe(action) == "identity"


def in_columns(action: Action, stride: int) -> Action:
    """Returns an element in units of columns instead of pixels."""
    scaled: Any = jax.tree.map(lambda leaf: leaf if leaf.dtype == bool else leaf / stride, action)
    return scaled


def _resample(
    geometry: ColumnGeometry, action: Action, x: Float[jax.Array, "..."], tolerance: float
) -> tuple[Float[jax.Array, "..."], Bool[jax.Array, "m"]]:
    """Samples the next to last axis at the places that an element moves to each output, both in units of samples."""
    size = x.shape[-2]
    count = int(size * action.scale)
    edges = move_back(action, np.arange(count + 1) - np.float32(count / 2))
    places = move_back(action, np.arange(count) + np.float32(0.5 - count / 2)) + (size / 2 - 0.5)
    matrix = resampling_matrix(places, size, geometry, float(action.scale))
    moved = jnp.einsum("mn,...nc->...mc", matrix, x.astype(jnp.float32), precision="highest").astype(x.dtype)
    if geometry.boundary == "circular":
        return moved, jnp.ones(count, bool)
    inside = jnp.abs(edges) <= size / 2 + tolerance
    return moved, inside[:-1] & inside[1:]


def check_fit(geometry: ColumnGeometry, action: Action, columns: int) -> None:
    """Checks that an element makes whole columns, and leaves some of the image.

    Raises:
      ValueError: it does not.
    """
    made = columns * action.scale
    if made.denominator != 1:
        raise ValueError(
            f"scale={action.scale} makes {float(made):g} columns of {columns}; widths must remain multiples of the "
            f"stride of {geometry.stride} pixels, so give images of a multiple of {action.scale.denominator} columns."
        )
    width = made.numerator * geometry.stride
    if geometry.boundary == "circular" or is_traced(action.shift):
        return
    largest = float(np.max(np.abs(action.shift)))
    if largest >= width:
        raise ValueError(
            f"a shift of {largest:g} pixels leaves nothing of images {width} pixels wide; shift by less, or give wider "
            'images (or boundary="circular" if they close).'
        )


def _with_warp(action: Action, source: Float[jax.Array, "K"], moved: Float[jax.Array, "K"]) -> Action:
    """Returns an element without a warp with the one that makes φ take the given values at `source`."""
    target = _sign(action) * (moved - action.shift) / float(action.scale)
    return dataclasses.replace(action, warp=Warp(source, target))


def _bends(warp: Warp) -> bool:
    """Returns whether a warp moves anything by more than rounding."""
    return not np.allclose(warp.source, warp.target, rtol=1e-5, atol=1e-4)


def _interpolate(
    positions: Float[jax.Array, "m"], source: Float[AnyArray, "K"], target: Float[AnyArray, "K"]
) -> Float[jax.Array, "m"]:
    """Interpolates linearly between knots, with slope 1 outside."""
    source, target = jnp.asarray(source), jnp.asarray(target)
    outside = jnp.minimum(positions - source[0], 0) + jnp.maximum(positions - source[-1], 0)
    return jnp.interp(positions, source, target) + outside


def _sign(action: Action) -> jax.Array:
    return jnp.where(action.flip, -1.0, 1.0)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, np.ndarray | jax.Array) and not is_traced(value) and value.ndim == 0
