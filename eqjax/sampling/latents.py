"""`sample_latents`: labels to latents of images of any number of columns."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from eqjax import sharding
from eqjax.generator import Generator
from eqjax.module_fields import PRECISION
from eqjax.precision import computing_in
from eqjax.rules import Function, Instance
from eqjax.sampling import chunks, fused_columns, memory, sampler
from eqjax.sampling.checks import NUM_COLUMNS, as_labels, check_labels, check_noise_source, check_prefix
from eqjax.sampling.class_schedule import Blend, ClassSchedule, class_schedule
from eqjax.sampling.options import SamplingKeywords, SamplingOptions
from eqjax.sampling.sampler import ColumnInputs, SamplerInputs
from eqjax.tracing import is_tracing


def sample_latents(
    generator: Any,
    params: Any,
    labels: Any,
    *,
    num_columns: Any,
    class_columns: Any = None,
    transition: Any = 0,
    noise: Any = None,
    key: Any = None,
    prefix: Any = None,
    mesh: Any = None,
    progress: Any = None,
    precision: Any = "highest",
    **options: Unpack[SamplingKeywords],
) -> Float[jax.Array, "B L D"]:
    """Samples latents of `num_columns` columns for every label.

    It compiles once per batch size, number of classes along the columns, number of evaluations and use of guidance.
    All numbers of columns share the programs, and so do all solvers, guidance scales and other values.

    The function may be called inside a jitted function, with concrete `num_columns`, `num_flow_steps` and strings. It
    is then one program, for this number of columns, of which JAX can also take derivatives.

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
        key per row, [B]: the noise then depends on the row's key and k alone. Of several processes all give the same
        key, or each those of its rows.
      prefix: latents [B, P, D], P ≤ L, with which the sample begins.
      mesh: a mesh of `eqjax.sharding.make_mesh`, along whose data axes the batch is sharded. If its devices belong to
        several processes, all of them make the call, each with the rows of its own devices (`sharding.batch_shard`);
        the result, and b in `key`, count the rows of all.
      progress: called with 0 before the first columns, when programs may have to be compiled, and then with the number
        of columns sampled since its last call, at most 16. It cannot be called inside a jitted function.
      precision: of products of float32 numbers, "highest" (float32), "tf32" or "bfloat16", see `eqjax.Model`.
      **options: fields of `SamplingOptions`, with its defaults: guidance_scale (1.0, or one per column, [L]),
        guidance_schedule ("linear"), num_flow_steps (100), solver ("euler"), time_grid ("uniform"),
        temperature (1.0), max_position (None), modulation_times (None), parallel_steps (None),
        parallel_tolerance (0.0001), gpu_kernels ("auto").

    Returns:
      Latents, float32, scaled as the generator's are.

    Raises:
      ValueError: an argument is out of its range, or has another shape.
      TypeError: an argument is of another type, or unknown.
      MemoryError: the batch or the number of columns does not fit into memory.

    Example:
      >>> generator = Generator(width=16, depth=1, num_heads=2, latent_dim=4, flow_width=8, flow_depth=1)
      >>> params = jax.jit(generator.init_params)(jax.random.key(0))
      >>> key = jax.random.key(1)
      >>> sample_latents(generator, params, [7, 8], num_columns=5, num_flow_steps=2, key=key).shape
      (2, 5, 4)
    """
    Instance(Generator, "an eqjax.Generator").check("generator", generator)
    Instance(Mapping, "a mapping of parameters, such as Model.generator_params").check("params", params)
    Instance(jax.sharding.Mesh, "a mesh of eqjax.sharding.make_mesh", optional=True).check("mesh", mesh)
    Function(optional=True).check("progress", progress)
    PRECISION.check("precision", precision)
    sampling_options, labels = SamplingOptions(**options), as_labels(labels)
    check_labels(generator, labels)
    batch_size, num_columns = labels.shape[0], NUM_COLUMNS.check("num_columns", num_columns)
    devices = memory.count_devices(labels, mesh)
    is_guided, at_once = sampling_options.is_guided, sampling_options.modulations_at_once
    memory.check_latents(generator, labels.shape, num_columns, is_guided, devices, at_once)
    check_noise_source(generator, batch_size, num_columns, noise, key)
    schedule = class_schedule(labels, class_columns, transition)
    schedule.check_length(num_columns)
    if prefix is None:
        prefix = np.zeros((batch_size, 0, generator.latent_dim), np.float32)
    check_prefix(generator, batch_size, num_columns, prefix)
    next_classes = chunks.next_classes(schedule, 0, num_columns, num_columns)
    columns = ColumnInputs(sampling_options.guidance_scales(num_columns), next_classes)
    inputs = SamplerInputs.create(generator, params, labels.reshape(batch_size, -1), sampling_options, mesh)
    source = key if noise is None else noise
    if not is_tracing(inputs, prefix, columns, source):
        with computing_in(precision):
            return _sample_in_chunks(inputs, np.asarray(prefix, np.float32), schedule, columns, source, mesh, progress)
    for name, value in (("mesh", mesh), ("progress", progress)):
        if value is not None:
            raise ValueError(f"{name} cannot be used inside a jitted function: leave it out there, or do not use jit.")
    first_classes = jax.tree.map(lambda a: a[0], schedule.at([0]))
    source = jnp.asarray(key) if noise is None else jnp.asarray(noise, jnp.float32)
    with computing_in(precision):
        return _sample(inputs, jnp.asarray(prefix, jnp.float32), first_classes, columns, source)


@jax.jit
def _sample(
    inputs: SamplerInputs, prefix: jax.Array, first_classes: Blend, columns: ColumnInputs, source: jax.Array
) -> Float[jax.Array, "B L D"]:
    """Samples all columns in one program."""
    made = sampler.make_sampler(inputs)
    given, remaining = (
        jax.tree.map(lambda a, part=part: a[part], columns)
        for part in (slice(prefix.shape[1]), slice(prefix.shape[1], None))
    )
    state = sampler.init_state(made, first_classes, columns.guidance_scale.shape[0])
    state = sampler.prefill(made, state, jnp.moveaxis(prefix, 1, 0), given.next_classes)
    latents = sampler.sample_columns(made, state, source, remaining)[1]  # [L - P, B, D]
    return jnp.concatenate([prefix, jnp.moveaxis(latents, 0, 1)], axis=1)


def _sample_in_chunks(
    inputs: SamplerInputs,
    prefix: Float[np.ndarray, "B P D"],
    schedule: ClassSchedule,
    columns: ColumnInputs,
    source: Any,
    mesh: jax.sharding.Mesh | None,
    progress: Callable[[int], object] | None,
) -> Float[jax.Array, "B L D"]:
    """Samples all columns chunk after chunk, with programs that serve all numbers of columns."""
    place: Callable[[np.ndarray], Any] = lambda rows: rows  # noqa: E731
    if mesh is not None:
        inputs, place = _shard_inputs(mesh, inputs), functools.partial(sharding.shard_batch, mesh=mesh)
    if jnp.issubdtype(source.dtype, jax.dtypes.prng_key):
        source = source if mesh is None else _place_keys(source, mesh)
    else:
        source = np.asarray(source, np.float32)
    if progress is not None:
        progress(0)
    first_classes = jax.tree.map(lambda a: a[0], schedule.at([0]))
    slots = chunks.cache_columns(inputs.generator, columns.guidance_scale.shape[0])
    made, state = chunks.begin(inputs, first_classes, num_columns=slots)
    state = chunks.prefill_columns(made, state, prefix, schedule, place)
    parts: list[tuple[jax.Array, int]] = []

    def report() -> None:
        if progress is not None and parts:
            jax.block_until_ready(parts[-1][0])
            progress(parts[-1][1])

    for part in chunks.sample_chunks(made, state, source, columns, prefix.shape[1], place):
        report()  # The chunk before, while the device works on this one.
        parts.append(part)
    report()
    sampled = [sharding.to_host(latents)[:, :count] for latents, count in parts]
    given = [sharding.to_host(place(prefix))] if prefix.shape[1] else []
    where = parts[0][0].sharding if parts else None
    return sharding.put_where(np.concatenate([*given, *sampled], axis=1), where)


def _shard_inputs(mesh: jax.sharding.Mesh, inputs: SamplerInputs) -> SamplerInputs:
    """Replicates parameters over a mesh, shards labels along its data axes, and agrees on kernels.

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
    params = sharding.put(inputs.params, sharding.replicated(mesh))
    labels = sharding.shard_batch(inputs.labels, mesh)
    return dataclasses.replace(fused_columns.agree(inputs, rows // devices, mesh), params=params, labels=labels)


def _place_keys(keys: jax.Array, mesh: jax.sharding.Mesh) -> jax.Array:
    """Moves a random key, the same on every process, or keys of this process's rows to the devices of a mesh."""
    if not sharding.spans_processes(mesh):
        return jax.device_put(keys, sharding.replicated(mesh))
    data = np.asarray(jax.random.key_data(keys))
    placed = sharding.shard_batch(data, mesh) if keys.ndim else sharding.put(data, sharding.replicated(mesh))
    return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(keys))
