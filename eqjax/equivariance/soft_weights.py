"""Weights of several symmetries, which let go of those that the data lack.

While a model is trained with all symmetries alike, running means of their equivariance errors R are kept. Then, once,

    weight ← weight / (R / min R)^power

The symmetry that the model obeys best keeps its weight, and those that resist lose theirs.

Letters: G symmetries.

Source: PER, arXiv 2306.00356, section 4 (its rule for the weights; its residuals are of weights, these of functions).
"""

import dataclasses
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from eqjax.rules import Integer, Number
from eqjax.typing import AnyArray, Scalar

# Decay of the running means.
_DECAY = 0.95


@flax.struct.dataclass
class SoftWeights:
    """Weights of symmetries, and what they are made from; a pytree to be carried from step to step.

    Attributes:
      weights: weight of each symmetry, 1 at the start.
      residuals: running mean of the equivariance error of each.
      counts: readings of each.
      adjusted: whether the weights are set.
    """

    weights: Float[AnyArray, "G"]
    residuals: Float[AnyArray, "G"]
    counts: Int[AnyArray, "G"]
    adjusted: Bool[AnyArray, ""]

    @classmethod
    def init(cls, count: Any) -> "SoftWeights":
        """Returns equal weights of so many symmetries.

        Raises:
          TypeError: the count is no integer.
          ValueError: it is below 1.
        """
        count = Integer(least=1).check("count", count)
        return cls(jnp.ones(count), jnp.zeros(count), jnp.zeros(count, jnp.int32), jnp.zeros((), bool))

    def update(self, index: Any, residual: Scalar) -> "SoftWeights":
        """Returns the weights with one more reading.

        Args:
          index: the symmetry; may be traced.
          residual: its relative equivariance error: the root of what `encoder_error` returns.

        Example:
          >>> SoftWeights.init(2).update(1, 0.25).residuals.tolist()
          [0.0, 0.25]
        """
        chosen = jnp.arange(len(self.weights)) == index
        # The mean of the first readings, then a running mean.
        rate = jnp.maximum(1 / (self.counts + 1).astype(jnp.float32), 1 - _DECAY)
        moved = self.residuals + rate * (jnp.asarray(residual, jnp.float32) - self.residuals)
        counts = self.counts + chosen.astype(jnp.int32)
        return dataclasses.replace(self, residuals=jnp.where(chosen, moved, self.residuals), counts=counts)

    def adjust(self, is_due: Any = True, power: Any = 2.0) -> "SoftWeights":
        """Returns the weights, set once: when it is due and every symmetry has a reading.

        Args:
          is_due: whether it is time; may be traced.
          power: how strongly symmetries that resist lose weight.

        Raises:
          TypeError: the power is no number.
          ValueError: it is negative.

        Source: PER, arXiv 2306.00356, section 4.

        Example:
          >>> weights = SoftWeights.init(3)
          >>> for index, residual in enumerate((0.35, 0.61, 0.78)):  # Shift, scale, flip.
          ...     weights = weights.update(index, residual)
          >>> [round(float(weight), 2) for weight in weights.adjust().weights]
          [1.0, 0.33, 0.2]
        """
        power = Number(least=0).check("power", power)
        now = jnp.asarray(is_due) & ~self.adjusted & jnp.all(self.counts > 0)
        residuals = jnp.maximum(self.residuals, 1e-12)
        ratios = residuals / jnp.min(residuals)
        return dataclasses.replace(
            self, weights=jnp.where(now, self.weights / ratios**power, self.weights), adjusted=self.adjusted | now
        )
