"""The generator's training step: encode, loss, gradients, optimizer, EMA weights."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float
import optax

from eqjax.generator import Generator, mean_loss
from eqjax.training import optim
from eqjax.training.state import TrainState, dropout_key, ema_update, stream
from eqjax.typing import Config, Params, PRNGKey, Scalar

Batch: TypeAlias = Mapping[str, Any]
# (encoder's parameters, batch, key) → (scaled latents [B, L, D], labels [B]).
Encode: TypeAlias = Callable[[Params, Batch, PRNGKey], tuple[Any, Any]]

# Random streams of the generator in training; evaluation uses the first two.
RNG_STREAMS = ("flow", "rope", "label", "dropout", "context")


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratorStep:
    """One update of the generator; traced.

    Attributes:
      generator: the module.
      encode: (encoder's parameters, batch, key) → (scaled latents [B, L, D], labels [B]).
      optimizer: the optimizer.
      schedule: learning rate by the number of steps done.
      ema_decay: decay of the EMA weights by the number of the step, counted from 1.
      loss_columns: indices of the columns whose loss is trained; None: all.
      num_microbatches: microbatches for gradient accumulation.
      dropout_rng: generator of dropout's random bits, see `dropout_key`.
    """

    generator: Generator
    encode: Encode
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    ema_decay: Callable[..., Scalar]
    loss_columns: tuple[int, ...] | None = None
    num_microbatches: int = 1
    dropout_rng: str = "threefry2x32"

    @classmethod
    def from_config(cls, config: Config, generator: Generator, encode: Encode) -> "GeneratorStep":
        """Returns the step of a configuration.

        Args:
          config: a resolved `generator_config`.
          generator: the module.
          encode: (encoder's parameters, batch, key) → (scaled latents [B, L, D], labels [B]).

        Raises:
          ValueError: the optimizer or the schedule is unknown.
        """
        optimizer, schedule = optim.make_optimizer(config.optimizer, config.total_steps)
        return cls(
            generator=generator,
            encode=encode,
            optimizer=optimizer,
            schedule=schedule,
            ema_decay=functools.partial(optim.ema_decay, config.optimizer),
            loss_columns=config.loss_columns,
            num_microbatches=config.accumulation_steps,
            dropout_rng=config.dropout_rng,
        )

    def without_remat(self) -> "GeneratorStep":
        """Returns the same step without rematerialization, whose FLOPs are those of the model itself."""
        return dataclasses.replace(self, generator=self.generator.clone(remat="none"))

    def init_state(self, key: PRNGKey) -> TrainState:
        """Returns the state before the first step, with random parameters."""
        params = self.generator.init_params(key)
        return TrainState(jnp.zeros((), jnp.int32), params, params, self.optimizer.init(params))

    def __call__(
        self, encoder_params: Params, state: TrainState, batch: Batch, key: PRNGKey
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Updates the generator.

        Args:
          encoder_params: parameters of the frozen encoder; an empty dict for cached latents.
          state: state before the step.
          batch: "label" and either "image" or "latents".
          key: the step's random key.

        Returns:
          The state after the step, and its metrics: "loss", "grad_norm", "learning_rate" and "column_loss" [L].
        """
        loss_and_grads = jax.value_and_grad(self.loss, has_aux=True)

        def compute(carry: None, batch: Batch, key: PRNGKey) -> tuple[Any, None]:
            return loss_and_grads(state.params, encoder_params, batch, key), carry

        ((loss, column_losses), grads), _ = optim.accumulate_gradients(compute, batch, key, self.num_microbatches)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        ema_params = ema_update(state.ema_params, params, self.ema_decay(state.step + 1))
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": self.schedule(state.step),
            "column_loss": column_losses,
        }
        return TrainState(state.step + 1, params, ema_params, opt_state), metrics

    def rngs(self, key: PRNGKey) -> dict[str, PRNGKey]:
        """Returns the keys of the random streams of a step, by name."""
        rngs = {name: stream(key, name) for name in RNG_STREAMS}
        return {**rngs, "dropout": dropout_key(rngs["dropout"], self.dropout_rng)}

    def loss(
        self, params: Params, encoder_params: Params, batch: Batch, key: PRNGKey
    ) -> tuple[Float[jax.Array, ""], Float[jax.Array, " L"]]:
        """Returns the loss of a batch, and the losses of all columns."""
        latents, labels = self.encode(encoder_params, batch, stream(key, "posterior"))
        rngs = self.rngs(key)
        losses: Any = self.generator.apply({"params": params}, latents, labels, method="column_losses", rngs=rngs)
        return mean_loss(losses, self.loss_columns), losses

    def per_image_losses(
        self, params: Params, encoder_params: Params, batch: Batch, key: PRNGKey
    ) -> Float[jax.Array, "B L"]:
        """Returns the losses of every image's columns for evaluation, without dropout."""
        latents, labels = self.encode(encoder_params, batch, stream(key, "posterior"))
        rngs = {name: stream(key, name) for name in RNG_STREAMS[:2]}
        losses: Any = self.generator.apply(
            {"params": params}, latents, labels, deterministic=True, method="per_image_losses", rngs=rngs
        )
        return losses
