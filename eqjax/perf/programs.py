"""Lowers the programs that eqjax runs, from shapes alone: sampling, decoding and both training steps.

Nothing is allocated, and the devices need not exist: they may be virtual ones, or those of `eqjax.perf.gpu_compiler`.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from eqjax import pretrained, sharding
from eqjax.generator import LOGICAL_AXES, Generator
from eqjax.perf import flops
from eqjax.perf.benchmark_models import abstract_network, build_modules
from eqjax.sampling import chunks, fused_columns
from eqjax.sampling.class_schedule import class_schedule
from eqjax.sampling.latents import sample_latents
from eqjax.sampling.options import SamplingOptions
from eqjax.sampling.sampler import ColumnInputs, SamplerInputs, compute_params
from eqjax.tokenizer import Tokenizer
from eqjax.training import loop
from eqjax.training.generator import GeneratorStep
from eqjax.training.tokenizer.step import TokenizerStep
from eqjax.typing import Config, Tree


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A lowered program.

    Attributes:
      program: what `jax.jit(…).lower(…)` returns.
      flops: FLOPs of its matrix products, all devices together; training steps without rematerialization.
      state: shapes of a training step's state; None for others.
      batch: shapes of a training step's batch; None for others.
      frozen: shapes of a training step's frozen networks; None for others.
    """

    program: Any
    flops: float
    state: Any = None
    batch: Tree | None = None
    frozen: Tree | None = None


def lower_sampling(
    config: str,
    *,
    batch_size: int,
    num_columns: int,
    dtype: str,
    sampling: SamplingOptions,
    devices: Sequence[Any],
    mesh: str = "data:-1",
) -> Lowered:
    """Lowers `sample_latents` as one program; parameters have the compute dtype.

    Args:
      config: a published size, or a generator's config file.
      batch_size: images at once, of all devices together.
      num_columns: columns of an image.
      dtype: compute dtype.
      sampling: the sampling options.
      devices: the devices; several are a mesh over which the images are divided.
      mesh: its axes, see `sharding.parse_mesh`.

    Raises:
      ValueError: the mesh does not fit the devices, or the batch the mesh.
    """
    _, generator = build_modules(config, dtype)
    options = sampling.to_dict()
    # A value, not a constant: so it is for users, whose programs serve all scales.
    scale = jax.ShapeDtypeStruct((), "float32") if sampling.is_guided else None

    def sample(params: Any, labels: jax.Array, key_data: jax.Array, scale: jax.Array | None, on: Mesh | None) -> Any:
        given = options if scale is None else {**options, "guidance_scale": scale}
        key = jax.random.wrap_key_data(key_data)
        if on is not None:
            return _sample_on(on, generator, params, labels, key, SamplingOptions(**given), num_columns)
        return sample_latents(generator, params, labels, num_columns=num_columns, key=key, **given)

    labels, key_data = jax.ShapeDtypeStruct((batch_size,), "int32"), jax.ShapeDtypeStruct((2,), "uint32")
    arguments, alone = (_compute_params(generator), labels, key_data, scale), functools.partial(sample, on=None)
    if len(devices) == 1:
        return _lower(alone, arguments, devices[0])
    on = sharding.make_mesh(devices, mesh)
    sharding.check_batch(on, batch_size)
    rows, whole = NamedSharding(on, PartitionSpec(sharding.BATCH_AXES)), sharding.replicated(on)
    program = jax.jit(functools.partial(sample, on=on), in_shardings=(whole, rows, whole, whole), out_shardings=rows)
    return Lowered(program.lower(*arguments), float(flops.count(alone, *arguments)))


def _sample_on(
    mesh: Mesh,
    generator: Generator,
    params: Any,
    labels: jax.Array,
    key: jax.Array,
    options: SamplingOptions,
    num_columns: int,
) -> jax.Array:
    """Samples on a mesh as `sample_latents` does, with all columns in one chunk."""
    inputs = SamplerInputs.create(generator, params, labels[:, None], options, mesh)
    images = len(labels) // math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
    inputs = fused_columns.agree(inputs, images, mesh)
    schedule = class_schedule(labels[:, None], None, 0)
    first_classes = jax.tree.map(lambda a: a[0], schedule.at([0]))
    slots = chunks.cache_columns(generator, num_columns)
    made, state = chunks.begin(inputs, first_classes, num_columns=slots)
    next_classes = chunks.next_classes(schedule, 0, num_columns, num_columns)
    columns = ColumnInputs(options.guidance_scales(num_columns), next_classes)
    return chunks.sample_chunk(made, state, key, columns, np.int32(num_columns))[1]


