"""Argument checks of sampling: every bad argument ends in one message that names it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eqjax.generator import Generator
from eqjax.messages import show
from eqjax.rules import Array, Integer, Items
from eqjax.tracing import is_traced
from eqjax.typing import AnyArray

NUM_COLUMNS = Integer(least=1)
# JAX's keys have 32 bits of the seed.
SEED = Integer(least=-(2**31), most=2**32 - 1)
SEEDS = Items(SEED, least=1)


def as_seeds(seeds: Any) -> tuple[int, ...]:
    """Returns one seed, or several, as integers.

    Raises:
      TypeError: a seed is not an integer.
      ValueError: a seed has more than 32 bits, or there is none.
    """
    if isinstance(seeds, list | tuple | range) or np.ndim(seeds):
        return SEEDS.check("seeds", seeds)
    return (SEED.check("seeds", seeds),)


def as_labels(labels: Any) -> AnyArray:
    """Returns labels, an array or nested lists of integers, as an array.

    Raises:
      TypeError: they are not integers.
      ValueError: rows have several lengths.
    """
    labels = Array(None, "integer").check("labels", labels)
    return labels if isinstance(labels, jax.Array) else np.asarray(labels, np.int32)


def check_labels(generator: Generator, labels: AnyArray) -> None:
    """Checks labels [B], or [B, S] of S classes along the columns; of traced ones the shape.

    Raises:
      ValueError: the labels have another shape, or are outside 0 … num_classes.
    """
    if labels.ndim not in (1, 2) or not labels.size:
        raise ValueError(
            f"labels={show(labels)} must be integers of shape [batch], or [batch, classes along the columns], and not "
            "empty."
        )
    if not is_traced(labels):
        wrong = sorted({int(n) for n in np.asarray(labels).flat if not 0 <= n <= generator.num_classes})
        if wrong:
            raise ValueError(
                f"labels {wrong} are outside 0 … {generator.num_classes} (this generator has "
                f"{generator.num_classes} classes; {generator.num_classes} is the null class)."
            )


def check_noise_source(generator: Generator, batch_size: int, num_columns: int, noise: Any, key: Any) -> None:
    """Checks that there is either initial noise [B, L, D], or one random key, or one per row [B].

    Raises:
      TypeError: one is of another type.
      ValueError: both or neither is given, or one has another shape.
    """
    if (noise is None) == (key is None):
        raise ValueError("give either noise or key (jax.random.key(seed)), and not both.")
    if noise is not None:
        shape = np.shape(Array(None).check("noise", noise))
        if shape != (batch_size, num_columns, generator.latent_dim):
            raise ValueError(
                f"noise has shape {shape}; expected [batch, num_columns, latent_dim] = "
                f"{(batch_size, num_columns, generator.latent_dim)}."
            )
        _check_finite("noise", noise)
    if key is not None:
        if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise TypeError(f"key={show(key)} must be a typed key: make it with jax.random.key(seed).")
        if key.shape not in ((), (batch_size,)):
            raise ValueError(f"key has shape {key.shape}; expected one key, or one per row, [{batch_size}].")


def check_prefix(generator: Generator, batch_size: int, num_columns: int | None, prefix: Any) -> None:
    """Checks latents [B, P, D] with which a sample of `num_columns` columns (None: without end) begins.

    Raises:
      TypeError: the prefix is no floating-point array.
      ValueError: the prefix has another shape, values that are not finite, or more columns than the sample.
    """
    shape = np.shape(Array(None).check("prefix", prefix))
    size, limit = generator.latent_dim, "columns" if num_columns is None else f"≤ {num_columns}"
    if len(shape) != 3 or shape[0] != batch_size or shape[2] != size:
        raise ValueError(
            f"prefix has shape {shape}; expected [batch, columns, latent_dim] = [{batch_size}, {limit}, {size}]."
        )
    if num_columns is not None and shape[1] > num_columns:
        raise ValueError(f"prefix has {shape[1]} columns, more than num_columns={num_columns} in all.")
    _check_finite("prefix", prefix)


def _check_finite(name: str, array: Any) -> None:
    """Refuses values that are not finite, which would spread to all later columns; traced ones are not checked."""
    if not is_traced(array) and not np.isfinite(np.asarray(array, np.float32)).all():
        raise ValueError(f"{name} has values that are not finite.")
