"""Are the columns one task? Loss per column, conflict between their gradients, and transfer between them.

    ℓ_k        the flow loss of column k
    conflict   cos(∇ℓ_i, ∇ℓ_j) on one batch: 1 where columns ask for the same change of the weights
    ceiling    the same between two batches for one column: what sampling noise leaves of "the same task"
    agreement  cos between two batches, of two columns, over their ceilings: of the gradients without that noise
    transfer   ℓ on columns whose loss was never trained, over ℓ there after training on all columns

Losses of different tokenizers are in different units, so compare ratios and cosines between them.

Source: Equivariant Image Modeling, arXiv 2503.18948, sections 1 and 4.3.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from eqjax.generator import column_weights


@flax.struct.dataclass
class MeanAndStderr:
    """A mean over batches, with its standard error.

    Attributes:
      mean, error: arrays of one shape.
    """

    mean: np.ndarray
    error: np.ndarray


def estimate(samples):
    """Samples [n, …] → their `MeanAndStderr`; the error of one sample is NaN."""
    samples = np.asarray(samples, np.float64)
    n = len(samples)
    error = samples.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.full(samples.shape[1:], np.nan)
    return MeanAndStderr(samples.mean(0), error)


def column_losses(generator, params, batches, key):
    """Loss of every column, without dropout: `MeanAndStderr` of [L].

    Args:
      generator, params: module and parameters.
      batches: list of (scaled latents [B, L, D], labels [B]) of one shape.
      key: of times and noise; batch i uses fold_in(key, i).
    """
    losses = [_losses(generator, params, *batch, jax.random.fold_in(key, i)) for i, batch in enumerate(batches)]
    return estimate(jax.device_get(losses))


def gradient_cosines(generator, params, batches, key):
    """Cosines between the gradients of different columns' losses with respect to all weights.

    Holds the gradients of all columns at once: 2 · L times the size of the weights.

    Args:
      as `column_losses`; at least two batches.

    Returns:
      (conflict, ceiling): `MeanAndStderr`s of [L, L], within a batch and between one batch and the next. The
      diagonal of the second is the ceiling; that of the first is 1.

    Raises:
      ValueError: fewer than two batches.
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
    return estimate(jax.device_get(within)), estimate(jax.device_get(between))


def agreement(between):
    """Cosines freed of sampling noise: of the gradients that infinitely large batches would have.

    Noise of two batches is independent, so it shortens the cosine between them by a factor of each column,
    and the diagonal, where the true cosine is 1, holds these factors' squares.

    Args:
      between: [L, L], mean cosines between one batch and another, as `gradient_cosines` gives them.

    Returns:
      [L, L], symmetric, diagonal 1; NaN for columns whose gradients are nothing but noise. May exceed 1 by chance.

    Source: the correction for attenuation, C. Spearman, Am. J. Psychol. 15, 1904.
    """
    both = (between + between.T) / 2
    length = np.sqrt(np.where(np.diag(both) > 0, np.diag(both), np.nan))
    return both / np.outer(length, length)


def off_diagonal(cosines):
    """The mean over pairs of different columns, of [..., L, L] → [...]."""
    size = cosines.shape[-1]
    return cosines[..., ~np.eye(size, dtype=bool)].mean(-1)


def train(generator, latents, labels, *, steps, batch_size=32, learning_rate=1e-3, columns=None, seed=0):
    """A short training on latents in memory, with the loss of all columns or of some.

    AdamW, linear warm-up over a twentieth of the steps, then a cosine to zero. Columns without loss are
    still seen by those with loss.

    Args:
      generator: module.
      latents: [N, L, D], scaled.
      labels: [N].
      steps, batch_size, learning_rate: of the training; batches are drawn with replacement.
      columns: numbers of the columns whose loss counts; None: all.
      seed: of weights, batches, noise and dropout.

    Returns:
      parameters.

    Raises:
      ValueError: columns that do not exist, or none.
    """
    count = latents.shape[1]
    # Arguments of the compiled step, so that all choices of columns share it.
    weights = column_weights(count, range(count) if columns is None else columns)
    root = jax.random.key(seed)
    params = jax.jit(generator.init_params)(jax.random.fold_in(root, 2**31 - 1))
    optimizer = _optimizer(steps, learning_rate)
    state = params, optimizer.init(params)
    latents, labels = jnp.asarray(latents), jnp.asarray(labels)
    for step in range(steps):
        key = jax.random.fold_in(root, step)
        state = _train_step(generator, steps, learning_rate, batch_size, state, latents, labels, weights, key)
    return state[0]


@functools.lru_cache
def _optimizer(steps, learning_rate):
    warmup = max(steps // 20, 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, max(steps, warmup + 1))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=0.02))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=4)
def _train_step(generator, steps, learning_rate, batch_size, state, latents, labels, weights, key):
    pick_key, loss_key = jax.random.split(key)
    rows = jax.random.randint(pick_key, (batch_size,), 0, len(latents))

    def loss(params):
        losses = generator.apply({"params": params}, latents[rows], labels[rows], method="column_losses", rngs=loss_key)
        return losses @ weights

    params, opt_state = state
    updates, opt_state = _optimizer(steps, learning_rate).update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


@functools.partial(jax.jit, static_argnums=0)
def _losses(generator, params, latents, labels, key):
    return generator.apply(
        {"params": params},
        latents,
        labels,
        rope_shift=0,
        deterministic=True,
        method="column_losses",
        rngs=key,
    )


@functools.partial(jax.jit, static_argnums=0)
def _directions(generator, params, latents, labels, key):
    """Gradients of the columns' losses, each of length 1: [L, number of weights]."""
    gradients = jax.jacrev(lambda params: _losses(generator, params, latents, labels, key))(params)
    flat = jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(gradients)], axis=1)
    return flat / jnp.linalg.norm(flat, axis=1, keepdims=True)
