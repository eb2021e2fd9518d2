"""The two updates of a step of tokenizer training: the tokenizer's, then the discriminator's.

Source: Equivariant Image Modeling, arXiv 2503.18948, appendix; its published training code.
"""

import dataclasses

import flax.struct
import optax

from eqjax.training import objective, optim
from eqjax.training.state import TrainState, stream


@flax.struct.dataclass
class TokenizerState(TrainState):
    """All that changes in a tokenizer's training.

    Attributes:
      discriminator: {"params", "spectral", "opt_state"}, or None without one.
    """

    discriminator: dict | None


@dataclasses.dataclass(frozen=True)
class Updates:
    """The two updates of a step.

    Attributes:
      objective: terms and gradients.
      optimizer, discriminator_optimizer: optax transformations.
      accumulation_steps: parts that a batch is worked through in.
      semantic_start, adversarial_start: updates done before these terms are on.
    """

    objective: objective.Objective
    optimizer: optax.GradientTransformation
    discriminator_optimizer: optax.GradientTransformation
    accumulation_steps: int
    semantic_start: int
    adversarial_start: int

    def tokenizer(self, state, fixed, frozen, images, key):
        """Updates the parameters that are not in `fixed`.

        Returns:
          trainable parameters, optimizer state, spectral vectors, {term: scalar}.
        """
        grads, terms, spectral = self.tokenizer_grads(state, fixed, frozen, images, key)
        trained, opt_state = self.tokenizer_update(state, fixed, grads)
        return trained, opt_state, spectral, terms | {"grad_norm": optax.tree.norm(grads)}

    def tokenizer_update(self, state, fixed, grads):
        """Trainable parameters and optimizer state after an update with `grads`."""
        trainable = {name: part for name, part in state.params.items() if name not in fixed}
        updates, opt_state = self.optimizer.update(grads, state.opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state

    def tokenizer_grads(self, state, fixed, frozen, images, key):
        """Gradients of the parameters that are not in `fixed`, {term: scalar}, spectral vectors."""
        trainable = {name: part for name, part in state.params.items() if name not in fixed}
        switches = {
            "semantic": _reached(state.step, self.semantic_start),
            "adversarial": _reached(state.step, self.adversarial_start),
        }

        def part(spectral, images, key):
            variables = state.discriminator and {"params": state.discriminator["params"], "spectral": spectral}
            draws = objective.draw(key, self.objective.tokenizer, images.shape)
            out = self.objective.tokenizer_grads(trainable, fixed, variables, frozen, images, draws, switches)
            grads, terms, spectral = out
            return (grads, terms), spectral

        spectral = state.discriminator and state.discriminator["spectral"]
        (grads, terms), spectral = optim.accumulate_gradients(
            part, images, stream(key, "tokenizer"), self.accumulation_steps, spectral
        )
        return grads, terms, spectral

    def discriminator(self, state, params, spectral, frozen, images, key):
        """Updates the discriminator on reconstructions by the tokenizer's new parameters.

        Returns:
          its state, {term: scalar}.
        """
        old = state.discriminator

        def part(spectral, images, key):
            draws = objective.draw(key, self.objective.tokenizer, images.shape)
            fakes, _ = self.objective.reconstruct(params, images, draws.noise)
            variables = {"params": old["params"], "spectral": spectral}
            out = self.objective.discriminator_grads(variables, frozen, images, fakes.images, draws)
            grads, terms, spectral = out
            return (grads, terms), spectral

        def compute():
            return optim.accumulate_gradients(
                part, images, stream(key, "discriminator"), self.accumulation_steps, spectral
            )

        (grads, terms), spectral = objective.only_if(_reached(state.step, self.adversarial_start), compute, spectral)
        # Gradients of zero, before the start, still count as updates of Adam, as in the reference.
        updates, opt_state = self.discriminator_optimizer.update(grads, old["opt_state"], old["params"])
        params = optax.apply_updates(old["params"], updates)
        terms["disc_grad_norm"] = optax.tree.norm(grads)
        return {"params": params, "spectral": spectral, "opt_state": opt_state}, terms


def _reached(step, start):
    """Whether `start` updates are done: True where that is always so.

    A branch that is always taken costs nothing on an accelerator, but in branches the CPU compiler's
    convolutions are slow: a step of the demo's second stage took ten times as long.
    """
    return True if start <= 0 else step >= start
