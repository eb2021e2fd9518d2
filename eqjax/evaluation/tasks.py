"""Tests whether all columns are one task: loss per column, conflict between gradients, transfer between columns.

    ℓ_k              the flow loss of column k
    conflict         cos(∇ℓ_i, ∇ℓ_j) on one batch: 1 if columns ask for the same change of the weights
    ceiling          the same between two batches, for one column: the noise of sampling batches lowers it below 1
    noise-corrected  cos(∇ℓ_i, ∇ℓ_j) between two batches, divided by both columns' ceilings: without that noise
    transfer         ℓ on columns whose loss was never trained, over ℓ there after training on all columns

Losses of different tokenizers are in different units, so compare ratios and cosines between them.

Source: Equivariant Image Modeling, arXiv 2503.18948, sections 1 and 4.3.

Letters: N images, B batch, L columns, D latent size, P weights.
"""

from collections.abc import Iterable, Sequence
import functools
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np
import optax

from eqjax.generator import Generator, column_weights
from eqjax.progress import ProgressLogger
from eqjax.typing import AnyArray, Params, PRNGKey, Tree

# Scaled latents and labels of a batch.
LatentBatch: TypeAlias = tuple[Float[AnyArray, "B L D"], Int[AnyArray, "B"]]


@flax.struct.dataclass
class MeanAndStderr:
    """A mean over batches, with its standard error.

    Attributes:
      mean: mean over the batches.
      stderr: standard error of the mean; NaN for a single batch.
    """

    mean: Float[np.ndarray, "..."]
    stderr: Float[np.ndarray, "..."]


def mean_and_stderr(samples: Sequence[Float[AnyArray, "..."]] | Float[AnyArray, "..."]) -> MeanAndStderr:
    """Returns the mean of samples along their first axis, and its standard error.

    Example:
      >>> mean_and_stderr(np.array([[1.0], [3.0]]))
      MeanAndStderr(mean=array([2.]), stderr=array([1.]))
    """
    samples = np.asarray(samples, np.float64)
    n = len(samples)
    stderr = samples.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.full(samples.shape[1:], np.nan)
    return MeanAndStderr(samples.mean(0), stderr)


def column_losses(
    generator: Generator, params: Params, batches: Iterable[LatentBatch], key: PRNGKey, rope_shift: int = 0
) -> MeanAndStderr:
    """Returns the loss of every column, [L], without dropout.

    Args:
      generator: the module.
      params: its parameters.
      batches: scaled latents and labels, of one shape.
      key: random key of times and noise; batch i uses fold_in(key, i).
      rope_shift: added to the index of every column.
    """
    losses = [
        _losses(generator, params, *batch, jax.random.fold_in(key, i), rope_shift) for i, batch in enumerate(batches)
    ]
    return mean_and_stderr(jax.device_get(losses))


def gradient_cosines(
    generator: Generator, params: Params, batches: Sequence[LatentBatch], key: PRNGKey
) -> tuple[MeanAndStderr, MeanAndStderr]:
    """Returns the cosines between the gradients of different columns' losses with respect to all weights.

    Holds the gradients of all columns of two batches: 2 · L times the size of the weights.

    Args:
      generator: the module.
      params: its parameters.
      batches: scaled latents and labels, of one shape; at least two batches.
      key: random key of times and noise; batch i uses fold_in(key, i).

    Returns:
      Cosines [L, L] within a batch (the conflict; their diagonal is 1), and between one batch and the next (their
      diagonal is the ceiling).

    Raises:
      ValueError: there are fewer than two batches.
    """
    if len(batches) < 2:
        raise ValueError(f"cosines between batches need at least 2 of them, not {len(batches)}.")
    within, between, before = [], [], None
    for i, batch in enumerate(batches):
        gradients = _directions(generator, params, *batch, jax.random.fold_in(key, i))
        within.append(gradients @ gradients.T)
        if before is not None:
            between.append(before @ gradients.T)
        before = gradients
    return mean_and_stderr(jax.device_get(within)), mean_and_stderr(jax.device_get(between))


def noise_corrected_cosines(between: Float[np.ndarray, "L L"]) -> Float[np.ndarray, "L L"]:
    """Returns cosines corrected for sampling noise (disattenuated), as infinitely large batches would give them.

        ĉ_ij = c_ij / √(c_ii · c_jj)

    The noise of two batches is independent. It multiplies the cosine between them by one factor per column, and
    the diagonal, where the true cosine is 1, holds the squares of these factors.

    Args:
      between: mean cosines c between one batch and another, as `gradient_cosines` returns them.

    Returns:
      Symmetric, diagonal 1; NaN for columns whose gradients are pure noise. May exceed 1 by chance.

    Source: the correction for attenuation, C. Spearman, Am. J. Psychol. 15, 1904.

    Example:
      >>> noise_corrected_cosines(np.array([[0.25, 0.1], [0.1, 0.25]])).tolist()
      [[1.0, 0.4], [0.4, 1.0]]
    """
    both = (between + between.T) / 2
    length = np.sqrt(np.where(np.diag(both) > 0, np.diag(both), np.nan))
    return both / np.outer(length, length)


