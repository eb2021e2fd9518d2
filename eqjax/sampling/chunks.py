"""Samples any number of columns with the same compiled programs.

A chunk is an array with room for a fixed number of columns, and the number of columns in it. That number is data: the
program's loop ends there, so a chunk of three columns costs three columns. Guidance scales, classes and noise per
column are parts of the chunk, so they are data too. The host drives chunk after chunk; nothing that is compiled depends
on the number of columns of the image. Without a window the KV cache has to: it then has room for a power of two.

Letters: B batch, C columns that a chunk has room for, P prefix columns, D latent size.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped
import numpy as np

from eqjax.generator import Generator
from eqjax.sampling import sampler, split_rows
from eqjax.sampling.class_schedule import Blend, ClassSchedule
from eqjax.sampling.sampler import ColumnInputs, Sampler, SamplerInputs, SamplerState
from eqjax.typing import AnyArray

# Columns that a chunk has room for, and between two progress reports at most.
CHUNK_COLUMNS = 16


def cache_columns(generator: Generator, num_columns: int | None) -> int:
    """Returns the columns of the KV cache: the window, or without one a power of two ≥ 16.

    Raises:
      ValueError: a generator without a window has no end to its columns.
    """
    if generator.window_size is not None:
        return generator.window_size
    if num_columns is None:
        raise ValueError("a generator without a window (window_size=None) sees all columns: give num_columns.")
    return max(16, 1 << (num_columns - 1).bit_length())


@functools.partial(jax.jit, static_argnames="num_columns")
def begin(inputs: SamplerInputs, first_classes: Blend, *, num_columns: int) -> tuple[Sampler, SamplerState]:
    """Returns the sampler, and the state before column 0.

    Args:
      inputs: the inputs.
      first_classes: classes of column 0, scalars.
      num_columns: columns of the KV cache, see `cache_columns`.
    """

    def run(inputs: SamplerInputs, first_classes: Blend) -> dict[str, Any]:
        made = sampler.make_sampler(inputs)
        return {"made": made, "state": sampler.init_state(made, first_classes, num_columns)}

    found = split_rows.run(run, inputs.mesh, inputs=inputs, first_classes=first_classes)
    return found["made"], found["state"]


@jax.jit
def sample_chunk(
    made: Sampler,
    state: SamplerState,
    source: Shaped[AnyArray, "..."],
    columns: ColumnInputs,
    count: Int[AnyArray, ""],
) -> tuple[SamplerState, Float[jax.Array, "B C D"]]:
    """Samples the columns of one chunk.

    Args:
      made: a `Sampler`.
      state: the state before the columns. It is not donated, so that a panorama can go on after an interruption.
      source: a random key, keys [B], or the noise of the chunk's columns [B, C, D].
      columns: inputs of each column, [C]; those beyond `count` are not used.
      count: number of columns in the chunk, 0 … C.

    Returns:
      The state after the columns, and their latents; those beyond `count` are 0.
    """
    source, columns = jnp.asarray(source), jax.tree.map(jnp.asarray, columns)
    batch_size, size = state.context.shape[0] // (2 if made.is_guided else 1), columns.guidance_scale.shape[0]
    if made.mesh is not None and jnp.issubdtype(source.dtype, jax.dtypes.prng_key):
        source = split_rows.noise_of_chunk(source, state.column, (batch_size, size, made.generator.latent_dim))
    given = dict(made=made, state=state, source=source, columns=columns, count=count)
    found = split_rows.run(_sample_rows, made.mesh, {"state": state, "latents": 0}, **given)
    return found["state"], found["latents"]


def _sample_rows(
    made: Sampler,
    state: SamplerState,
    source: Shaped[jax.Array, "..."],
    columns: ColumnInputs,
    count: Int[AnyArray, ""],
) -> dict[str, Any]:
    """Does what `sample_chunk` does, for all rows or those of one device."""
    has_keys = jnp.issubdtype(source.dtype, jax.dtypes.prng_key)

    def step(i: jax.Array, carry: tuple[SamplerState, jax.Array]) -> tuple[SamplerState, jax.Array]:
        state, latents = carry
        column = jax.tree.map(lambda a: a[i], columns)
        state, latent = sampler.sample_next(made, state, source, state.column if has_keys else i, column)
        return state, latents.at[:, i].set(latent)

    batch_size = state.context.shape[0] // (2 if made.is_guided else 1)
    latents = jnp.zeros((batch_size, columns.guidance_scale.shape[0], made.generator.latent_dim), jnp.float32)
    state, latents = jax.lax.fori_loop(0, count, step, (state, latents))
    return {"state": state, "latents": latents}


@jax.jit
def prefill_chunk(
    made: Sampler,
    state: SamplerState,
    latents: Float[AnyArray, "B C D"],
    next_classes: Blend,
    count: Int[AnyArray, ""],
) -> SamplerState:
    """Fills the KV cache with the known columns of one chunk; returns the state after them.

    Args:
      made: a `Sampler`.
      state: the state before the columns.
      latents: the known columns; those beyond `count` are not used.
      next_classes: classes of the column after each, [C].
      count: number of columns in the chunk, 0 … C.
    """

    def run(
        made: Sampler, state: SamplerState, latents: jax.Array, next_classes: Blend, count: jax.Array
    ) -> dict[str, Any]:
        def step(i: jax.Array, state: SamplerState) -> SamplerState:
            return sampler.decode_step(made, state, latents[:, i], jax.tree.map(lambda a: a[i], next_classes))

        return {"state": jax.lax.fori_loop(0, count, step, state)}

    classes = jax.tree.map(jnp.asarray, next_classes)
    given = dict(made=made, state=state, latents=jnp.asarray(latents), next_classes=classes, count=count)
    return split_rows.run(run, made.mesh, {"state": state}, **given)["state"]


def pad(array: Shaped[np.ndarray, "..."], size: int, axis: int) -> Shaped[np.ndarray, "..."]:
    """Returns an array with zeros behind it along an axis, up to a size."""
    widths = [(0, size - array.shape[axis] if i == axis else 0) for i in range(array.ndim)]
    return np.pad(array, widths)


def next_classes(schedule: ClassSchedule, first: int, size: int, num_columns: int | None) -> Blend:
    """Returns the classes of the columns after `size` columns from `first` on; the last column of an image has none."""
    indices = first + 1 + np.arange(size)
    return schedule.at(indices if num_columns is None else np.minimum(indices, num_columns - 1))


def prefill_columns(
    made: Sampler,
    state: SamplerState,
    prefix: Float[np.ndarray, "B P D"],
    schedule: ClassSchedule,
    place: Callable[[np.ndarray], Any] = lambda rows: rows,
) -> SamplerState:
    """Fills the KV cache with the columns with which an image begins.

    Args:
      made: a `Sampler`.
      state: the state before column 0.
      prefix: the columns.
      schedule: classes along the columns.
      place: moves an array with a row per image to devices.

    Returns:
      The state after the columns.
    """
    for first in range(0, prefix.shape[1], CHUNK_COLUMNS):
        chunk = prefix[:, first : first + CHUNK_COLUMNS]
        after = next_classes(schedule, first, CHUNK_COLUMNS, None)
        state = prefill_chunk(made, state, place(pad(chunk, CHUNK_COLUMNS, 1)), after, np.int32(chunk.shape[1]))
    return state


def sample_chunks(
    made: Sampler,
    state: SamplerState,
    source: Any,
    columns: ColumnInputs,
    first: int,
    place: Callable[[np.ndarray], Any] = lambda rows: rows,
) -> Iterator[tuple[Float[jax.Array, "B C D"], int]]:
    """Samples the columns of an image from `first` on; yields latents of chunks, and the number of columns in each.

    Args:
      made: a `Sampler`.
      state: the state before the columns.
      source: a random key, keys [B], or the noise of all columns of the image, numpy [B, L, D].
      columns: inputs of each column of the image, numpy [L].
      first: index of the first column.
      place: moves an array with a row per image to devices.
    """
    is_noise, size = isinstance(source, np.ndarray), CHUNK_COLUMNS
    for start in range(first, columns.guidance_scale.shape[0], size):
        stop = min(start + size, columns.guidance_scale.shape[0])
        chunk = jax.tree.map(lambda a, part=slice(start, stop): pad(a[part], size, 0), columns)
        noise = place(pad(source[:, start:stop], size, 1)) if is_noise else source
        state, latents = sample_chunk(made, state, noise, chunk, np.int32(stop - start))
        yield latents, stop - start
