"""State that a training run carries from step to step, and random keys by name."""

from typing import Any
import zlib

import flax.struct
import jax
from jaxtyping import Int

from eqjax.typing import Params, PRNGKey, Scalar, Tree


@flax.struct.dataclass
class TrainState:
    """Everything that changes in training; a checkpoint holds all of it.

    Attributes:
      step: number of steps done, int32.
      params: raw weights, float32.
      ema_params: EMA weights, float32; sampling and evaluation use them.
      opt_state: the optimizer's state.
    """

    step: Int[jax.Array, ""]
    params: Params
    ema_params: Params
    opt_state: Any


@flax.struct.dataclass
class TokenizerState(TrainState):
    """Everything that changes in a tokenizer's training.

    Attributes:
      discriminator: {"params", "spectral", "opt_state"}, or None without a discriminator.
      regularization: what the regularizers of equivariance carry, or None.
    """

    discriminator: dict[str, Any] | None
    regularization: Any = None


def stream(key: PRNGKey, name: str) -> PRNGKey:
    """Returns the key called `name` below `key`; it does not depend on the order in which names are used.

    Example:
      >>> root = jax.random.key(0)
      >>> bool(stream(root, "flow") == stream(root, "rope"))
      False
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def ema_update(ema_params: Tree, params: Tree, decay: Scalar) -> Tree:
    """Returns decay · EMA weights + (1 − decay) · raw weights, leaf by leaf.

    Args:
      ema_params: EMA weights.
      params: raw weights after the update.
      decay: scalar in [0, 1).
    """
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema_params, params)
