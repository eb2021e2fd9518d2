"""Equivariance in a tokenizer's training: the transform of a step, what it adds to the objective, and its state.

The host chooses what shapes a step's program, which is its scale and whether the step is implicit, from a seed and the
number of the step, so that all processes agree. There are as many programs as scales, and the plain one; everything
else is drawn inside of them. One transform serves both updates of a step and all its microbatches.

Letters: B batch, H and W pixels, L columns, D latent channels, G kinds of transforms.

Source: `eqjax.equivariance.regularizers`, `data_symmetries`, `column_retrieval`.
"""

from collections.abc import Callable, Mapping
import dataclasses
from fractions import Fraction
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from eqjax import pixels
from eqjax.equivariance import (
    Action,
    CollapseGuard,
    ColumnGeometry,
    Group,
    act_columns,
    act_image,
    decoder_error,
    encoder_error,
    latent_spread,
    stereo_retrieval_loss,
)
from eqjax.training.state import stream
from eqjax.training.tokenizer.draws import Images
from eqjax.typing import AnyArray, PRNGKey

# The terms of `Regularization.losses`, which are computed before those of the objective.
REGULARIZER_TERMS = ("encoder_error", "decoder_error", "stereo_loss")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TransformChoice:
    """The part of a step's transform that shapes its program; a pytree without leaves, so it travels in the batch.

    Attributes:
      scale: width of transformed images over that of images.
      implicit: whether transformed latents are decoded and compared with transformed images, in place of the images.
    """

    scale: Fraction
    implicit: bool


@flax.struct.dataclass
class RegularizerState:
    """What the regularizers carry from step to step.

    Attributes:
      guard: the guard of the explicit errors, or None without them.
      soft: weights of the kinds of transforms, or None if they have none.
    """

    guard: CollapseGuard | None
    soft: Float[AnyArray, "G"] | None


