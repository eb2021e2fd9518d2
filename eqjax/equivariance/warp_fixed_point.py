"""A canonicalizer of monotone warps: content is spread evenly over the width.

A density of the image says how much happens where. The warp that makes it uniform is canonical: a warped image has a
warped density, so both have the same canonical image. As images are sampled, it is found by iteration: warp, measure
the density that is left, correct the warp, until nothing changes.

Letters: B images, H height, W width in pixels, K intervals between knots.

Source: local scale equivariance by a fixed point, arXiv 2508.14187, section 4 (there with a learned network for the
correction and Anderson acceleration); the family of warps is that of `eqjax.equivariance.warps`.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from eqjax.equivariance.actions import Action, Warp
from eqjax.equivariance.canonicalize import check_images, inverses, place
from eqjax.equivariance.geometry import ColumnGeometry
from eqjax.rules import Function, Instance, Integer, Number
from eqjax.typing import AnyArray

# Part of the density that is uniform in any case, so that warps of images with nothing in them are mild.
_FLOOR = 0.25


class _State(NamedTuple):
    source: Float[jax.Array, "B K1"]
    change: Float[jax.Array, ""]
    step: Int[jax.Array, ""]


def variation(images: Float[AnyArray, "B H W C"]) -> Float[jax.Array, "B W"]:
    """Returns the horizontal variation of images, the mean absolute difference of every pixel column to its neighbors.

    It is a density: a warp that stretches an image makes it smaller in proportion.

    Example:
      >>> variation(jnp.array([0.0, 0.0, 1.0, 1.0])[None, None, :, None])
      Array([[0. , 0.5, 0.5, 0. ]], dtype=float32)
    """
    steps = jnp.abs(jnp.diff(jnp.asarray(images, jnp.float32), axis=2)).mean((1, 3))
    return (jnp.pad(steps, ((0, 0), (1, 0))) + jnp.pad(steps, ((0, 0), (0, 1)))) / 2


@dataclasses.dataclass(frozen=True)
class WarpCanonicalizer:
    """Warps images so that a density is uniform over their width; end points stay.

    Images are resampled, so equivariance is approximate, as good as the interpolation.

    Attributes:
      geometry: how columns lie on images.
      intervals: pieces of the piecewise linear warp, K.
      density: function from images [B, H, W, 3] to densities [B, W], not negative; the default is `variation`.
      iterations: largest number of corrections.
      tolerance: change of the knots at which it stops, pixels.

    Raises:
      TypeError: a field is of another type.
      ValueError: a field is out of range.

    Source: arXiv 2508.14187, section 4.

    Example:
      >>> canonicalizer = WarpCanonicalizer(ColumnGeometry(stride=4), intervals=4)
      >>> images = jnp.sin(jnp.linspace(0.0, 3.0, 32) ** 3)[None, None, :, None] * jnp.ones((1, 2, 1, 3))
      >>> knots = canonicalizer.element(images).warp.target  # Slow on the left: wide there.
      >>> bool(knots[0, 1] - knots[0, 0] > knots[0, 4] - knots[0, 3])
      True
    """

    geometry: Any
    intervals: Any = 8
    density: Any = variation
    iterations: Any = 10
    tolerance: Any = 1e-3

    def __post_init__(self) -> None:
        Instance(ColumnGeometry, "a ColumnGeometry").check("geometry", self.geometry)
        Integer(least=2).check("intervals", self.intervals)
        Function().check("density", self.density)
        Integer(least=1).check("iterations", self.iterations)
        Number(above=0).check("tolerance", self.tolerance)

    def element(self, images: Any) -> Action:
        """Returns the warp of every image, leaves [B]: from even places to where they are in the image.

        Args:
          images: [B, H, W, 3] in [-1, 1].

        Raises:
          TypeError: the images are no array of floats.
          ValueError: there are none, or their size does not fit the geometry.
        """
        images = jnp.asarray(check_images(self.geometry, images))
        half, count = images.shape[2] / 2, len(images)
        even = jnp.broadcast_to(jnp.linspace(-half, half, self.intervals + 1)[None], (count, self.intervals + 1))

        def correct(state: _State) -> _State:
            canonical = place(self.geometry, self._action(state.source, even), images)
            quantiles = jax.vmap(_quantiles, (0, None))(self._density(canonical), even[0])
            # Where these are in the image itself: back through the warp so far.
            source = jax.vmap(jnp.interp)(quantiles, even, state.source)
            change = jnp.max(jnp.abs(source - state.source))
            return _State(source, change, state.step + 1)

        def unfinished(state: _State) -> jax.Array:
            return (state.change > self.tolerance) & (state.step < self.iterations)

        start = _State(even, jnp.asarray(jnp.inf, jnp.float32), jnp.zeros((), jnp.int32))
        found = jax.lax.while_loop(unfinished, correct, start)
        return inverses(self._action(found.source, even))

    def _density(self, images: Float[jax.Array, "B H W 3"]) -> Float[jax.Array, "B W"]:
        density: Callable[..., Any] = self.density
        values = density(images)
        return values + _FLOOR * values.mean(1, keepdims=True) + 1e-6

    def _action(self, source: Float[jax.Array, "B K1"], target: Float[jax.Array, "B K1"]) -> Action:
        count = source.shape[0]
        return Action(jnp.zeros(count), jnp.zeros(count, bool), Warp(source, target))


def _quantiles(density: Float[jax.Array, "W"], even: Float[jax.Array, "K1"]) -> Float[jax.Array, "K1"]:
    """Returns the positions that divide a density into equal parts, in pixels from the center."""
    total = jnp.concatenate([jnp.zeros(1), jnp.cumsum(density)])
    edges = jnp.arange(density.shape[0] + 1, dtype=jnp.float32) - density.shape[0] / 2
    parts = jnp.linspace(0.0, 1.0, even.shape[0]) * total[-1]
    return jnp.interp(parts, total, edges).at[0].set(even[0]).at[-1].set(even[-1])