def lower_decoding(config: str, *, batch_size: int, num_columns: int, dtype: str, device: Any) -> Lowered:
    """Lowers the decoder, for one device; parameters have the compute dtype.

    Args:
      config: a published size, or a generator's config file.
      batch_size: images at once.
      num_columns: columns of an image.
      dtype: compute dtype.
      device: the device.
    """
    tokenizer, _ = build_modules(config, dtype)

    def decode(params: Any, latents: jax.Array) -> jax.Array:
        decoded: Any = tokenizer.apply({"params": params}, latents, method="decode")
        return decoded.images

    latents = jax.ShapeDtypeStruct((batch_size, num_columns, tokenizer.embed_dim), "float32")
    return _lower(decode, (_compute_params(tokenizer), latents), device)


def _compute_params(module: Tokenizer | Generator) -> Any:
    """Returns the shapes of a module's parameters, cast as `Model.astype` casts them."""
    return jax.eval_shape(lambda params: compute_params(module, params), pretrained.abstract_params(module))


def _lower(function: Any, arguments: tuple[Any, ...], device: Any) -> Lowered:
    where = jax.sharding.SingleDeviceSharding(device)
    placed = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), arguments)
    return Lowered(jax.jit(function, out_shardings=where).lower(*placed), float(flops.count(function, *arguments)))


def lower_generator_step(config: Config, devices: Sequence[Any], num_columns: int) -> Lowered:
    """Lowers a generator's training step on latents.

    Args:
      config: a generator's config; its mesh is used.
      devices: the devices of the mesh.
      num_columns: L of the training images.

    Raises:
      ValueError: the mesh or the batch size does not fit.
    """
    config = _resolved(config)
    generator = pretrained.build_module("generator", dict(config.generator))
    generator_step = GeneratorStep.from_config(
        config, generator, lambda _, batch, __: (batch["latents"], batch["label"])
    )
    step, plain_step = (jax.tree_util.Partial(s, {}) for s in (generator_step, generator_step.without_remat()))
    batch = {
        "latents": jax.ShapeDtypeStruct((config.batch_size, num_columns, generator.latent_dim), "float32"),
        "label": jax.ShapeDtypeStruct((config.batch_size,), "int32"),
    }
    return _lower_step(config, devices, generator_step.init_state, LOGICAL_AXES, step, plain_step, batch)


def lower_tokenizer_step(config: Config, devices: Sequence[Any], num_columns: int) -> Lowered:
    """Lowers a tokenizer's training step, of stage 1 or 2; its frozen networks are arguments.

    Args:
      config: a tokenizer's config; its mesh is used.
      devices: the devices of the mesh.
      num_columns: columns of the training images, whose height is the tokenizer's resolution.

    Raises:
      ValueError: the mesh or the batch size does not fit.
    """
    config = _resolved(config)
    tokenizer: Any = pretrained.build_module("tokenizer", dict(config.tokenizer))
    tokenizer_step, frozen = TokenizerStep.from_config(config, tokenizer, abstract_network)
    height, width = tokenizer.resolution, num_columns * tokenizer.column_width
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch_size, height, width, 3), "uint8"),
        "label": jax.ShapeDtypeStruct((config.batch_size,), "int32"),
    }
    replicated = sharding.replicated(sharding.make_mesh(devices, config.mesh))
    frozen = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=replicated), frozen)
    step = jax.tree_util.Partial(tokenizer_step, frozen)
    init = lambda key: tokenizer_step.init_state(key, height, width)  # noqa: E731
    return dataclasses.replace(_lower_step(config, devices, init, (), step, step, batch), frozen=frozen)


def _resolved(config: Config) -> Config:
    config = config.copy_and_resolve_references()
    config.total_steps = max(config.total_steps, 1)
    return config


def _lower_step(
    config: Config, devices: Sequence[Any], init: Any, rules: Any, step: Any, plain_step: Any, batch: dict[str, Any]
) -> Lowered:
    """Lowers a step on the config's mesh; `plain_step` has no rematerialization."""
    mesh, key = sharding.make_mesh(devices, config.mesh), jax.random.key(0)
    sharding.check_batch(mesh, config.batch_size, config.accumulation_steps)
    state = loop.abstract_state(init, rules, mesh, key)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(sharding.BATCH_AXES))
    batch = {name: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=rows) for name, s in batch.items()}
    # The arrays of the step are arguments, as they are of the program.
    needed = float(flops.count(lambda step, *given: step(*given), plain_step, state, batch, key))
    lowered = loop.compile_step(step, rules, mesh, state, key, config.precision).lower(state, batch)
    return Lowered(lowered, needed, state, batch)
