"""Sampling latents column by column, in constant time and memory per column.

    column k:  noise ──solver steps under the flow head──▶ latent k ──transformer, cache──▶ context k + 1

What does not change is computed once: the keys and values of the condition tokens per class (of the
null class once for the whole batch), parameters in the compute dtype, and the flow head's modulations
of all steps of a column in few large products. With guidance the batch is doubled, class first, null
second; both halves weight the state of the flow and its embedding.

`sample_columns` is the loop of both `sample_latents` and the endless panorama.

Letters: B batch, L columns, S segments of classes, D latent size, M evaluations of the flow head, E width.

Source: Equivariant Image Modeling, arXiv 2503.18948, sections 3.2 and 3.3.
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import flow, sharding
from eqjax.generator import Condition, Generator, KVCache
from eqjax.sampling.checks import check_arrays, check_values
from eqjax.sampling.class_schedule import Blend, class_schedule

# Modulations held at once. More would be read back from slow memory without saving products' weights.
MODULATION_BYTES = 256 * 2**20
# ColumnInputs between two reports of progress, at most.
CHUNK_COLUMNS = 16


@flax.struct.dataclass
class SamplerState:
    """Where a sampling sampler stands.

    Attributes:
      column: number of the next column, int32 [].
      context: of the next column, [B or 2B, E].
      cache: keys and values of the last columns.
    """

    column: jax.Array
    context: jax.Array
    cache: KVCache


@flax.struct.dataclass
class Sampler:
    """What a sampling sampler keeps from column to column.

    Attributes:
      generator: module.
      guided: whether the null class is carried along.
      params: `compute_params`.
      conditions: what the classes contribute, per segment: leaves [S, …].
      solver_table: of the flow's solver.
      temperature: scale on the initial noise.
      max_position: of cross-attention's queries, int32.
    """

    generator: Generator = flax.struct.field(pytree_node=False)
    guided: bool = flax.struct.field(pytree_node=False)
    params: dict
    conditions: Condition
    solver_table: flow.SolverTable
    temperature: jax.Array
    max_position: jax.Array

    def apply(self, *args, method):
        """A method of the generator."""
        return self.generator.apply({"params": self.params}, *args, method=method)


class ColumnInputs(NamedTuple):
    """What differs from column to column.

    Attributes:
      guidance: of each column, [L].
      after: classes of the columns after each, [L] each.
    """

    guidance: jax.Array
    after: Blend


def compute_params(generator, params):
    """Parameters in the compute dtype, where the modules would cast them anyway: once, not in every loop.

    Norms compute in float32, and embeddings are summed in it: they stay.
    """

    def cast(path, leaf):
        names = [key.key for key in path]
        keep = names[-1] not in ("kernel", "bias") or "norm" in names[-2]
        return leaf if keep else leaf.astype(generator.dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def make_conditions(generator, params, labels, guided):
    """What classes contribute, with guidance for class and null rows.

    Every class is computed once where the batch has more rows than there are classes, the null class once.

    Args:
      generator, params: module and parameters.
      labels: [B, S], in 0 … num_classes.
      guided: also the null class, for rows B … 2B − 1.

    Returns:
      `Condition` with leaves [S, depth, B or 2B, …] (`first`: [S, B or 2B, E]).
    """
    batch, segments = labels.shape
    every, null = generator.num_classes + 1, generator.num_classes
    rows = labels.T.reshape(-1)  # [S·B]
    if every <= rows.shape[0]:
        unique, index, null_index = jnp.arange(every), rows, null
    else:
        unique = jnp.append(rows, null) if guided else rows
        index, null_index = jnp.arange(rows.shape[0]), rows.shape[0]
    index = index.reshape(segments, batch)
    if guided:
        index = jnp.concatenate([index, jnp.full_like(index, null_index)], axis=1)
    found = generator.apply({"params": params}, unique, method="condition")
    keys, values = (jnp.moveaxis(jnp.take(a, index, axis=1), 1, 0) for a in (found.keys, found.values))
    return Condition(keys, values, found.first[index])


def make_sampler(generator, guided, params, labels, solver_table, temperature, max_position):
    """The `Sampler` of labels [B, S], from parameters as they are kept."""
    params = compute_params(generator, params)
    conditions = make_conditions(generator, params, labels, guided)
    return Sampler(generator, guided, params, conditions, solver_table, temperature, max_position)


def blend(conditions, at):
    """The `Condition` at a scalar `Blend`: a segment's, or between it and the next one's."""
    if conditions.first.shape[0] == 1:
        return jax.tree.map(lambda a: a[0], conditions)

    def mix(a):
        now, then = (jax.lax.dynamic_index_in_dim(a, at.segment + i, keepdims=False) for i in (0, 1))
        return now + at.weight.astype(a.dtype) * (then - now)

    return jax.tree.map(mix, conditions)


def start(sampler, first, num_columns):
    """The `SamplerState` before the first column.

    Args:
      sampler: a `Sampler`.
      first: `Blend` of column 0, scalars.
      num_columns: how many columns will be drawn; only a generator without a window needs it.
    """
    context = blend(sampler.conditions, first).first
    return SamplerState(jnp.zeros((), jnp.int32), context, sampler.generator.init_cache(context.shape[0], num_columns))


def decode_step(sampler, state, latent, after):
    """Takes in the next column's latent [B, D] and looks at the one after it: the state there."""
    rows = state.context.shape[0] // latent.shape[0]
    latent = jnp.tile(latent, (rows, 1))  # Class and null see the same columns.
    condition = blend(sampler.conditions, after)
    context, cache = sampler.apply(
        latent, state.column, state.cache, condition, sampler.max_position, method="decode_step"
    )
    return SamplerState(state.column + 1, context, cache)


