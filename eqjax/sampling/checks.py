"""What sampling accepts: every wrong argument ends in one message."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_concrete(value: Any) -> bool:
    """Returns whether a value is known while a function is traced."""
    return not isinstance(value, jax.core.Tracer)


def whole(name: str, value: Any) -> int:
    """Returns an integer of any kind, such as numpy's, as an int.

    Args:
      name: what the message calls it.
      value: the integer.

    Raises:
      ValueError: it is not an integer.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name}={value!r} must be an integer.") from error


def check_values(generator, labels, num_columns, guidance_scale, temperature, max_position=None):
    """Checks labels and numbers, those that are not traced.

    Raises:
      ValueError: one is out of its range.
    """
    if labels.ndim not in (1, 2) or not labels.size or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers of shape [batch], or [batch, classes along the columns], not {labels.dtype} "
            f"{labels.shape}."
        )
    if is_concrete(labels):
        wrong = sorted({int(n) for n in np.asarray(labels).flat if not 0 <= n <= generator.num_classes})
        if wrong:
            raise ValueError(
                f"labels {wrong} are outside 0 … {generator.num_classes} (this generator has "
                f"{generator.num_classes} classes; {generator.num_classes} is the null class)."
            )
    if num_columns is not None and num_columns < 1:
        raise ValueError(f"num_columns={num_columns} must be ≥ 1.")
    if is_concrete(guidance_scale) and not np.all(np.asarray(guidance_scale) >= 0):
        raise ValueError(f"guidance_scale={guidance_scale} must be ≥ 0 (1 is no guidance).")
    if is_concrete(temperature) and not temperature >= 0:
        raise ValueError(f"temperature={temperature} must be ≥ 0.")
    if max_position is not None and is_concrete(max_position) and max_position < 0:
        raise ValueError(f"max_position={max_position} must be ≥ 0, or None for positions as published.")


def check_arrays(generator, labels, num_columns, noise, key, prefix):
    """Checks noise or key, and the prefix, against labels and number of columns.

    Raises:
      ValueError: one has another shape, or both or neither of noise and key are there.
    """
    batch, size = labels.shape[0], generator.latent_dim
    if (noise is None) == (key is None):
        raise ValueError("give either noise or key (jax.random.key(seed)), and not both.")
    if noise is not None and noise.shape != (batch, num_columns, size):
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}; expected [batch, num_columns, latent_dim] = "
            f"{(batch, num_columns, size)}."
        )
    if key is not None:
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise ValueError("key must be a typed key: make it with jax.random.key(seed).")
        if key.shape not in ((), (batch,)):
            raise ValueError(f"key has shape {key.shape}; expected one key, or one per row, [{batch}].")
    if prefix is None:
        return
    if prefix.ndim != 3 or prefix.shape[0] != batch or prefix.shape[2] != size:
        raise ValueError(
            f"prefix has shape {tuple(prefix.shape)}; expected [batch, columns, latent_dim] = "
            f"[{batch}, ≤ {num_columns}, {size}]."
        )
    if prefix.shape[1] > num_columns:
        raise ValueError(f"prefix has {prefix.shape[1]} columns, more than num_columns={num_columns} in all.")