@flax.struct.dataclass
class StepRegularizer:
    """What one step adds to the objective; the same for both of its updates.

    Attributes:
      action: the transform, or None on a step without.
      kind: index of its kind among the transforms, with soft weights.
      weight: weight of its kind, with soft weights.
      explicit_weight: weight of the explicit errors, or None without them.
      stereo_weight: weight of the stereo term, or None without it.
      stereo_key: key that draws stereo windows.
      implicit: whether the transformed pair takes the place of images and reconstructions.
    """

    action: Action | None
    kind: Int[AnyArray, ""] | None
    weight: Float[AnyArray, ""] | None
    explicit_weight: Float[AnyArray, ""] | None
    stereo_weight: Float[AnyArray, ""] | None
    stereo_key: PRNGKey | None
    implicit: bool = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Regularization:
    """The regularizers of a run; `make_regularization` builds it from a configuration.

    Attributes:
      geometry: how columns lie on images.
      group: the product of the kinds of transforms.
      kinds: their names.
      seed: seed of the host's choices.
      implicit_probability: fraction of implicit steps.
      explicit_weight: weight of the explicit errors.
      start: steps done before anything is on.
      soft_power: power of the overlap that weighs a kind; None: all kinds are drawn together and have no weights.
      collapse_threshold: fraction of the latents' first spread below which the explicit errors go off.
      stereo_weight: weight of the stereo term.
      stereo_windows: windows per pass.
      stereo_temperature: see `column_smooth_ap`.
    """

    geometry: ColumnGeometry
    group: Group
    kinds: tuple[str, ...]
    seed: int = 0
    implicit_probability: float = 0.0
    explicit_weight: float = 0.0
    start: int = 0
    soft_power: float | None = None
    collapse_threshold: float = 0.5
    stereo_weight: float = 0.0
    stereo_windows: int = 8
    stereo_temperature: float = 0.01

    # ── The transform of a step ─────────────────────────────────────────────────────────────────

    def choose(self, step: int) -> TransformChoice | None:
        """Returns what shapes the program of a step, or None for a step without a transform.

        Args:
          step: number of steps done before it.
        """
        random = np.random.default_rng((self.seed, step, 1))
        implicit = bool(random.random() < self.implicit_probability)
        if step < self.start or not (implicit or self.explicit_weight):
            return None
        if self.soft_power is None:
            return TransformChoice(self.group.draw_scale(self.seed, step), implicit)
        # One kind per step, so that its weight is the step's; the identity is none of them.
        scales = tuple(scale for scale in self.group.scales if scale != 1)
        if self.kinds[random.integers(len(self.kinds))] != "scale":
            return TransformChoice(Fraction(1), implicit)
        return TransformChoice(scales[random.integers(len(scales))], implicit)

    def alone(self, kind: str) -> Group:
        """Returns the group of one kind of transforms."""
        group = self.group
        return {
            "scale": Group(scales=group.scales),
            "flip": Group(flips=group.flips),
            "shift": Group(max_shift=group.max_shift, shift_step=group.shift_step),
            "warp": Group(warp=group.warp),
        }[kind]

    def _draw(self, choice: TransformChoice, key: PRNGKey) -> tuple[Action, jax.Array | None]:
        """Returns the transform, and with soft weights the index of its kind."""
        if self.soft_power is None:
            return self.group.sample(key, choice.scale), None
        if choice.scale != 1:
            return self.alone("scale").sample(key, choice.scale), jnp.asarray(self.kinds.index("scale"), jnp.int32)
        others = [i for i, kind in enumerate(self.kinds) if kind != "scale"]
        kind_key, key = jax.random.split(key)
        kind = jnp.asarray(others)[jax.random.randint(kind_key, (), 0, len(others), jnp.int32)]
        element = dataclasses.replace(self.group, scales=(Fraction(1),)).sample(key)

        def is_kind(name: str) -> jax.Array:
            return kind == (self.kinds.index(name) if name in self.kinds else -1)

        warp = element.warp
        if warp is not None:
            warp = dataclasses.replace(warp, target=jnp.where(is_kind("warp"), warp.target, warp.source))
        return Action(jnp.where(is_kind("shift"), element.shift, 0.0), is_kind("flip"), warp), kind

    def for_step(
        self, choice: TransformChoice | None, state: RegularizerState | None, step: jax.Array, key: PRNGKey
    ) -> StepRegularizer | None:
        """Returns what a step adds, or None for a plain step.

        Args:
          choice: the host's choice.
          state: state before the step.
          step: steps done before it.
          key: the step's random key.
        """
        action = kind = weight = explicit_weight = stereo_weight = None
        if choice is not None:
            action, kind = self._draw(choice, stream(key, "transform"))
            if state is not None and state.soft is not None:
                weight = jnp.asarray(state.soft)[kind]
            if state is not None and state.guard is not None:
                explicit_weight = self.explicit_weight * state.guard.weight * (1.0 if weight is None else weight)
        if self.stereo_weight:
            stereo_weight = jnp.where(step >= self.start, self.stereo_weight, 0.0)
        if action is None and stereo_weight is None:
            return None
        implicit = choice is not None and choice.implicit
        stereo_key = stream(key, "stereo")
        return StepRegularizer(action, kind, weight, explicit_weight, stereo_weight, stereo_key, implicit)

    # ── State ───────────────────────────────────────────────────────────────────────────────────

    def init_state(self) -> RegularizerState | None:
        """Returns the state before the first step; None if nothing is carried."""
        guard = CollapseGuard.init() if self.explicit_weight else None
        soft = None if self.soft_power is None else jnp.ones(len(self.kinds))
        return None if guard is None and soft is None else RegularizerState(guard, soft)

    def update_state(
        self,
        state: RegularizerState | None,
        regularizer: StepRegularizer | None,
        terms: Mapping[str, Any],
    ) -> tuple[RegularizerState | None, dict[str, Any]]:
        """Returns the state after a step, and its metrics.

        Args:
          state: state before the step.
          regularizer: what the step added.
          terms: metrics of the tokenizer's gradients.
        """
        if state is None or regularizer is None or regularizer.action is None:
            return state, {}
        guard, soft, metrics = state.guard, state.soft, {}
        if guard is not None:
            guard = guard.update(terms["latent_spread"], self.collapse_threshold)
            metrics["collapsed"] = jnp.asarray(guard.fired, jnp.float32)
        if soft is not None:
            metrics |= {f"soft_{kind}": soft[i] for i, kind in enumerate(self.kinds)}
        return RegularizerState(guard, soft), metrics

    # ── Terms ───────────────────────────────────────────────────────────────────────────────────

    def losses(
        self,
        regularizer: StepRegularizer,
        encode: Callable[[Any], Any],
        decode: Callable[[Any], Any],
        images: Images,
        reconstruction: Any,
        frozen: Mapping[str, Any],
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Computes the terms of a step that are not of the reconstruction.

        Args:
          regularizer: what the step adds.
          encode: function from images to the posterior's means.
          decode: function from latents to images.
          images: images in [-1, 1].
          reconstruction: a `Reconstruction` of the images.
          frozen: with the stereo term, "stereo" is a `StereoWindows`.

        Returns:
          The terms that are minimized, and readings that are not, by their names in the metrics.
        """
        losses, readings, action = {}, {}, regularizer.action
        is_explicit = regularizer.explicit_weight is not None
        if action is not None and is_explicit:
            means = jax.lax.stop_gradient(reconstruction.means)
            found = encode(act_image(self.geometry, action, images)[0])
            error = encoder_error(self.geometry, action, found, means)
            readings["equivariance_error"] = jnp.sqrt(jax.lax.stop_gradient(error))
            readings["latent_spread"] = latent_spread(means)
            losses["encoder_error"] = error
        if action is not None and is_explicit and not regularizer.implicit:
            # An implicit step asks the decoder for the same, against the image itself.
            moved, _ = act_columns(self.geometry, action, jax.lax.stop_gradient(reconstruction.latents))
            target = jax.lax.stop_gradient(reconstruction.images)
            losses["decoder_error"] = decoder_error(self.geometry, action, decode(moved), target)
        if regularizer.stereo_weight is not None:
            losses["stereo_loss"] = self._stereo_loss(regularizer, encode, frozen["stereo"])
        return losses, readings

    def _stereo_loss(self, regularizer: StepRegularizer, encode: Callable[[Any], Any], windows: Any) -> jax.Array:
        assert regularizer.stereo_key is not None
        rows = jax.random.randint(regularizer.stereo_key, (self.stereo_windows,), 0, windows.left.shape[0], jnp.int32)
        views = jnp.concatenate([windows.left[rows], windows.right[rows]])
        left, right = jnp.split(encode(pixels.from_uint8(views)), 2)
        height = windows.left.shape[1]
        places, temperature = windows.places[rows], self.stereo_temperature
        return stereo_retrieval_loss(left, right, places, self.geometry.stride, height, temperature)

    def weights(self, regularizer: StepRegularizer, losses: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Returns the weight of each term of `losses`, beside the mean absolute error per value."""
        weights = {"stereo_loss": regularizer.stereo_weight}
        return {name: jnp.asarray(weights.get(name, regularizer.explicit_weight)) for name in losses}
