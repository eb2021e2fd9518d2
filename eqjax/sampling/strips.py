"""Samples a panorama strip by strip, with one program whose classes, guidance and temperature may change at any column.

A column is sampled in two steps: the transformer is fed with the column before it and with the column's own classes,
then the flow is integrated. So everything that governs a column is read when it is sampled, and nothing before: a
steering applies from the next column on.

Letters: B batch, C columns that a strip has room for, P prefix columns, D latent size.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped
import numpy as np

from eqjax.generator import Generator, KVCache
from eqjax.sampling import chunks, sampler
from eqjax.sampling.class_schedule import Blend, ClassSchedule
from eqjax.sampling.sampler import Sampler, SamplerInputs
from eqjax.typing import AnyArray


@flax.struct.dataclass
class StripState:
    """The state between two columns of a panorama.

    Attributes:
      column: index of the next column, an int32 scalar.
      latent: latents of the column before it, to which the transformer is not yet applied; zeros before column 0.
      cache: KV cache of the columns before that one.
    """

    column: Any
    latent: Float[AnyArray, "B D"]
    cache: KVCache


@jax.jit
def begin(inputs: SamplerInputs) -> Sampler:
    """Returns the sampler of a panorama, whose conditions have room for two segments at least.

    So a panorama that is steered to a blend of two classes needs no other program than one that nobody steers.

    Args:
      inputs: the inputs.
    """
    made = sampler.make_sampler(inputs)
    if inputs.labels.shape[1] > 1:
        return made
    return dataclasses.replace(made, conditions=jax.tree.map(lambda a: jnp.concatenate([a, a]), made.conditions))


def first_state(generator: Generator, batch_size: int, is_guided: bool, num_columns: int) -> StripState:
    """Returns the state before column 0.

    Args:
      generator: the module.
      batch_size: B.
      is_guided: whether rows of the null class are computed too.
      num_columns: columns of the KV cache, see `eqjax.sampling.chunks.cache_columns`.
    """
    latent = np.zeros((batch_size, generator.latent_dim), np.float32)
    return StripState(np.int32(0), latent, generator.init_cache(batch_size * (2 if is_guided else 1), num_columns))


def prefill(
    made: Sampler, state: StripState, prefix: Float[np.ndarray, "B P D"], schedule: ClassSchedule
) -> StripState:
    """Returns the state after the columns with which a panorama begins.

    Args:
      made: a `Sampler`.
      state: the state before column 0.
      prefix: the columns, P ≥ 1.
      schedule: classes along the columns.
    """
    rows, generator = state.cache.keys.shape[1], made.generator
    fed = sampler.SamplerState(jnp.int32(0), jnp.zeros((rows, generator.width), generator.dtype), state.cache)
    # The last column is fed when the next one is sampled.
    fed = chunks.prefill_columns(made, fed, prefix[:, :-1], schedule)
    return StripState(np.int32(prefix.shape[1]), prefix[:, -1], fed.cache)


@jax.jit
def sample_strip(
    made: Sampler,
    state: StripState,
    keys: Shaped[AnyArray, "B"],
    scales: Float[AnyArray, "C"],
    classes: Blend,
    count: Any,
) -> tuple[StripState, Float[jax.Array, "B C D"]]:
    """Samples the columns of one strip.

    Args:
      made: a `Sampler`.
      state: the state before the columns. It is not donated, so that a panorama can go on after an interruption.
      keys: a random key per row.
      scales: guidance scale of each column; those beyond `count` are not used.
      classes: classes of each column, [C].
      count: number of columns, an int32 scalar, 0 … C.

    Returns:
      The state after the columns, and their latents; those beyond `count` are 0.
    """
    state, scales, classes = jax.tree.map(jnp.asarray, (state, scales, classes))
    batch_size = state.latent.shape[0]

    def step(i: jax.Array, carry: tuple[StripState, jax.Array]) -> tuple[StripState, jax.Array]:
        state, latents = carry
        blend = jax.tree.map(lambda a: a[i], classes)
        first = sampler.blend_conditions(made.conditions, blend).first
        # Zeros take the place of the column before column 0, which overwrites them in the cache.
        before = sampler.SamplerState(jnp.maximum(state.column - 1, 0), first, state.cache)
        fed = sampler.decode_step(made, before, jnp.asarray(state.latent), blend)
        context = jnp.where(state.column == 0, first, fed.context)
        noise = sampler.column_noise(jnp.asarray(keys), state.column, (batch_size, made.generator.latent_dim))
        latent = sampler.sample_column(made, context, jnp.asarray(made.temperature * noise), scales[i])
        return StripState(state.column + 1, latent, fed.cache), latents.at[:, i].set(latent)

    latents = jnp.zeros((batch_size, scales.shape[0], made.generator.latent_dim))
    return jax.lax.fori_loop(0, count, step, (state, latents))
