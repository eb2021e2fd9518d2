"""Sampling latents column by column, in constant time and memory per column.

    column k:  noise ──Euler steps under the flow head──▶ latent k ──transformer, ring──▶ context k + 1

What does not change is computed once: the keys and values of the condition tokens per class, and
the flow head's modulations of all steps per column. With guidance the batch is doubled, class
first, null second; both halves share the state of the flow and its embedding.

Letters: B batch, L columns, D latent size, N flow steps, E width.

Source: Equivariant Image Modeling, arXiv 2503.18948, sections 3.2 and 3.3.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import flow
from eqjax.generator import Condition, Ring


@flax.struct.dataclass
class SamplerState:
    """Where a sampling run stands; continuing from it needs nothing else.

    Attributes:
      column: number of the next column, int32 [].
      context: of the next column, [B or 2B, E].
      ring: keys and values of the last columns.
      condition: what the classes contribute.
    """

    column: jax.Array
    context: jax.Array
    ring: Ring
    condition: Condition


def start(generator, params, labels, num_columns, guided):
    """The `SamplerState` before the first column.

    Args:
      generator, params: module and parameter tree.
      labels: [B], in 0 … num_classes.
      num_columns: how many columns will be drawn; only a generator without a window needs it.
      guided: also carry the null class.
    """
    if guided:
        labels = jnp.concatenate([labels, jnp.full_like(labels, generator.num_classes)])
    condition = generator.apply({"params": params}, labels, method="condition")
    ring = generator.empty_ring(labels.shape[0], num_columns)
    return SamplerState(jnp.zeros((), jnp.int32), condition.first, ring, condition)


def advance(generator, params, state, latent):
    """Takes in the next column's latent [B, D]: the state after it."""
    rows = state.context.shape[0] // latent.shape[0]
    latent = jnp.tile(latent, (rows, 1))  # Class and null see the same columns.
    context, ring = generator.apply(
        {"params": params}, latent, state.column, state.ring, state.condition, method="next_context"
    )
    return state.replace(column=state.column + 1, context=context, ring=ring)


def draw_column(generator, params, context, noise, guidance, num_flow_steps):
    """Integrates the flow of one column.

    Args:
      context: [B, E], or [2B, E] with guidance (class first, null second).
      noise: [B, D].
      guidance: scalar; without effect where context has B rows.
      num_flow_steps: N.

    Returns:
      latent, float32 [B, D].
    """
    call = functools.partial(generator.apply, {"params": params})
    guided = context.shape[0] != noise.shape[0]
    times = flow.step_times(num_flow_steps)[:, None]
    modulations = call(times, context[None], method="flow_modulations")  # [N, B or 2B, …]

    def velocity(z, modulation):
        x = call(z, method="flow_embed")
        if not guided:
            return call(x, modulation, method="flow_denoise")
        both = call(jnp.concatenate([x, x]), modulation, method="flow_denoise")
        return flow.guide(*jnp.split(both, 2), guidance)

    return flow.euler(velocity, noise, modulations)


