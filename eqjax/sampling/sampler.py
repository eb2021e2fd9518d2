"""Sampling latents column by column, in constant time and memory per column.

    column k:  noise ──solver steps under the flow head──▶ latent k ──transformer, KV cache──▶ context k + 1

Everything that does not change is computed once: the keys and values of the condition tokens per class (of the
null class once for the whole batch), parameters in the compute dtype, and the flow head's modulations
for all steps of a column in few large products. With guidance the batch is doubled, class first, null
second; both halves share the state of the flow and its embedding.

`sample_columns` is the loop of both `sample_latents` and panoramas.

Letters: B batch, R = B or 2B rows, L columns, P prefix columns, S segments of classes, D latent size,
M evaluations of the flow head, E width.

Source: Equivariant Image Modeling, arXiv 2503.18948, sections 3.2 and 3.3.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple, Unpack

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped
import numpy as np

from eqjax import flow, sharding
from eqjax.generator import Condition, Generator, KVCache, Modulations
from eqjax.sampling.checks import check_labels, check_noise_source, check_num_columns, check_prefix
from eqjax.sampling.class_schedule import Blend, class_schedule
from eqjax.sampling.options import SamplingKeywords, SamplingOptions
from eqjax.tokenizer import Tokenizer
from eqjax.typing import AnyArray, Params, Scalar

# Modulations held in memory at once. Larger chunks would be read back from slow memory without saving reads of weights.
MODULATION_BYTES = 256 * 2**20
# Columns between two progress reports, at most.
CHUNK_COLUMNS = 16
# Positions without a bound.
_MAX_INT32 = 2**31 - 1


@flax.struct.dataclass
class SamplerInputs:
    """Arguments of a compiled sampling program, which makes a `Sampler` from them.

    Programs are compiled once per generator, `is_guided`, shapes and number of evaluations; other values are free.

    Attributes:
      generator: the module.
      is_guided: whether rows of the null class are computed too.
      params: parameters of the generator.
      labels: classes along the columns, in 0 … num_classes.
      solver_table: the flow solver.
      temperature: scale on the initial noise.
      max_position: largest position by which queries of cross-attention are rotated.
    """

    generator: Generator = flax.struct.field(pytree_node=False)
    is_guided: bool = flax.struct.field(pytree_node=False)
    params: Params
    labels: Int[AnyArray, "B S"]
    solver_table: flow.SolverTable
    temperature: Scalar
    max_position: Scalar

    @classmethod
    def create(
        cls, generator: Generator, params: Params, labels: Int[AnyArray, "B S"], options: SamplingOptions
    ) -> "SamplerInputs":
        """Returns the inputs of a sampling with options; guidance scales are given per column, see `ColumnInputs`."""
        position = np.int32(_MAX_INT32) if options.max_position is None else options.max_position
        table = options.solver_table()
        return cls(generator, options.is_guided, params, labels, table, options.temperature, position)


@flax.struct.dataclass
class Sampler:
    """Everything that stays the same from column to column.

    Attributes:
      generator: the module.
      is_guided: whether rows of the null class are computed too.
      params: parameters in the compute dtype, see `compute_params`.
      conditions: `Condition` of every segment, leaves [S, …].
      solver_table: the flow solver.
      temperature: scale on the initial noise.
      max_position: largest position by which queries of cross-attention are rotated.
    """

    generator: Generator = flax.struct.field(pytree_node=False)
    is_guided: bool = flax.struct.field(pytree_node=False)
    params: Params
    conditions: Condition
    solver_table: flow.SolverTable
    temperature: Scalar
    max_position: Scalar

    def apply(self, *args: Any, method: str) -> Any:
        """Calls a method of the generator with the parameters."""
        return self.generator.apply({"params": self.params}, *args, method=method)


@flax.struct.dataclass
class SamplerState:
    """The state between two columns.

    Attributes:
      column: index of the next column, int32.
      context: context of the next column.
      cache: KV cache of the columns before it.
    """

    column: Int[jax.Array, ""]
    context: Float[jax.Array, "R E"]
    cache: KVCache


class ColumnInputs(NamedTuple):
    """Everything that differs from column to column.

    Attributes:
      guidance_scale: classifier-free guidance scale of each column.
      next_classes: classes of the column after each column.
    """

    guidance_scale: Float[AnyArray, "L"]
    next_classes: Blend


def compute_params(module: Generator | Tokenizer, params: Params) -> Params:
    """Casts parameters to a module's compute dtype once, so that modules do not cast them inside every loop.

    Parameters of norms and embeddings keep their dtype: they are used in float32.
    """

    def cast(path: tuple[Any, ...], leaf: AnyArray) -> AnyArray:
        names = [key.key for key in path]
        keep = names[-1] not in ("kernel", "bias") or "norm" in names[-2]
        return leaf if keep else leaf.astype(module.dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def make_conditions(generator: Generator, params: Params, labels: Int[AnyArray, "B S"], is_guided: bool) -> Condition:
    """Computes the conditions of all rows and segments, with guidance also those of the null class.

    Every class is computed once if the batch has more rows than there are classes; the null class is computed once.

    Args:
      generator: the module.
      params: its parameters.
      labels: classes along the columns, in 0 … num_classes.
      is_guided: appends rows B … 2B − 1 of the null class.

    Returns:
      `Condition` with leaves [S, depth, B or 2B, …] (`first`: [S, B or 2B, E]).
    """
    batch_size, segments = labels.shape
    num_labels, null = generator.num_classes + 1, generator.num_classes
    rows = labels.T.reshape(-1)  # [S · B]
    if num_labels <= rows.shape[0]:
        unique, index, null_index = jnp.arange(num_labels), rows, null
    else:
        unique = jnp.append(rows, null) if is_guided else rows
        index, null_index = jnp.arange(rows.shape[0]), rows.shape[0]
    index = index.reshape(segments, batch_size)
    if is_guided:
        index = jnp.concatenate([index, jnp.full_like(index, null_index)], axis=1)
    found: Any = generator.apply({"params": params}, unique, method="condition")
    keys, values = (jnp.moveaxis(jnp.take(a, index, axis=1), 1, 0) for a in (found.keys, found.values))
    return Condition(keys, values, found.first[index])


def make_sampler(inputs: SamplerInputs) -> Sampler:
    """Casts the parameters and computes the conditions of a `Sampler`."""
    params = compute_params(inputs.generator, inputs.params)
    conditions = make_conditions(inputs.generator, params, inputs.labels, inputs.is_guided)
    return Sampler(
        generator=inputs.generator,
        is_guided=inputs.is_guided,
        params=params,
        conditions=conditions,
        solver_table=inputs.solver_table,
        temperature=inputs.temperature,
        max_position=inputs.max_position,
    )


def blend_conditions(conditions: Condition, blend: Blend) -> Condition:
    """Returns the `Condition` of one column, a segment's or interpolated between it and the next.

    Args:
      conditions: the `Condition` of all segments, leaves [S, …].
      blend: the classes of the column, scalars.
    """
    if conditions.first.shape[0] == 1:
        return jax.tree.map(lambda a: a[0], conditions)

    def mix(a: jax.Array) -> jax.Array:
        now, then = (jax.lax.dynamic_index_in_dim(a, blend.segment + i, keepdims=False) for i in (0, 1))
        return now + jnp.asarray(blend.weight, a.dtype) * (then - now)

    return jax.tree.map(mix, conditions)


def init_state(sampler: Sampler, first_classes: Blend, num_columns: int) -> SamplerState:
    """Returns the state before column 0.

    Args:
      sampler: a `Sampler`.
      first_classes: classes of column 0, scalars.
      num_columns: number of columns that will be sampled; it bounds the size of the cache.
    """
    context = blend_conditions(sampler.conditions, first_classes).first
    cache = sampler.generator.init_cache(context.shape[0], num_columns)
    return SamplerState(jnp.zeros((), jnp.int32), context, cache)


def decode_step(
    sampler: Sampler, state: SamplerState, latent: Float[jax.Array, "B D"], next_classes: Blend
) -> SamplerState:
    """Feeds one column to the transformer; returns the state for the next column.

    Args:
      sampler: a `Sampler`.
      state: the state at the column.
      latent: latents of the column.
      next_classes: classes of the column after it, scalars.
    """
    repeats = state.context.shape[0] // latent.shape[0]
    latent = jnp.tile(latent, (repeats, 1))  # Class and null rows see the same columns.
    condition = blend_conditions(sampler.conditions, next_classes)
    context, cache = sampler.apply(
        latent, state.column, state.cache, condition, sampler.max_position, method="decode_step"
    )
    return SamplerState(state.column + 1, context, cache)


def prefill(
    sampler: Sampler, state: SamplerState, latents: Float[jax.Array, "P B D"], next_classes: Blend
) -> SamplerState:
    """Fills the KV cache with known columns; returns the state after them.

    Args:
      sampler: a `Sampler`.
      state: the state before the columns.
      latents: the known columns.
      next_classes: classes of the column after each, [P].
    """
    return jax.lax.scan(lambda state, x: (decode_step(sampler, state, *x), None), state, (latents, next_classes))[0]


def sample_column(
    sampler: Sampler, context: Float[jax.Array, "R E"], noise: Float[jax.Array, "B D"], guidance_scale: Scalar
) -> Float[jax.Array, "B D"]:
    """Integrates the flow of one column from noise to latents.

    Args:
      sampler: a `Sampler`.
      context: context of the column; with guidance rows of the classes first, of the null class second.
      noise: initial noise.
      guidance_scale: unused without guidance.

    Returns:
      Latents, float32.
    """
    head = sampler.generator
    values = context.shape[0] * (3 * head.flow_depth + 2) * head.flow_width
    chunk_size = max(1, MODULATION_BYTES // (values * jnp.dtype(head.dtype).itemsize))

    def modulations(times: Float[jax.Array, "n"]) -> Modulations:
        return sampler.apply(times[:, None], context[None], method="flow_modulations")  # [n, R, …]

    def velocity(z: Float[jax.Array, "B D"], modulation: Modulations) -> Float[jax.Array, "B D"]:
        x = sampler.apply(z, method="flow_embed")
        if not sampler.is_guided:
            return sampler.apply(x, modulation, method="flow_denoise")
        both = sampler.apply(jnp.concatenate([x, x]), modulation, method="flow_denoise")
        conditional, unconditional = jnp.split(both, 2)
        return jnp.asarray(flow.classifier_free_guidance(conditional, unconditional, guidance_scale))

    return flow.integrate(velocity, noise, sampler.solver_table, modulations, chunk_size)


def column_noise(
    source: Shaped[jax.Array, "..."], column: Int[AnyArray, ""] | int, shape: tuple[int, int]
) -> Float[jax.Array, "B D"]:
    """Returns the initial noise of a column.

    Args:
      source: one random key for the batch; a key per row, [B], with which a row's noise depends on its own key and
        not on its place; or the noise of all columns, [B, L, D].
      column: index of the column.
      shape: B, D.
    """
    if not jnp.issubdtype(source.dtype, jax.dtypes.prng_key):
        return source[:, column]
    if source.ndim == 0:
        return jax.random.normal(jax.random.fold_in(source, column), shape)
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, column), shape[1:]))(source)


def sample_columns(
    sampler: Sampler, state: SamplerState, source: Shaped[jax.Array, "..."], columns: ColumnInputs
) -> tuple[SamplerState, Float[jax.Array, "L B D"]]:
    """Samples columns one after another.

    Args:
      sampler: a `Sampler`.
      state: the state before the first column.
      source: random key, keys or noise, see `column_noise`.
      columns: inputs of each column.

    Returns:
      The state after the columns, and their latents.
    """
    batch_size = state.context.shape[0] // (2 if sampler.is_guided else 1)

    def sample_next(state: SamplerState, column: ColumnInputs) -> tuple[SamplerState, jax.Array]:
        noise = column_noise(source, state.column, (batch_size, sampler.generator.latent_dim))
        latent = sample_column(sampler, state.context, jnp.asarray(sampler.temperature * noise), column.guidance_scale)
        return decode_step(sampler, state, latent, column.next_classes), latent

    return jax.lax.scan(sample_next, state, columns)


# `sample_columns`, jitted; the state is donated.
sample_chunk = jax.jit(sample_columns, donate_argnums=1)


def sample_latents(
    generator: Generator,
    params: Params,
    labels: AnyArray | Sequence[int] | Sequence[Sequence[int]],
    *,
    num_columns: int,
    class_columns: Sequence[int | None] | None = None,
    transition: int = 0,
    noise: AnyArray | None = None,
    key: AnyArray | None = None,
    prefix: AnyArray | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int], object] | None = None,
    **options: Unpack[SamplingKeywords],
) -> Float[jax.Array, "B L D"]:
    """Samples latents of `num_columns` columns for every label.

    The function is jitted and may be called inside a jitted function, with concrete `num_columns`,
    `num_flow_steps` and strings. It compiles once per combination of shapes, number of evaluations and
    use of guidance; one program serves all solvers, guidance scales and other values.

    Args:
      generator: a `Generator`.
      params: its parameters.
      labels: integers [B] in 0 … num_classes (the last is the null class); or [B, S], one class
        after another along the columns.
      num_columns: L ≥ 1, prefix included.
      class_columns: columns of each of the S classes; None for the last one: to the end.
      transition: columns over which one class blends into the next, see `eqjax.sampling.class_schedule`.
      noise: initial noise [B, L, D]; values at prefix columns are not used. Give either noise or key.
      key: random key from which the noise of column k of row b is drawn, dependent on key, k and b alone. Or a
        key per row, [B]: the noise then depends on the row's key and k alone.
      prefix: latents [B, P, D], P ≤ L, with which the sample begins.
      mesh: a mesh of `eqjax.sharding.make_mesh`, along whose data axes the batch is sharded.
      progress: called with the number of columns sampled since its last call, at most 16. Columns are then
        sampled in chunks, which is impossible inside a jitted function; latents differ by rounding at most.
      **options: fields of `SamplingOptions`, with its defaults: guidance_scale (1.0, or one per column, [L]),
        guidance_schedule ("linear"), num_flow_steps (100), solver ("euler"), time_grid ("uniform"),
        temperature (1.0), max_position (None).

    Returns:
      Latents, float32, scaled as the generator's are.

    Raises:
      ValueError: an argument is out of its range, or has another shape.
      TypeError: an argument is unknown.

    Example:
      >>> generator = Generator(width=16, depth=1, num_heads=2, latent_dim=4, flow_width=8, flow_depth=1)
      >>> params = generator.init_params(jax.random.key(0))
      >>> key = jax.random.key(1)
      >>> sample_latents(generator, params, [7, 8], num_columns=5, num_flow_steps=2, key=key).shape
      (2, 5, 4)
    """
    sampling_options, labels = SamplingOptions(**options), jnp.asarray(labels)
    batch_size = labels.shape[0] if labels.ndim else 0
    check_labels(generator, labels)
    check_num_columns(num_columns)
    check_noise_source(generator, batch_size, num_columns, noise, key)
    schedule = class_schedule(labels, class_columns, transition)
    schedule.check_length(num_columns)
    if prefix is None:
        prefix = jnp.zeros((batch_size, 0, generator.latent_dim))
    check_prefix(generator, batch_size, num_columns, prefix)
    next_classes = schedule.at(np.minimum(np.arange(1, num_columns + 1), num_columns - 1))
    columns = ColumnInputs(sampling_options.guidance_scales(num_columns), next_classes)
    inputs = SamplerInputs.create(generator, params, labels.reshape(batch_size, -1), sampling_options)
    prefix = jnp.asarray(prefix, jnp.float32)
    source = jnp.asarray(key) if noise is None else jnp.asarray(noise, jnp.float32)
    if mesh is not None:
        inputs, prefix, source = _shard_inputs(mesh, inputs, prefix, source)
    first_classes = jax.tree.map(lambda a: a[0], schedule.at([0]))
    if progress is None:
        return _sample(inputs, prefix, first_classes, columns, source)
    return _sample_in_chunks(inputs, prefix, first_classes, columns, source, progress)


def _shard_inputs(
    mesh: jax.sharding.Mesh, inputs: SamplerInputs, prefix: jax.Array, source: jax.Array
) -> tuple[SamplerInputs, jax.Array, jax.Array]:
    """Replicates parameters over a mesh, and shards arrays with a row per image along its data axes.

    Raises:
      ValueError: the rows do not divide among the devices.
    """
    rows = inputs.labels.shape[0] * sharding.batch_shard(mesh)[1]
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % devices:
        raise ValueError(
            f"a batch of {rows} does not divide among {devices} devices of the mesh (data × fsdp): give a multiple of "
            f"{devices} labels, and drop the surplus images."
        )
    replicated = sharding.replicated(mesh)
    labels, prefix = (sharding.shard_batch(a, mesh) for a in (inputs.labels, prefix))
    source = sharding.shard_batch(source, mesh) if source.ndim == 3 else jax.device_put(source, replicated)
    inputs = dataclasses.replace(inputs, params=jax.device_put(inputs.params, replicated), labels=labels)
    return inputs, prefix, source


def _prefill_prefix(
    inputs: SamplerInputs, prefix: jax.Array, first_classes: Blend, columns: ColumnInputs
) -> tuple[Sampler, SamplerState, ColumnInputs]:
    """Returns the sampler, its state after the prefix, and the inputs of the remaining columns."""
    sampler = make_sampler(inputs)
    given, remaining = (
        jax.tree.map(lambda a, part=part: a[part], columns)
        for part in (slice(prefix.shape[1]), slice(prefix.shape[1], None))
    )
    state = init_state(sampler, first_classes, columns.guidance_scale.shape[0])
    return sampler, prefill(sampler, state, jnp.moveaxis(prefix, 1, 0), given.next_classes), remaining


_prefill_prefix_alone = jax.jit(_prefill_prefix)


@jax.jit
def _sample(
    inputs: SamplerInputs, prefix: jax.Array, first_classes: Blend, columns: ColumnInputs, source: jax.Array
) -> Float[jax.Array, "B L D"]:
    """Samples all columns in one program."""
    sampler, state, remaining = _prefill_prefix(inputs, prefix, first_classes, columns)
    latents = sample_columns(sampler, state, source, remaining)[1]  # [L - P, B, D]
    return jnp.concatenate([prefix, jnp.moveaxis(latents, 0, 1)], axis=1)


def _sample_in_chunks(
    inputs: SamplerInputs,
    prefix: jax.Array,
    first_classes: Blend,
    columns: ColumnInputs,
    source: jax.Array,
    progress: Callable[[int], object],
) -> Float[jax.Array, "B L D"]:
    """Samples like `_sample`, and reports progress after every chunk."""
    sampler, state, remaining = _prefill_prefix_alone(inputs, prefix, first_classes, columns)
    length = remaining.guidance_scale.shape[0]
    size = -(-length // (-(-length // CHUNK_COLUMNS) or 1)) or 1
    parts = [prefix]
    for first in range(0, length, size):
        # The last chunk may reach beyond the end, so that one program serves all chunks.
        indices = np.minimum(np.arange(first, first + size), length - 1)
        chunk = jax.tree.map(lambda a, i=indices: a[i], remaining)
        state, latents = sample_chunk(sampler, state, source, chunk)
        parts.append(jnp.moveaxis(latents[: length - first], 0, 1))
        progress(jax.block_until_ready(parts[-1]).shape[1])
    return jnp.concatenate(parts, axis=1)
