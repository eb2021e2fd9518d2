"""The tokenizer's training step: it updates the tokenizer, then the discriminator on fresh reconstructions.

Source: Equivariant Image Modeling, arXiv 2503.18948, appendix; its published training code.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from eqjax import nets, pixels
from eqjax.tokenizer import ENCODER_PARTS, Tokenizer
from eqjax.training import optim
from eqjax.training.state import TokenizerState, ema_update, stream
from eqjax.training.tokenizer.build import make_objective
from eqjax.training.tokenizer.discriminator import FrozenParams
from eqjax.training.tokenizer.draws import ActiveTerms, Images, RandomDraws, Switch, Terms, only_if
from eqjax.training.tokenizer.objective import Objective, with_samples
from eqjax.training.tokenizer.regularization import StepRegularizer, TransformChoice
from eqjax.typing import Config, Params, PRNGKey, Scalar

Batch: TypeAlias = Mapping[str, Any]

# Metrics of reconstructions; on implicit steps they are of transformed images, and are called so.
_RECONSTRUCTION = ("l1", "lpips", "seam", "spectrum", "psnr", "recon_loss", "nll_loss")


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizerStep:
    """One update of the tokenizer and one of the discriminator; traced.

    Attributes:
      objective: terms and gradients.
      optimizer: the tokenizer's optimizer.
      discriminator_optimizer: the discriminator's optimizer.
      schedule: the tokenizer's learning rate by the number of steps done.
      ema_decay: decay of the EMA weights by the number of the step, counted from 1.
      semantic_start: steps done before the semantic term is on.
      adversarial_start: steps done before the adversarial term is on.
      frozen_parts: top-level parameters of the tokenizer that are not trained.
      num_microbatches: microbatches for gradient accumulation.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    discriminator_optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    ema_decay: Callable[..., Scalar]
    semantic_start: int = 0
    adversarial_start: int = 0
    frozen_parts: tuple[str, ...] = ()
    num_microbatches: int = 1

    @classmethod
    def from_config(
        cls, config: Config, tokenizer: Tokenizer, load_network: Callable[..., tuple[Any, Params]] = nets.load
    ) -> tuple["TokenizerStep", dict[str, Params]]:
        """Returns the step of a configuration, and the arrays that it reads by name; see `make_objective`.

        Args:
          config: a resolved `tokenizer_config`.
          tokenizer: the module.
          load_network: `nets.load`, or a function in its place.

        Raises:
          ValueError: the kind of discriminator, loss or optimizer is unknown, there is a semantic term without a
            semantic head, or a regularizer does not fit the run.
          FileNotFoundError: the file of a frozen network or of stereo pairs is missing.
        """
        objective, frozen = make_objective(config, tokenizer, load_network)
        optimizer, schedule = optim.make_optimizer(config.optimizer, config.total_steps, optim.muon_dimension_numbers)
        discriminator_optimizer, _ = optim.make_optimizer(config.discriminator_optimizer, config.total_steps)
        step = cls(
            objective=objective,
            optimizer=optimizer,
            discriminator_optimizer=discriminator_optimizer,
            schedule=schedule,
            ema_decay=functools.partial(optim.ema_decay, config.optimizer),
            semantic_start=config.objective.semantic_start,
            adversarial_start=config.objective.adversarial_start,
            frozen_parts=ENCODER_PARTS if config.freeze_encoder else (),
            num_microbatches=config.accumulation_steps,
        )
        return step, frozen

    def init_state(self, key: PRNGKey, height: int, width: int) -> TokenizerState:
        """Returns the state before the first step, with random parameters.

        Args:
          key: random key of the parameters.
          height: height of the images, pixels.
          width: width of the images, pixels.

        Raises:
          ValueError: the images are too small for the discriminator.
        """
        params = self.objective.tokenizer.init_params(key)
        discriminator = None
        if self.objective.discriminator is not None:
            discriminator = self.objective.discriminator.init(stream(key, "discriminator"), height, width)
            discriminator["opt_state"] = self.discriminator_optimizer.init(discriminator["params"])
        opt_state = self.optimizer.init(self.split(params)[0])
        regularization = self.objective.regularization
        carried = None if regularization is None else regularization.init_state()
        return TokenizerState(jnp.zeros((), jnp.int32), params, params, opt_state, discriminator, carried)

    def split(self, params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the parameters that are trained, and those that are not."""
        trainable = {name: part for name, part in params.items() if name not in self.frozen_parts}
        fixed = {name: part for name, part in params.items() if name in self.frozen_parts}
        return trainable, fixed

    def __call__(
        self, frozen: FrozenParams, state: TokenizerState, batch: Batch, key: PRNGKey
    ) -> tuple[TokenizerState, Terms]:
        """Updates the tokenizer, then the discriminator.

        Args:
          frozen: parameters of the frozen networks.
          state: state before the step.
          batch: "image", uint8 [B, H, W, 3], and on a step with a transform "transform", a `TransformChoice`.
          key: the step's random key.

        Returns:
          The state after the step, and the metrics that `objective` lists, with "learning_rate".
        """
        images = pixels.from_uint8(batch["image"])
        regularizer = self.regularizer(state, batch.get("transform"), key)
        grads, metrics, spectral = self.tokenizer_grads(frozen, state, images, key, regularizer)
        trained, opt_state = self.update_tokenizer(state, grads)
        metrics["grad_norm"] = optax.tree.norm(grads)
        params, discriminator = {**state.params, **trained}, None
        if state.discriminator is not None:
            discriminator, discriminator_metrics = self.update_discriminator(
                frozen, state, params, spectral, images, key, regularizer
            )
            metrics |= discriminator_metrics
        carried, more = state.regularization, {}
        if self.objective.regularization is not None:
            carried, more = self.objective.regularization.update_state(carried, regularizer, metrics)
        trained_ema = {name: state.ema_params[name] for name in trained}
        trained_ema = ema_update(trained_ema, trained, self.ema_decay(state.step + 1))
        metrics["learning_rate"] = self.schedule(state.step)
        ema_params = {**state.ema_params, **trained_ema}
        if regularizer is not None and regularizer.implicit:
            metrics = {f"transformed_{k}" if k in _RECONSTRUCTION else k: v for k, v in metrics.items()}
        state = TokenizerState(state.step + 1, params, ema_params, opt_state, discriminator, carried)
        return state, {**metrics, **more}

    def regularizer(
        self, state: TokenizerState, choice: TransformChoice | None, key: PRNGKey
    ) -> StepRegularizer | None:
        """Returns what the step adds for equivariance, drawn once for both updates; None for a plain step.

        Args:
          state: state before the step.
          choice: the host's choice; None: no transform.
          key: the step's random key.
        """
        if self.objective.regularization is None:
            return None
        return self.objective.regularization.for_step(choice, state.regularization, state.step, key)

    def tokenizer_grads(
        self,
        frozen: FrozenParams,
        state: TokenizerState,
        images: Images,
        key: PRNGKey,
        regularizer: StepRegularizer | None = None,
    ) -> tuple[Params, Terms, Any]:
        """Computes the gradients of the trained parameters.

        Args:
          frozen: parameters of the frozen networks.
          state: state before the step.
          images: images in [-1, 1].
          key: the step's random key.
          regularizer: what the step adds for equivariance.

        Returns:
          Gradients, metrics, spectral vectors.
        """
        trainable, fixed = self.split(state.params)
        discriminator = state.discriminator
        active = ActiveTerms(
            semantic=_reached(state.step, self.semantic_start), adversarial=_reached(state.step, self.adversarial_start)
        )

        def compute(spectral: Any, images: Images, key: PRNGKey) -> tuple[Any, Any]:
            variables = discriminator and {"params": discriminator["params"], "spectral": spectral}
            draws = RandomDraws.from_key(key, self.objective.tokenizer, images.shape, frozen.get("sampled"))
            grads, terms, spectral = self.objective.tokenizer_grads(
                trainable, fixed, variables, frozen, images, draws, active, regularizer
            )
            return (grads, terms), spectral

        (grads, terms), spectral = optim.accumulate_gradients(
            compute,
            images,
            stream(key, "tokenizer"),
            self.num_microbatches,
            discriminator and discriminator["spectral"],
        )
        return grads, terms, spectral

    def update_tokenizer(self, state: TokenizerState, grads: Params) -> tuple[Any, Any]:
        """Returns the trained parameters and the optimizer's state after an update with `grads`."""
        trainable, _ = self.split(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state

    def update_discriminator(
        self,
        frozen: FrozenParams,
        state: TokenizerState,
        params: Params,
        spectral: Any,
        images: Images,
        key: PRNGKey,
        regularizer: StepRegularizer | None = None,
    ) -> tuple[dict[str, Any], Terms]:
        """Updates the discriminator on reconstructions, and decoded samples, by the updated tokenizer.

        Args:
          frozen: parameters of the frozen networks.
          state: state before the step, with a discriminator.
          params: the tokenizer's parameters after its update.
          spectral: spectral vectors after the tokenizer's update.
          images: images in [-1, 1].
          key: the step's random key.
          regularizer: what the step adds for equivariance; its transform is that of the tokenizer's update.

        Returns:
          The discriminator's state after the step, and metrics.
        """
        assert state.discriminator is not None
        old = state.discriminator

        def compute(spectral: Any, images: Images, key: PRNGKey) -> tuple[Any, Any]:
            draws = RandomDraws.from_key(key, self.objective.tokenizer, images.shape, frozen.get("sampled"))
            made = self.objective.reconstruct(params, images, draws.posterior_noise, regularizer)
            fakes = with_samples(made.images, self.objective.decode_samples(params, draws))
            variables = {"params": old["params"], "spectral": spectral}
            grads, terms, spectral = self.objective.discriminator_grads(variables, frozen, made.targets, fakes, draws)
            return (grads, terms), spectral

        def accumulate() -> tuple[Any, Any]:
            return optim.accumulate_gradients(
                compute, images, stream(key, "discriminator"), self.num_microbatches, spectral
            )

        (grads, terms), spectral = only_if(_reached(state.step, self.adversarial_start), accumulate, spectral)
        # Gradients of zero, before the start, still count as updates of Adam, as in the reference.
        updates, opt_state = self.discriminator_optimizer.update(grads, old["opt_state"], old["params"])
        new_params = optax.apply_updates(old["params"], updates)
        terms["disc_grad_norm"] = optax.tree.norm(grads)
        return {"params": new_params, "spectral": spectral, "opt_state": opt_state}, terms


def _reached(step: jax.Array, start: int) -> Switch:
    """Returns whether `start` steps are done: True if that is always so.

    A branch that is always taken costs nothing on an accelerator, but the CPU compiler's convolutions are slow in
    branches: a step of the demo's stage 2 took ten times as long.
    """
    return True if start <= 0 else step >= start
