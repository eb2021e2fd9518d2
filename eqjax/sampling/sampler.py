"""Sampling latents column by column, in constant time and memory per column.

    column k:  noise ──solver steps under the flow head──▶ latent k ──transformer, KV cache──▶ context k + 1

Everything that does not change is computed once: the keys and values of the condition tokens per class (of the
null class once for the whole batch), parameters in the compute dtype, and the flow head's modulations
for all steps of a column in few large products. With guidance the batch is doubled, class first, null
second; both halves share the state of the flow and its embedding.

Everything here is pure and may be traced. `eqjax.sampling.chunks` runs it in programs of a fixed number of columns,
`eqjax.sample_latents` also as one program for a function that is traced.

Letters: B batch, R = B or 2B rows, L columns, P prefix columns, S segments of classes, D latent size,
M evaluations of the flow head, E width.

Source: Equivariant Image Modeling, arXiv 2503.18948, sections 3.2 and 3.3.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped
import numpy as np

from eqjax import flow
from eqjax.generator import Condition, Generator, KVCache, Modulations, gpu_kernels
from eqjax.sampling import fused_columns
from eqjax.sampling.class_schedule import Blend
from eqjax.sampling.options import SamplingOptions
from eqjax.sampling.shortcuts import Shortcuts, integrate
from eqjax.tokenizer import Tokenizer
from eqjax.tracing import is_traced
from eqjax.typing import AnyArray, Params, Scalar

# Modulations held in memory at once. Larger chunks would be read back from slow memory without saving reads of weights.
MODULATION_BYTES = 256 * 2**20
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
      shortcuts: how the flow is integrated.
      mesh: devices each of which samples its rows by itself, see `eqjax.sampling.split_rows`; None: one device, or
        XLA divides the work as arrays are placed.
    """

    generator: Generator = flax.struct.field(pytree_node=False)
    is_guided: bool = flax.struct.field(pytree_node=False)
    params: Params
    labels: Int[AnyArray, "B S"]
    solver_table: flow.SolverTable
    temperature: Scalar
    max_position: Scalar
    shortcuts: Shortcuts
    mesh: jax.sharding.Mesh | None = flax.struct.field(pytree_node=False, default=None)

    @classmethod
    def create(
        cls,
        generator: Generator,
        params: Params,
        labels: Int[AnyArray, "B S"],
        options: SamplingOptions,
        mesh: jax.sharding.Mesh | None = None,
    ) -> "SamplerInputs":
        """Returns the inputs of a sampling with options; guidance scales are given per column, see `ColumnInputs`.

        Args:
          generator: the module.
          params: parameters of the generator.
          labels: classes along the columns, in 0 … num_classes.
          options: the options.
          mesh: the mesh over which the batch will be sharded, if there is one.

        Raises:
          ValueError: the fused kernels are demanded where there are none.
        """
        position = _MAX_INT32 if options.max_position is None else options.max_position
        position = position if is_traced(position) else np.int32(position)  # Not another program for another type.
        shortcuts = options.shortcuts()
        kernels = gpu_kernels.check(shortcuts.gpu_kernels, generator, (params, labels), mesh)
        # A Python float would be float64 if JAX computes with 64 bits.
        temperature = options.temperature if is_traced(options.temperature) else np.float32(options.temperature)
        return cls(
            generator,
            options.is_guided,
            params,
            labels,
            options.solver_table(),
            temperature,
            position,
            dataclasses.replace(shortcuts, gpu_kernels=kernels),
            None if mesh is None or mesh.size == 1 else mesh,
        )


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
      shortcuts: how the flow is integrated.
      mesh: devices each of which samples its rows by itself, see `eqjax.sampling.split_rows`; None: one device, or
        XLA divides the work as arrays are placed.
    """

    generator: Generator = flax.struct.field(pytree_node=False)
    is_guided: bool = flax.struct.field(pytree_node=False)
    params: Params
    conditions: Condition
    solver_table: flow.SolverTable
    temperature: Scalar
    max_position: Scalar
    shortcuts: Shortcuts
    mesh: jax.sharding.Mesh | None = flax.struct.field(pytree_node=False, default=None)

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
        return leaf if keep or leaf.dtype == jnp.dtype(module.dtype) else leaf.astype(module.dtype)

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
        shortcuts=inputs.shortcuts,
        mesh=inputs.mesh,
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


def feed(
    sampler: Sampler,
    latent: Float[jax.Array, "R D"],
    column: Int[jax.Array, ""],
    cache: KVCache,
    condition: Condition,
    layers: Callable[..., tuple[jax.Array, KVCache]] | None = None,
) -> tuple[Float[jax.Array, "R E"], KVCache]:
    """Feeds one column to the transformer; arguments and results are those of `Generator.decode_step`."""
    return sampler.apply(latent, column, cache, condition, sampler.max_position, layers, method="decode_step")


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
    rows = state.context.shape[0]
    latent = jnp.tile(latent, (rows // latent.shape[0], 1))  # Class and null rows see the same columns.
    condition = blend_conditions(sampler.conditions, next_classes)
    given = sampler, latent, state.column, state.cache, condition
    if fused_columns.takes_layers(sampler, rows):
        context, cache = fused_columns.decode_step(feed, *given)
    else:
        context, cache = feed(*given)
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
    """Returns the latents of one column, float32; the arguments are those of `integrate_column`."""
    return integrate_column(sampler, context, noise, guidance_scale)[0]


def integrate_column(
    sampler: Sampler, context: Float[jax.Array, "R E"], noise: Float[jax.Array, "B D"], guidance_scale: Scalar
) -> tuple[Float[jax.Array, "B D"], Scalar]:
    """Integrates the flow of one column from noise to latents.

    Args:
      sampler: a `Sampler`.
      context: context of the column; with guidance rows of the classes first, of the null class second.
      noise: initial noise.
      guidance_scale: unused without guidance.

    Returns:
      Latents, float32, and how many evaluations of the flow head waited for each other.
    """
    kind = fused_columns.flow_kind(sampler, context.shape[0])
    if kind is None:
        return _integrate_plain(sampler, context, noise, guidance_scale)

    def plain(*given: Any) -> Float[jax.Array, "B D"]:
        return _integrate_plain(*given)[0]

    chunk_size = _modulations_at_once(sampler, context.shape[0])
    latents = fused_columns.integrate_column(plain, sampler, context, noise, guidance_scale, chunk_size, kind)
    return latents, sampler.solver_table.times.shape[0]


def _modulations_at_once(sampler: Sampler, rows: int) -> int:
    """Returns for how many evaluations the modulations are in memory at once."""
    head = sampler.generator
    values = rows * (3 * head.flow_depth + 2) * head.flow_width
    return max(1, MODULATION_BYTES // (values * jnp.dtype(head.dtype).itemsize))


def _integrate_plain(
    sampler: Sampler, context: Float[jax.Array, "R E"], noise: Float[jax.Array, "B D"], guidance_scale: Scalar
) -> tuple[Float[jax.Array, "B D"], Scalar]:
    """Does what `integrate_column` does with XLA's kernels, on any device."""
    chunk_size = _modulations_at_once(sampler, context.shape[0])

    def modulations(times: Float[AnyArray, "n"]) -> Modulations:
        return sampler.apply(times[:, None], context[None], method="flow_modulations")  # [n, R, …]

    def velocity(z: Shaped[jax.Array, "*P B D"], modulation: Modulations) -> Float[jax.Array, "*P B D"]:
        x = sampler.apply(z, method="flow_embed")
        if not sampler.is_guided:
            return sampler.apply(x, modulation, method="flow_denoise")
        both = sampler.apply(jnp.concatenate([x, x], axis=-2), modulation, method="flow_denoise")
        conditional, unconditional = jnp.split(both, 2, axis=-2)
        return jnp.asarray(flow.classifier_free_guidance(conditional, unconditional, guidance_scale))

    dtype = sampler.generator.dtype
    return integrate(sampler.shortcuts, velocity, noise, sampler.solver_table, modulations, chunk_size, dtype)


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
        return jax.random.normal(jax.random.fold_in(source, column), shape, jnp.float32)
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, column), shape[1:], jnp.float32))(source)


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

    def step(state: SamplerState, column: ColumnInputs) -> tuple[SamplerState, jax.Array]:
        return sample_next(sampler, state, source, state.column, column)

    return jax.lax.scan(step, state, columns)


def sample_next(
    sampler: Sampler,
    state: SamplerState,
    source: Shaped[jax.Array, "..."],
    index: Int[AnyArray, ""] | int,
    column: ColumnInputs,
) -> tuple[SamplerState, Float[jax.Array, "B D"]]:
    """Samples one column.

    Args:
      sampler: a `Sampler`.
      state: the state before the column.
      source: random key, keys or noise, see `column_noise`.
      index: index of the column for `column_noise`.
      column: inputs of the column, scalars.

    Returns:
      The state after the column, and its latents.
    """
    batch_size = state.context.shape[0] // (2 if sampler.is_guided else 1)
    noise = column_noise(source, index, (batch_size, sampler.generator.latent_dim))
    latent = sample_column(sampler, state.context, jnp.asarray(sampler.temperature * noise), column.guidance_scale)
    return decode_step(sampler, state, latent, column.next_classes), latent
