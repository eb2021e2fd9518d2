"""Optimisers and schedules of both stages, from their part of a configuration."""

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from eqjax import sharding

SCHEDULES = ("constant", "cosine", "step")


def make_schedule(config, total_steps):
    """The learning rate at a step (the number of updates done before it).

    Args:
      config: as `config.optimizer_config`.
      total_steps: updates of the whole run.

    Returns:
      A function of the step.

    Raises:
      ValueError: an unknown schedule.
    """
    if config.schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule={config.schedule!r} is not one of {SCHEDULES}.")
    base, warmup = config.learning_rate, config.warmup_steps

    def schedule(step):
        after = jnp.maximum(step - warmup, 0)
        rate = base * jnp.minimum(1.0, step / max(warmup, 1e-12)) if warmup else jnp.asarray(base)
        if config.schedule == "cosine":
            share = jnp.clip(after / max(total_steps - warmup, 1), 0, 1)
            rate *= config.final_lr_ratio + (1 - config.final_lr_ratio) * 0.5 * (1 + jnp.cos(jnp.pi * share))
        elif config.schedule == "step":
            rate *= config.decay_rate ** jnp.floor(after / config.decay_every)
        return rate

    return schedule


def weight_decay_mask(params):
    """Which parameters weight decay applies to: a tree of booleans.

    All but biases, norms' scales, and the whole flow head. Names tell them apart, as stacked
    layers give vectors a second dimension.

    Source: Equivariant Image Modeling, arXiv 2503.18948, appendix; its published training code.
    """

    def decay(path, _):
        names = [entry.key for entry in path]
        return names[-1] not in ("bias", "scale") and "flow_head" not in names

    return jax.tree_util.tree_map_with_path(decay, params)


def muon_dimension_numbers(params):
    """Which axes of a tokenizer's kernels are input and output, for Muon; None elsewhere."""

    def axes(path, leaf):
        if path[-1].key != "kernel":
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def make_optimizer(config, total_steps, matrices=None):
    """Gradient clipping, then AdamW, or Muon on kernels with AdamW elsewhere.

    Args:
      config: as `config.optimizer_config`.
      total_steps: updates of the whole run, for the schedule.
      matrices: for Muon, a function like `muon_dimension_numbers`.

    Returns:
      An optax transformation, and the schedule that it follows.

    Raises:
      ValueError: an unknown name, or "muon" where there is no `matrices`.

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
    elif config.name == "muon" and matrices is not None:
        optimizer = optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=matrices,
        )
    else:
        raise ValueError(f"optimizer.name={config.name!r} is neither 'adamw' nor, for the tokenizer, 'muon'.")
    clip_norm = config.grad_clip_norm
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"optimizer.grad_clip_norm={clip_norm} must be above 0, or None for no clipping.")
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, optimizer), schedule


def accumulate_gradients(compute, batch, key, parts, carry=None):
    """Means over equal parts of a batch, worked through one after another: the whole batch's in less memory.

    Args:
      compute: (carry, batch, key) → (values, carry), the values being means over the batch.
      batch: a pytree of arrays [b, …].
      key: for randomness; every part gets one of its own.
      parts: their number; 1 computes on the whole batch, with `key` itself.
      carry: what goes from part to part.

    Returns:
      values, carry.

    Raises:
      ValueError: the batch does not divide.
    """
    if parts < 1:
        raise ValueError(f"accumulation_steps={parts} must be at least 1.")
    if parts == 1:
        return compute(carry, batch, key)
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % parts:
        raise ValueError(f"a batch of {size} does not divide into accumulation_steps={parts} parts.")

    def split(x):
        # Every parts-th row, so that each part is spread over the devices as the whole batch is.
        x = x.reshape(size // parts, parts, *x.shape[1:])
        return sharding.constrain(jnp.moveaxis(x, 1, 0), None, "batch", *[None] * (x.ndim - 2))

    def add(before, part):
        total, carry = before
        index, rows = part
        values, carry = compute(carry, rows, jax.random.fold_in(key, index))
        return (jax.tree.map(lambda t, x: t + x / parts, total, values), carry), None

    rows = jax.tree.map(split, batch)
    shapes, _ = jax.eval_shape(compute, carry, jax.tree.map(lambda x: x[0], rows), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, (zeros, carry), (jnp.arange(parts), rows))[0]


def ema_decay(config, updates):
    """The average's decay at update number `updates` (the first is 1)."""
    if not config.ema_warmup:
        return config.ema_decay
    return jnp.minimum(config.ema_decay, (1 + updates) / (10 + updates))