def sample_column(sampler, context, noise, guidance):
    """Integrates the flow of one column.

    Args:
      sampler: a `Sampler`.
      context: [B, E], or [2B, E] with guidance (class first, null second).
      noise: [B, D].
      guidance: scalar; without effect where context has B rows.

    Returns:
      latent, float32 [B, D].
    """
    head = sampler.generator
    values = context.shape[0] * (3 * head.flow_depth + 2) * head.flow_width
    chunk = max(1, MODULATION_BYTES // (values * jnp.dtype(head.dtype).itemsize))

    def modulations(times):
        return sampler.apply(times[:, None], context[None], method="flow_modulations")  # [n, B or 2B, …]

    def velocity(z, modulation):
        x = sampler.apply(z, method="flow_embed")
        if not sampler.guided:
            return sampler.apply(x, modulation, method="flow_denoise")
        both = sampler.apply(jnp.concatenate([x, x]), modulation, method="flow_denoise")
        return flow.classifier_free_guidance(*jnp.split(both, 2), guidance)

    return flow.integrate(velocity, noise, sampler.solver_table, modulations, chunk)


def sample_columns(sampler, state, noise, columns):
    """Draws one column after another: latents [L, B, D] and the state after them.

    Args:
      sampler: a `Sampler`.
      state: a `SamplerState`.
      noise: function of a column's number → [B, D].
      columns: their `ColumnInputs`.
    """

    def draw(state, column):
        latent = sample_column(sampler, state.context, sampler.temperature * noise(state.column), column.guidance)
        return decode_step(sampler, state, latent, column.after), latent

    return jax.lax.scan(draw, state, columns)


def prefill(sampler, state, latents, after):
    """Takes in given columns, [L, B, D], before those that `after`, a `Blend` [L], describes: the state there."""
    return jax.lax.scan(lambda state, x: (decode_step(sampler, state, *x), None), state, (latents, after))[0]


def column_noise(key, column, shape):
    """Initial noise of a column, [B, D]: of one key for the batch, or of a key per row.

    With a key per row, [B], a row's noise depends on its own key alone, not on its place.
    """
    if key.ndim == 0:
        return jax.random.normal(jax.random.fold_in(key, column), shape)
    return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, column), shape[1:]))(key)