def sample_latents(
    generator,
    params,
    labels,
    *,
    num_columns,
    guidance_scale=1.0,
    guidance_schedule="linear",
    num_flow_steps=100,
    temperature=1.0,
    noise=None,
    key=None,
    prefix=None,
):
    """Draws latents of `num_columns` columns for every label.

    Jitted, and usable inside a jit of the caller's, who then gives concrete `num_columns`,
    `num_flow_steps` and `guidance_schedule`. Compiles once per combination of shapes, number of
    steps, and of whether there is guidance; the value of the guidance scale is free.

    Args:
      generator: a `Generator`.
      params: its parameters.
      labels: integers [B], in 0 … num_classes (the last is the null class).
      num_columns: L ≥ 1, with the prefix.
      guidance_scale: g ≥ 0; 1 is no guidance and takes half the work.
      guidance_schedule: "linear", 1 + (g − 1)(k + 1)/L at column k, or "constant".
      num_flow_steps: Euler steps N ≥ 1.
      temperature: scale on the initial noise, ≥ 0.
      noise: initial noise [B, L, D], prefix columns included (and not read there); or
      key: a JAX key to draw it from. Column k of row b then depends on key, k and b alone.
      prefix: latents [B, P, D], P ≤ L, that the sample begins with.

    Returns:
      latents, float32 [B, L, D], scaled as the generator's are.

    Raises:
      ValueError: an argument out of its range, or of another shape.
    """
    labels = jnp.asarray(labels)
    _check(generator, labels, num_columns, guidance_scale, guidance_schedule, num_flow_steps, temperature)
    _check_arrays(generator, labels, num_columns, noise, key, prefix)
    # A traced scale may be any number, so it takes the guided path.
    guided = not (isinstance(guidance_scale, (int, float, np.number)) and guidance_scale == 1)
    scales = flow.guidance_scales(guidance_scale, guidance_schedule, num_columns)
    if prefix is None:
        prefix = jnp.zeros((labels.shape[0], 0, generator.latent_dim))
    prefix = jnp.asarray(prefix, jnp.float32)
    noise = key if noise is None else jnp.asarray(noise, jnp.float32)
    return _sample(generator, guided, num_flow_steps, params, labels, scales, temperature, noise, prefix)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sample(generator, guided, num_flow_steps, params, labels, scales, temperature, noise, prefix):
    num_columns, given = scales.shape[0], prefix.shape[1]
    is_key = jnp.issubdtype(noise.dtype, jax.dtypes.prng_key)

    def initial_noise(k):
        if is_key:
            drawn = jax.random.normal(jax.random.fold_in(noise, k), (labels.shape[0], generator.latent_dim))
        else:
            drawn = noise[:, k]
        return temperature * drawn

    def take_in(state, latent):
        return advance(generator, params, state, latent), None

    def draw(state, scale):
        noise_k = initial_noise(state.column)
        latent = draw_column(generator, params, state.context, noise_k, scale, num_flow_steps)
        return advance(generator, params, state, latent), latent

    state = start(generator, params, labels, num_columns, guided)
    state, _ = jax.lax.scan(take_in, state, jnp.moveaxis(prefix, 1, 0))
    _, latents = jax.lax.scan(draw, state, scales[given:])  # [L - P, B, D]
    return jnp.concatenate([prefix, jnp.moveaxis(latents, 0, 1)], axis=1)


def _check(generator, labels, num_columns, guidance_scale, guidance_schedule, num_flow_steps, temperature):
    def concrete(value):
        return not isinstance(value, jax.core.Tracer)

    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers of shape [batch], not {labels.dtype} {labels.shape}.")
    if concrete(labels):
        wrong = [int(n) for n in np.asarray(labels) if not 0 <= n <= generator.num_classes]
        if wrong:
            raise ValueError(
                f"labels {wrong} are outside 0 … {generator.num_classes} (this generator has "
                f"{generator.num_classes} classes; {generator.num_classes} is the null class)."
            )
    if num_columns < 1:
        raise ValueError(f"num_columns={num_columns} must be ≥ 1.")
    if num_flow_steps < 1:
        raise ValueError(f"num_flow_steps={num_flow_steps} must be ≥ 1.")
    if concrete(guidance_scale) and not guidance_scale >= 0:
        raise ValueError(f"guidance_scale={guidance_scale} must be ≥ 0 (1 is no guidance).")
    if concrete(temperature) and not temperature >= 0:
        raise ValueError(f"temperature={temperature} must be ≥ 0.")
    if guidance_schedule not in flow.SCHEDULES:
        raise ValueError(f"guidance_schedule={guidance_schedule!r} is not one of {flow.SCHEDULES}.")


def _check_arrays(generator, labels, num_columns, noise, key, prefix):
    batch, size = labels.shape[0], generator.latent_dim
    if (noise is None) == (key is None):
        raise ValueError("give either noise or key (jax.random.key(seed)), and not both.")
    if noise is not None and noise.shape != (batch, num_columns, size):
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}; expected [batch, num_columns, latent_dim] = "
            f"{(batch, num_columns, size)}."
        )
    if key is not None and not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError("key must be a typed key: make it with jax.random.key(seed).")
    if prefix is None:
        return
    if prefix.ndim != 3 or prefix.shape[0] != batch or prefix.shape[2] != size:
        raise ValueError(
            f"prefix has shape {tuple(prefix.shape)}; expected [batch, columns, latent_dim] = "
            f"[{batch}, ≤ {num_columns}, {size}]."
        )
    if prefix.shape[1] > num_columns:
        raise ValueError(f"prefix has {prefix.shape[1]} columns, more than num_columns={num_columns} in all.")
