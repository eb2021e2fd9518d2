"""Optimizers, learning rate schedules, EMA decay and gradient accumulation of both trainers."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from eqjax import config_fields, sharding
from eqjax.training import fields
from eqjax.typing import AnyArray, Config, Params, PRNGKey, Scalar, Tree

# The learning rate by the number of steps done.
Schedule: TypeAlias = Callable[[Any], Any]


def make_schedule(config: Config, total_steps: int) -> Schedule:
    """Returns the learning rate as a function of the number of steps done: a linear warm-up, then the schedule.

    Args:
      config: the fields of `fields.OPTIMIZER`.
      total_steps: steps of the whole run.

    Raises:
      ValueError: a field of the configuration is unknown or out of range.

    Example:
      >>> from eqjax import config_fields
      >>> from eqjax.training import fields
      >>> config = config_fields.make(fields.OPTIMIZER)
      >>> config.update(learning_rate=0.5, warmup_steps=2.0)
      >>> schedule = make_schedule(config, total_steps=100)
      >>> [float(schedule(step)) for step in range(4)]
      [0.0, 0.25, 0.5, 0.5]
    """
    # One product instead of optax.join_schedules over optax's schedules: their cosine and warm-up round differently (by
    # 1e-6, and by 2e-4 near a final ratio of 0), and XLA repeats the selects of the join in the update of every
    # parameter, which makes the step of a very small model 12 to 15 % slower.
    config_fields.check(config, fields.OPTIMIZER, "an optimizer's configuration", "optimizer.")
    peak, warmup = config.learning_rate, config.warmup_steps

    def schedule(count: Any) -> Any:
        count = jnp.asarray(count, jnp.float32)  # The warm-up may end inside a step.
        after_warmup = jnp.maximum(count - warmup, 0)
        rate = peak * jnp.minimum(1.0, count / warmup) if warmup else jnp.asarray(peak, jnp.float32)
        if config.schedule == "cosine":
            fraction = jnp.clip(after_warmup / max(total_steps - warmup, 1), 0, 1)
            rate *= config.final_lr_ratio + (1 - config.final_lr_ratio) * 0.5 * (1 + jnp.cos(jnp.pi * fraction))
        elif config.schedule == "step":
            rate *= config.decay_rate ** jnp.floor(after_warmup / config.decay_every)
        return rate

    return schedule


def weight_decay_mask(params: Params) -> Tree:
    """Returns a tree of booleans: True for parameters on which weight decay acts.

    These are all parameters except biases, scales of norms, and the flow head. They are told apart by their names, as
    stacked layers give vectors a second dimension.

    Source: Equivariant Image Modeling, arXiv 2503.18948, appendix; its published training code.
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        names = [entry.key for entry in path]
        return names[-1] not in ("bias", "scale") and "flow_head" not in names

    return jax.tree_util.tree_map_with_path(decays, params)


def muon_dimension_numbers(params: Params) -> Tree:
    """Returns the input and output axes of a tokenizer's kernels, for Muon; None for other parameters."""

    def axes(path: tuple[Any, ...], leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        if path[-1].key != "kernel":
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def make_optimizer(
    config: Config,
    total_steps: int,
    dimension_numbers: Callable[[Any], Tree] | None = None,
) -> tuple[optax.GradientTransformation, Schedule]:
    """Returns gradient clipping followed by AdamW, or by Muon on kernels and AdamW elsewhere.

    Args:
      config: the fields of `fields.OPTIMIZER`.
      total_steps: steps of the whole run, for the schedule.
      dimension_numbers: function of the parameters, such as `muon_dimension_numbers`; None: Muon is not available.

    Returns:
      The optimizer, and its learning rate schedule.

    Raises:
      ValueError: a field of the configuration is unknown or out of range, or "muon" comes without `dimension_numbers`.

    Source: AdamW, arXiv 1711.05101; Muon with steps of AdamW's size, arXiv 2502.16982, section 2.2.
    """
    schedule = make_schedule(config, total_steps)
    if config.name == "adamw":
        optimizer = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=weight_decay_mask,
        )
    elif config.name == "muon" and dimension_numbers is not None:
        optimizer = optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=dimension_numbers,
        )
    else:
        raise ValueError("optimizer.name='muon' is for the tokenizer alone; use 'adamw'.")
    clip_norm = config.grad_clip_norm
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return _with_standard_promotion(optax.chain(clip, optimizer)), schedule


def _with_standard_promotion(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Lets optax raise floats to integer powers, where jax_numpy_dtype_promotion is "strict"."""

    def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def accumulate_gradients(
    compute: Callable[[Any, Tree, PRNGKey], tuple[Tree, Any]],
    batch: Tree,
    key: PRNGKey,
    num_microbatches: int,
    carry: Any = None,
) -> tuple[Tree, Any]:
    """Averages `compute` over equal microbatches, one after another: the result of the whole batch in less memory.

    Args:
      compute: (carry, batch, key) → (values, carry); the values are means over the batch.
      batch: tree of arrays [B, ...].
      key: source of randomness; every microbatch gets its own key.
      num_microbatches: number of microbatches; 1 computes on the whole batch, with `key` itself.
      carry: initial carry, which `compute` passes from one microbatch to the next.

    Returns:
      The means of the values, and the last carry.

    Raises:
      ValueError: the batch is not a multiple of the number of microbatches.

    Example:
      >>> mean = lambda carry, batch, key: (batch.mean(), carry)
      >>> float(accumulate_gradients(mean, jnp.arange(8.0), jax.random.key(0), num_microbatches=4)[0])
      3.5
    """
    if num_microbatches < 1:
        raise ValueError(f"accumulation_steps={num_microbatches} must be at least 1.")
    if num_microbatches == 1:
        return compute(carry, batch, key)
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % num_microbatches:
        raise ValueError(
            f"a batch of {size} does not divide into accumulation_steps={num_microbatches} microbatches; set "
            "batch_size to a multiple."
        )

    def split(x: AnyArray) -> jax.Array:
        # Strided, so that each microbatch is spread over the devices as the whole batch is.
        x = x.reshape(size // num_microbatches, num_microbatches, *x.shape[1:])
        return sharding.constrain(jnp.moveaxis(x, 1, 0), None, "batch", *[None] * (x.ndim - 2))

    def add(before: tuple[Tree, Any], microbatch: tuple[jax.Array, Tree]) -> tuple[tuple[Tree, Any], None]:
        total, carry = before
        index, rows = microbatch
        values, carry = compute(carry, rows, jax.random.fold_in(key, index))
        return (jax.tree.map(lambda t, x: t + x / num_microbatches, total, values), carry), None

    rows = jax.tree.map(split, batch)
    shapes, _ = jax.eval_shape(compute, carry, jax.tree.map(lambda x: x[0], rows), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, (zeros, carry), (jnp.arange(num_microbatches), rows))[0]


def ema_decay(config: Config, step: Scalar) -> Scalar:
    """Returns the decay of the EMA weights at a step; the first step is 1."""
    if not config.ema_warmup:
        return config.ema_decay
    return jnp.minimum(config.ema_decay, (1 + step) / (10 + step))