def off_diagonal_mean(cosines: Float[np.ndarray, "... L L"]) -> Float[np.ndarray, "..."] | np.floating:
    """Returns the mean over pairs of different columns.

    Example:
      >>> float(off_diagonal_mean(np.array([[1.0, 0.5], [0.25, 1.0]])))
      0.375
    """
    size = cosines.shape[-1]
    return cosines[..., ~np.eye(size, dtype=bool)].mean(-1)


def train(
    generator: Generator,
    latents: Float[AnyArray, "N L D"],
    labels: Int[AnyArray, "N"],
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    columns: Iterable[int] | None = None,
    seed: int = 0,
) -> Params:
    """Trains a generator briefly on latents in memory, with the loss of all columns or of some.

    Uses AdamW with linear warm-up over a twentieth of the steps, then a cosine decay to zero. Columns without loss
    remain visible to columns with loss.

    Args:
      generator: the module.
      latents: scaled latents.
      labels: their labels.
      steps: number of steps.
      batch_size: batch size; batches are drawn with replacement.
      learning_rate: peak learning rate.
      columns: indices of the columns whose loss counts; None: all.
      seed: seed of initial weights, batches, noise and dropout.

    Returns:
      The trained parameters.

    Raises:
      ValueError: `columns` is empty, or has indices of no column.
    """
    count = latents.shape[1]
    # The weights of columns are arguments of the compiled step, so that one program serves all choices of columns.
    weights = column_weights(count, range(count) if columns is None else columns)
    root = jax.random.key(seed)
    params = jax.jit(generator.init_params)(jax.random.fold_in(root, 2**31 - 1))
    optimizer = _optimizer(steps, learning_rate)
    state = params, optimizer.init(params)
    latents, labels = jnp.asarray(latents), jnp.asarray(labels)
    progress = ProgressLogger("training steps", steps)
    for step in range(steps):
        key = jax.random.fold_in(root, step)
        state = _train_step(generator, steps, learning_rate, batch_size, state, latents, labels, weights, key)
        progress.update(1)
    return state[0]


@functools.lru_cache
def _optimizer(steps: int, learning_rate: float) -> optax.GradientTransformation:
    warmup = max(steps // 20, 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, max(steps, warmup + 1))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=0.02))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=4)
def _train_step(
    generator: Generator,
    steps: int,
    learning_rate: float,
    batch_size: int,
    state: tuple[Params, Tree],
    latents: jax.Array,
    labels: jax.Array,
    weights: AnyArray,
    key: PRNGKey,
) -> tuple[Params, Tree]:
    pick_key, loss_key = jax.random.split(key)
    rows = jax.random.randint(pick_key, (batch_size,), 0, len(latents), jnp.int32)

    def loss(params: Params) -> jax.Array:
        losses: Any = generator.apply(
            {"params": params}, latents[rows], labels[rows], method="column_losses", rngs=loss_key
        )
        return losses @ weights

    params: Any
    params, opt_state = state
    grads = jax.grad(loss)(params)
    with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to integer powers.
        updates, opt_state = _optimizer(steps, learning_rate).update(grads, opt_state, params)
    new_params: Any = optax.apply_updates(params, updates)
    return new_params, opt_state


@functools.partial(jax.jit, static_argnums=0)
def _losses(
    generator: Generator,
    params: Params,
    latents: Float[AnyArray, "B L D"],
    labels: Int[AnyArray, "B"],
    key: PRNGKey,
    rope_shift: int | jax.Array = 0,
) -> Float[jax.Array, "L"]:
    losses: Any = generator.apply(
        {"params": params},
        latents,
        labels,
        rope_shift=rope_shift,
        deterministic=True,
        method="column_losses",
        rngs=key,
    )
    return losses


@functools.partial(jax.jit, static_argnums=0)
def _directions(
    generator: Generator,
    params: Params,
    latents: Float[AnyArray, "B L D"],
    labels: Int[AnyArray, "B"],
    key: PRNGKey,
) -> Float[jax.Array, "L P"]:
    """Returns the gradient of every column's loss, normalized to length 1."""
    gradients = jax.jacrev(lambda params: _losses(generator, params, latents, labels, key))(params)
    flat = jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(gradients)], axis=1)
    return flat / jnp.linalg.norm(flat, axis=1, keepdims=True)
