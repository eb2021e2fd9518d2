"""What a training run carries from step to step, and how randomness is drawn for a step."""

import zlib

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """All that changes in training; a checkpoint holds it whole.

    Attributes:
      step: number of updates done, int32 [].
      params: parameters, float32.
      ema_params: their moving average, float32; sampling and evaluation use it.
      opt_state: the optimizer's state.
    """

    step: jax.Array
    params: dict
    ema_params: dict
    opt_state: tuple


def stream(key, name):
    """The key called `name` below `key`: independent of the order in which names are asked for."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def ema_update(ema_params, params, decay):
    """decay · average + (1 − decay) · parameters, leaf by leaf.

    Args:
      ema_params: averages.
      params: parameters after the update.
      decay: in [0, 1), a scalar.
    """
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema_params, params)
