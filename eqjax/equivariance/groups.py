"""Families of transforms: random elements with traced parameters, and grids of elements for orbits.

    group = product(shifts(32), flips(), warps(256), scales("1/2", "3/4"))

An element's scale is static, as it changes shapes: `Group.draw_scale` chooses it on the host, from a seed and a step
alone, so that all processes agree. Everything else is drawn under `jax.jit` without another compilation.

Letters: K intervals between the knots of a warp.

Source: monotone warps: arXiv 2508.14187, section 3; scales and flips: EQ-VAE, arXiv 2502.09509, section 3; shifts by
parts of a column: AF-LDM, arXiv 2503.09419, section 3.
"""

from collections.abc import Sequence
import dataclasses
from fractions import Fraction
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from eqjax.equivariance.actions import Action, Warp, make_action
from eqjax.rules import Instance, Integer, Number
from eqjax.typing import PRNGKey

# Seed of the warps of a grid, which are the same in every orbit.
_GRID_SEED = 0


@dataclasses.dataclass(frozen=True)
class WarpFamily:
    """Random warps that fix both ends of the image.

    Attributes:
      width: width of the image in pixels.
      knots: intervals between knots, K.
      strength: standard deviation of the logarithm of the local scale.
    """

    width: int
    knots: int
    strength: float

    def draw(self, key: PRNGKey, strength: Any = None) -> Warp:
        """Returns a random warp; its increments are exp(strength · smoothed noise), normalized."""
        noise = _smoothing(self.knots) @ jax.random.normal(key, (self.knots,), jnp.float32)
        increments = jax.nn.softmax((self.strength if strength is None else strength) * noise)
        source = jnp.linspace(-self.width / 2, self.width / 2, self.knots + 1)
        inner = source[0] + self.width * jnp.cumsum(increments)[:-1]
        return Warp(source, jnp.concatenate([source[:1], inner, source[-1:]]))


@dataclasses.dataclass(frozen=True)
class Group:
    """A family of elements: each part is drawn on its own, and parts that are off stay at the identity.

    It is hashable, so it can be a static argument of jitted functions. Build it with `shifts`, `flips`, `scales`,
    `warps` and `product`.

    Attributes:
      max_shift: largest shift to either side in pixels; 0: none.
      shift_step: shifts are multiples of it; None: any real number.
      flips: whether half of the elements are flipped.
      scales: widths of results over those of images; (1,): none.
      warp: family of warps, or None.
    """

    max_shift: float = 0.0
    shift_step: float | None = None
    flips: bool = False
    scales: tuple[Fraction, ...] = (Fraction(1),)
    warp: WarpFamily | None = None

    def sample(self, key: PRNGKey, scale: Any = None) -> Action:
        """Returns a random element; all of a group and a scale have one structure, so steps share a program.

        Args:
          key: random key; it may be traced.
          scale: one of `scales`, see `draw_scale`; None: the only one.

        Raises:
          ValueError: the scale is not one of the group's, or is missing where there are several.

        Example:
          >>> element = shifts(8, step=1).sample(jax.random.key(0))
          >>> float(element.shift), bool(element.flip)
          (-5.0, False)
        """
        if scale is None:
            if len(self.scales) != 1:
                raise ValueError(
                    f"this group has the scales {_words(self.scales)}; a random one is chosen outside of programs: "
                    "give scale=group.draw_scale(seed, step)."
                )
            scale = next(iter(self.scales))
        if scale not in self.scales:
            raise ValueError(f"scale={scale} is not one of this group's: {_words(self.scales)}.")
        shift_key, flip_key, warp_key = jax.random.split(key, 3)
        shift = jnp.zeros(())
        if self.max_shift and self.shift_step is None:
            shift = jax.random.uniform(shift_key, (), jnp.float32, -self.max_shift, self.max_shift)
        elif self.max_shift and self.shift_step is not None:
            most = int(self.max_shift / self.shift_step)
            shift = self.shift_step * jax.random.randint(shift_key, (), -most, most + 1, jnp.int32).astype(jnp.float32)
        flip = jax.random.bernoulli(flip_key) if self.flips else jnp.zeros((), bool)
        warp = None if self.warp is None else self.warp.draw(warp_key)
        return Action(shift, flip, warp, Fraction(scale))

    def draw_scale(self, seed: Any, step: Any) -> Fraction:
        """Returns one of the scales, by a seed and a step alone: the same in every process.

        Args:
          seed: integer ≥ 0.
          step: integer ≥ 0.

        Example:
          >>> group = scales("1/2", "3/4", 1)
          >>> [str(group.draw_scale(seed=0, step=step)) for step in range(4)]
          ['1', '3/4', '1', '3/4']
        """
        seed, step = Integer(least=0).check("seed", seed), Integer(least=0).check("step", step)
        return self.scales[np.random.default_rng((seed, step)).integers(len(self.scales))]

    def grid(self, count: Any = None) -> list[Action]:
        """Returns the elements of an orbit: all combinations of the parts.

        Args:
          count: number of shifts (evenly spaced, of which the middle one is 0 if the count is odd) and of warps (the
            identity first, then fixed random ones); None: 8 warps, and all shifts of a group with a step, else 17.

        Raises:
          ValueError: the count is below 1.

        Example:
          >>> [float(element.shift) for element in shifts(2, step=1).grid()]
          [-2.0, -1.0, 0.0, 1.0, 2.0]
          >>> len(product(flips(), scales("1/2", 1)).grid())
          4
        """
        count = Integer(least=1, optional=True).check("count", count)
        moves = [0.0] if not self.max_shift else self._shifts(count).tolist()
        mirrored = [False, True] if self.flips else [False]
        bent: list[Warp | None] = [None]
        if self.warp is not None:
            keys = jax.random.split(jax.random.key(_GRID_SEED), count or 8)
            bent = [self.warp.draw(key, None if i else 0.0) for i, key in enumerate(keys)]
        combined = itertools.product(self.scales, bent, mirrored, moves)
        return [make_action(shift, flip, warp, scale) for scale, warp, flip, shift in combined]

    def _shifts(self, count: int | None) -> Float[np.ndarray, "n"]:
        if self.shift_step is None:
            return np.linspace(-self.max_shift, self.max_shift, count or 17)
        most = int(self.max_shift / self.shift_step)
        steps = np.arange(-most, most + 1)
        if count is not None and count < len(steps):
            steps = np.round(np.linspace(-most, most, count))
        return steps * self.shift_step