def noise_function(sampler, state, source):
    """Function of a column's number → initial noise [B, D]: from a key or a key per row, or from noise [B, L, D]."""
    if not jnp.issubdtype(source.dtype, jax.dtypes.prng_key):
        return lambda column: source[:, column]
    shape = (state.context.shape[0] // (2 if sampler.guided else 1), sampler.generator.latent_dim)
    return lambda column: column_noise(source, column, shape)


@functools.partial(jax.jit, donate_argnums=1)
def sample_chunk(sampler, state, source, columns):
    """`sample_columns` as a program of its own, with noise of a `noise_function` source."""
    return sample_columns(sampler, state, noise_function(sampler, state, source), columns)


def sample_latents(
    generator,
    params,
    labels,
    *,
    num_columns,
    guidance_scale=1.0,
    guidance_schedule="linear",
    num_flow_steps=100,
    solver="euler",
    time_grid="uniform",
    temperature=1.0,
    class_columns=None,
    transition=0,
    max_position=None,
    noise=None,
    key=None,
    prefix=None,
    mesh=None,
    progress=None,
):
    """Draws latents of `num_columns` columns for every label.

    Jitted, and usable inside a jit of the caller's, who then gives concrete `num_columns`,
    `num_flow_steps`, and strings. Compiles once per combination of shapes, number of evaluations, and
    of whether there is guidance; all else is free, the solver and the values of the guidance too.

    Args:
      generator: a `Generator`.
      params: its parameters.
      labels: integers [B], in 0 … num_classes (the last is the null class); or [B, S], one class
        after another along the columns.
      num_columns: L ≥ 1, with the prefix.
      guidance_scale: g ≥ 0; 1 is no guidance and takes half the work. Or one per column, [L].
      guidance_schedule: "linear", 1 + (g − 1)(k + 1)/L at column k, or "constant".
      num_flow_steps: steps N ≥ 1 of the solver.
      solver: "euler" (as published), "heun" (two evaluations a step) or "adams_bashforth".
      time_grid: "uniform" (as published), "shifted", "cosine", or N + 1 times from 1 to 0.
      temperature: scale on the initial noise, ≥ 0.
      class_columns: columns of each of the S classes, the last may be None: to the end.
      transition: columns over which a class goes softly into the next; see `eqjax.sampling.class_schedule`.
      max_position: cross-attention's queries are rotated by this position at most, so that far
        columns do not leave the positions of training (columns + max_rope_shift − 3); None as published.
      noise: initial noise [B, L, D], prefix columns included (and not read there); or
      key: a JAX key to draw it from: column k of row b depends on key, k and b alone. Or a key per
        row, [B]: it then depends on the row's key and k alone.
      prefix: latents [B, P, D], P ≤ L, that the sample begins with.
      mesh: of `eqjax.sharding.make_mesh`: the batch is split along its data axis.
      progress: function that is called with the number of columns drawn since it was called before,
        every 16 columns or fewer. The columns are then drawn strip by strip, not inside a jit; the
        latents differ by rounding at most.

    Returns:
      latents, float32 [B, L, D], scaled as the generator's are.

    Raises:
      ValueError: an argument out of its range, or of another shape.
    """
    labels = jnp.asarray(labels)
    check_values(generator, labels, num_columns, guidance_scale, temperature, max_position)
    check_arrays(generator, labels, num_columns, noise, key, prefix)
    scales = flow.guidance_scales(guidance_scale, guidance_schedule, num_columns)
    solver_table = flow.solver_table(solver, num_flow_steps, time_grid)
    schedule = class_schedule(labels, class_columns, transition)
    schedule.check_length(num_columns)
    classes = schedule.at(np.minimum(np.arange(num_columns + 1), num_columns - 1))
    if prefix is None:
        prefix = jnp.zeros((labels.shape[0], 0, generator.latent_dim))
    batch = labels.reshape(labels.shape[0], -1), jnp.asarray(prefix, jnp.float32)
    source = key if noise is None else jnp.asarray(noise, jnp.float32)
    if mesh is not None:
        params, batch, source = _shard_inputs(mesh, params, batch, source)
    position = np.int32(2**31 - 1) if max_position is None else max_position
    beginning = generator, is_guided(guidance_scale), params, *batch, classes, solver_table, temperature, position
    if progress is None:
        return _sample(*beginning, source, scales)
    sampler, state, after = _begin_alone(*beginning)
    columns = ColumnInputs(scales[batch[1].shape[1] :], after)
    return _sample_in_chunks(sampler, state, batch[1], source, columns, progress)


def is_guided(guidance_scale):
    """Whether the null class is needed: a traced scale may be any number."""
    return isinstance(guidance_scale, jax.core.Tracer) or not bool(np.all(np.asarray(guidance_scale) == 1))


def _shard_inputs(mesh, params, batch, source):
    """Parameters on every device of a mesh, what has a row per image split over its data axis.

    Raises:
      ValueError: the rows do not divide among the devices.
    """
    rows, devices = batch[0].shape[0] * sharding.batch_shard(mesh)[1], mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % devices:
        raise ValueError(
            f"a batch of {rows} does not divide among {devices} devices of the mesh (data × fsdp): give a multiple of "
            f"{devices} labels, and drop the images that are too many."
        )
    batch = jax.tree.map(lambda a: sharding.shard_batch(a, mesh), batch)
    if source.ndim == 3:
        source = sharding.shard_batch(source, mesh)
    else:
        source = jax.device_put(source, sharding.replicated(mesh))
    return jax.device_put(params, sharding.replicated(mesh)), batch, source


def _begin(generator, guided, params, labels, prefix, classes, solver_table, temperature, max_position):
    """The `Sampler`, its state behind the prefix, and the classes of the columns after each of the rest."""
    sampler = make_sampler(generator, guided, params, labels, solver_table, temperature, max_position)
    given = prefix.shape[1]
    first, after = jax.tree.map(lambda a: a[0], classes), jax.tree.map(lambda a: a[1:], classes)
    state = start(sampler, first, after.weight.shape[0])
    state = prefill(sampler, state, jnp.moveaxis(prefix, 1, 0), jax.tree.map(lambda a: a[:given], after))
    return sampler, state, jax.tree.map(lambda a: a[given:], after)


_begin_alone = jax.jit(_begin, static_argnums=(0, 1))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(
    generator, guided, params, labels, prefix, classes, solver_table, temperature, max_position, source, scales
):
    sampler, state, after = _begin(
        generator, guided, params, labels, prefix, classes, solver_table, temperature, max_position
    )
    columns = ColumnInputs(scales[prefix.shape[1] :], after)
    latents = sample_columns(sampler, state, noise_function(sampler, state, source), columns)[1]  # [L - P, B, D]
    return jnp.concatenate([prefix, jnp.moveaxis(latents, 0, 1)], axis=1)


def _sample_in_chunks(sampler, state, prefix, source, columns, progress):
    """What `_sample` returns, from where `_begin` ends, with a report after every strip."""
    length = columns.guidance.shape[0]
    strips = -(-length // CHUNK_COLUMNS) or 1
    size = -(-length // strips) or 1
    parts = [prefix]
    for first in range(0, length, size):
        # The last strip may be drawn beyond the end, so that all compile once.
        numbers = np.minimum(np.arange(first, first + size), length - 1)
        state, latents = sample_chunk(sampler, state, source, jax.tree.map(lambda a, n=numbers: a[n], columns))
        parts.append(jnp.moveaxis(latents[: length - first], 0, 1))
        progress(jax.block_until_ready(parts[-1]).shape[1])
    return jnp.concatenate(parts, axis=1)
