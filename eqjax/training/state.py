"""State that a training run carries from step to step, and random keys by name."""

from typing import Any
import zlib

import flax.struct
import jax
import jax.numpy as jnp
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


def dropout_key(key: PRNGKey, rng: str) -> PRNGKey:
    """Returns the key of dropout, whose random bits a generator of JAX makes.

    Args:
      key: the key from which dropout draws by default.
      rng: "threefry2x32", the same numbers on every device: the key itself. "rbg" and "unsafe_rbg" are the generator
        of the device (Philox on GPUs); their numbers depend on the backend, on the version of XLA and on
        how a batch is split. "unsafe_rbg" also derives keys from keys with it, without a proof that these differ.

    Raises:
      ValueError: JAX has no such generator.

    Example:
      >>> key = jax.random.key(0)
      >>> dropout_key(key, "threefry2x32") is key, str(jax.random.key_impl(dropout_key(key, "rbg")))
      (True, 'rbg')
    """
    if rng == "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.bits(key, (4,), jnp.uint32), impl=rng)


def ema_update(ema_params: Tree, params: Tree, decay: Scalar) -> Tree:
    """Returns decay · EMA weights + (1 − decay) · raw weights, leaf by leaf.

    Args:
      ema_params: EMA weights.
      params: raw weights after the update.
      decay: scalar in [0, 1).
    """
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema_params, params)