def identity() -> Group:
    """Returns the group of the identity alone."""
    return Group()


def shifts(max_pixels: Any, step: Any = None) -> Group:
    """Returns the shifts by up to so many pixels to either side.

    Args:
      max_pixels: largest shift.
      step: shifts are multiples of it, such as 1 or the stride; None: any real number.

    Raises:
      TypeError: an argument is no number.
      ValueError: the largest shift is not positive, or below the step.

    Source: AF-LDM, arXiv 2503.09419, section 3.

    Example:
      >>> len(shifts(32, step=16).grid())
      5
    """
    max_pixels = Number(above=0).check("max_pixels", max_pixels)
    return Group(max_shift=max_pixels, shift_step=Number(above=0, most=max_pixels, optional=True).check("step", step))


def flips() -> Group:
    """Returns the group of two: the identity and the exchange of left and right.

    Source: EQ-VAE, arXiv 2502.09509, section 3.
    """
    return Group(flips=True)


def scales(*widths: Any) -> Group:
    """Returns horizontal scalings.

    Args:
      *widths: widths of results over those of images: fractions, texts such as "3/4", or numbers. Images must have a
        multiple of their denominators of columns. 1 is the identity.

    Raises:
      ValueError: there is none, or one is not positive.

    Source: EQ-VAE, arXiv 2502.09509, section 3, of whose scalings columns can follow the horizontal part.

    Example:
      >>> scales("1/4", 0.5, "3/4").scales
      (Fraction(1, 4), Fraction(1, 2), Fraction(3, 4))
    """
    if not widths:
        raise ValueError('scales() needs one or more widths, such as "1/2".')
    found = []
    for width in widths:
        try:
            found.append(make_action(scale=Fraction(width) if isinstance(width, str) else width).scale)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"scale={width!r} must be a positive number or fraction, such as 0.5 or '3/4'.") from None
    return Group(scales=tuple(found))


def warps(width: Any, knots: Any = 8, strength: Any = 0.25) -> Group:
    """Returns smooth monotone warps that fix both ends of an image: local shifts and scalings.

    Args:
      width: width of the images in pixels.
      knots: intervals of equal length between knots.
      strength: standard deviation of the logarithm of the local scale.

    Raises:
      TypeError: an argument is no number.
      ValueError: an argument is out of range.

    Source: arXiv 2508.14187, section 3 (increments by a softmax of smoothed parameters; there of a network's output).

    Example:
      >>> element = warps(256).sample(jax.random.key(0))
      >>> element.warp.source[0] == element.warp.target[0] == -128
      Array(True, dtype=bool)
    """
    width, knots = Integer(least=1).check("width", width), Integer(least=1).check("knots", knots)
    return Group(warp=WarpFamily(width, knots, Number(least=0).check("strength", strength)))


def product(*groups: Any) -> Group:
    """Returns the products of elements: first the warp, then the scale, the flip and the shift.

    Args:
      *groups: groups of different kinds.

    Raises:
      TypeError: an argument is no group.
      ValueError: two groups are of one kind.

    Example:
      >>> product(shifts(8), flips()).sample(jax.random.key(3)).flip.shape
      ()
    """
    fields: dict[str, Any] = {}
    for i, group in enumerate(groups):
        Instance(Group, "a Group, such as shifts(16)").check(f"groups[{i}]", group)
        for field in dataclasses.fields(Group):
            value = getattr(group, field.name)
            if value == field.default:
                continue
            if field.name in fields:
                raise ValueError(
                    f"two groups of the product have {field.name}: {fields[field.name]} and {value}; give one of them."
                )
            fields[field.name] = value
    return Group(**fields)


def _smoothing(size: int) -> Float[np.ndarray, "K K"]:
    """Returns the matrix that smooths independent noise by a Gaussian of one interval and keeps its variance."""
    distance = np.arange(size)[:, None] - np.arange(size)
    weights = np.exp(-0.5 * np.square(distance))
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def _words(values: Sequence[Fraction]) -> str:
    return ", ".join(map(str, values))
