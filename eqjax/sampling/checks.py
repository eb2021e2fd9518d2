"""Argument checks of sampling: every bad argument ends in one message that names it."""

import operator
from typing import Any

import jax
from jax.core import Tracer
import jax.numpy as jnp
import numpy as np

from eqjax.generator import Generator
from eqjax.typing import AnyArray


def is_concrete(value: Any) -> bool:
    """Returns whether a value is known while JAX traces a function."""
    return not isinstance(value, Tracer)


def whole(name: str, value: Any) -> int:
    """Returns an integer of any kind, such as numpy's, as an int.

    Args:
      name: name of the value in the message.
      value: the integer.

    Raises:
      ValueError: it is not an integer.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name}={value!r} must be an integer.") from error


def check_labels(generator: Generator, labels: AnyArray) -> None:
    """Checks labels [B], or [B, S] of S classes along the columns; traced values are not checked.

    Raises:
      ValueError: the labels have another shape or dtype, or are outside 0 … num_classes.
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


def check_num_columns(num_columns: int) -> None:
    """Checks the width of an image in columns.

    Raises:
      ValueError: it is less than 1.
    """
    if num_columns < 1:
        raise ValueError(f"num_columns={num_columns} must be ≥ 1.")


def check_noise_source(
    generator: Generator, batch_size: int, num_columns: int, noise: AnyArray | None, key: AnyArray | None
) -> None:
    """Checks that there is either initial noise [B, L, D], or one random key, or one per row [B].

    Raises:
      ValueError: both or neither is given, or one has another shape or type.
    """
    if (noise is None) == (key is None):
        raise ValueError("give either noise or key (jax.random.key(seed)), and not both.")
    if noise is not None and noise.shape != (batch_size, num_columns, generator.latent_dim):
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}; expected [batch, num_columns, latent_dim] = "
            f"{(batch_size, num_columns, generator.latent_dim)}."
        )
    if key is not None:
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise ValueError("key must be a typed key: make it with jax.random.key(seed).")
        if key.shape not in ((), (batch_size,)):
            raise ValueError(f"key has shape {key.shape}; expected one key, or one per row, [{batch_size}].")


def check_prefix(generator: Generator, batch_size: int, num_columns: int | None, prefix: AnyArray) -> None:
    """Checks latents [B, P, D] with which a sample of `num_columns` columns (None: without end) begins.

    Raises:
      ValueError: the prefix has another shape, or more columns than the sample.
    """
    size, limit = generator.latent_dim, "columns" if num_columns is None else f"≤ {num_columns}"
    if prefix.ndim != 3 or prefix.shape[0] != batch_size or prefix.shape[2] != size:
        raise ValueError(
            f"prefix has shape {tuple(prefix.shape)}; expected [batch, columns, latent_dim] = "
            f"[{batch_size}, {limit}, {size}]."
        )
    if num_columns is not None and prefix.shape[1] > num_columns:
        raise ValueError(f"prefix has {prefix.shape[1]} columns, more than num_columns={num_columns} in all.")
