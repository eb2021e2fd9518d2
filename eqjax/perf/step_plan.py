"""The cost model of `eqjax plan`: memory, FLOPs, traffic and time of a generator's training step on other machines.

The real step is compiled for as many virtual devices, from shapes alone. Memory and collectives come from the
compiled program, FLOPs from the traced one, and a roofline turns them into times.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax

from eqjax import loading, pretrained, sharding
from eqjax.generator import LOGICAL_AXES
from eqjax.latent_cache.encode import encoder_params
from eqjax.perf import flops
from eqjax.perf.chips import find_chip
from eqjax.perf.hlo import Collective, collectives
from eqjax.tables import markdown_table, with_unit
from eqjax.tokenizer import Tokenizer
from eqjax.training import loop
from eqjax.training.generator import GeneratorStep
from eqjax.typing import Config, Tree


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Memory, FLOPs and traffic of a training step on a mesh, for any chip.

    Attributes:
      model: description of the generator.
      num_chips: devices of the mesh.
      mesh: its axes, as `sharding.parse_mesh` reads them.
      batch_size: images of a step.
      num_parameters: number of the generator's parameters.
      memory: bytes per device, by kind of content.
      flops: FLOPs of the model in a step, all devices together, without rematerialization.
      float32: whether products are float32 rather than bfloat16.
      traffic: the collectives of a step.
    """

    model: str
    num_chips: int
    mesh: str
    batch_size: int
    num_parameters: int
    memory: dict[str, int]
    flops: float
    float32: bool
    traffic: list[Collective]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Predicted time of a planned step on one chip.

    Attributes:
      chip: name of the chip.
      fits: whether the memory of a device is enough.
      memory_fraction: memory needed over memory there.
      terms: seconds of "compute", "memory" and "network".
      bound: the longest term.
      seconds: duration of a step, if all terms overlap and if none do.
      utilization: FLOPs per second over the bfloat16 peak, for the same two.
    """

    chip: str
    fits: bool
    memory_fraction: float
    terms: dict[str, float]
    bound: str
    seconds: tuple[float, float]
    utilization: tuple[float, float]


def lower(config: Config, devices: Sequence[Any], num_columns: int) -> tuple[Any, Tree, Tree, int]:
    """Lowers the training step on latents, from shapes alone.

    Args:
      config: a generator's config; its mesh is used.
      devices: the devices of the mesh.
      num_columns: L of the training images.

    Returns:
      The lowered step, its state and batch as jax.ShapeDtypeStruct, and the FLOPs of the model.
    """
    config = config.copy_and_resolve_references()
    config.total_steps = max(config.total_steps, 1)
    generator = pretrained.build_module("generator", dict(config.generator))
    generator_step = GeneratorStep.from_config(
        config, generator, lambda _, batch, __: (batch["latents"], batch["label"])
    )
    step, plain_step = (jax.tree_util.Partial(s, {}) for s in (generator_step, generator_step.without_remat()))
    mesh, key = sharding.make_mesh(devices, config.mesh), jax.random.key(0)
    sharding.check_batch(mesh, config.batch_size, config.accumulation_steps)
    state = loop.abstract_state(generator_step.init_state, LOGICAL_AXES, mesh, key)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(sharding.BATCH_AXES))
    batch = {
        "latents": jax.ShapeDtypeStruct(
            (config.batch_size, num_columns, generator.latent_dim), "float32", sharding=rows
        ),
        "label": jax.ShapeDtypeStruct((config.batch_size,), "int32", sharding=rows),
    }
    needed = flops.count(plain_step, state, batch, key)
    return loop.compile_step(step, LOGICAL_AXES, mesh, state, key).lower(state, batch), state, batch, needed


def encoder_bytes(config: Config) -> int:
    """Returns the bytes of the encoder's parameters, which every device holds when a step reads images.

    Args:
      config: a generator's config. If it names no tokenizer, or one that is not on this machine, the
        published one is used.

    Returns:
      The number of bytes, 0 for cached latents.
    """
    if config.data.source == "latents":
        return 0
    try:
        params = loading.load_weights(config.tokenizer_weights or "").params["tokenizer"]
    except FileNotFoundError:
        params = pretrained.abstract_params(Tokenizer())
    return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(encoder_params(params)))


def plan_step(config: Config, num_chips: int, num_columns: int = 16) -> StepPlan:
    """Plans a training step on a mesh; compiles, but allocates no array.

    Args:
      config: a generator's config; its mesh, batch size and accumulation steps are used.
      num_chips: devices of the mesh; JAX must have at least as many (virtual ones will do).
      num_columns: L of the training images.

    Raises:
      ValueError: the config is a tokenizer's, the mesh or the batch size does not fit, or there are too few devices.
    """
    if "generator" not in config:
        raise ValueError(
            f"--config has trainer={config.get('trainer')!r}, but only a generator's step is planned; give a "
            "configuration such as configs/imagenet_generator.py."
        )
    devices = jax.devices()
    if len(devices) < num_chips:
        raise ValueError(f"there are {len(devices)} devices, not {num_chips}; start with `eqjax plan`.")
    lowered, state, batch, needed = lower(config, devices[:num_chips], num_columns)
    compiled = lowered.compile()
    analysis: Any = compiled.memory_analysis()
    return StepPlan(
        model=f"width {config.generator.width}, depth {config.generator.depth}, {config.generator.dtype}, "
        f"remat {config.generator.remat}",
        num_chips=num_chips,
        mesh=config.mesh,
        batch_size=config.batch_size,
        num_parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        memory={
            "parameters": _local_bytes(state.params),
            "EMA weights": _local_bytes(state.ema_params),
            "frozen encoder": encoder_bytes(config),
            "optimizer state": _local_bytes(state.opt_state),
            "batch": _local_bytes(batch),
            "activations and gradients": int(analysis.temp_size_in_bytes),
        },
        flops=needed,
        float32=str(config.generator.dtype) == "float32",
        traffic=collectives(str(compiled.as_text())),
    )


def _local_bytes(tree: Tree) -> int:
    """Returns the bytes of a tree of sharded shapes on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def estimate(plan: StepPlan, chip_name: str, encoder_flops: float = 0.0) -> Estimate:
    """Predicts the time of a planned step on a chip by a roofline of three terms.

    compute: FLOPs at the bfloat16 peak, or at the chip's slower rate of float32 products. memory: the state
    and the activations, each written once and read once. network: the bytes that a device sends, over the
    fast links where a group stays in a node. A step takes the longest term if all overlap, and their sum if
    none do.

    Args:
      plan: the planned step.
      chip_name: a name in `eqjax.perf.chips.CHIPS`.
      encoder_flops: FLOPs per image to add, for an encoder in the step.

    Raises:
      ValueError: the chip is unknown.
    """
    chip = find_chip(chip_name)
    work = (plan.flops + encoder_flops * plan.batch_size) / plan.num_chips
    moved = 2 * sum(
        plan.memory[part] for part in ("parameters", "EMA weights", "optimizer state", "activations and gradients")
    )
    terms = {
        "compute": work * (chip.float32_slowdown if plan.float32 else 1) / chip.peak_flops,
        "memory": moved / chip.memory_bandwidth,
        "network": sum(
            item.bytes_sent / (chip.link_bandwidth if item.span <= chip.node_size else chip.network_bandwidth)
            for item in plan.traffic
        ),
    }
    bound = max(terms, key=lambda name: terms[name])
    overlapped, in_sequence = terms[bound], sum(terms.values())
    needed = sum(plan.memory.values())
    return Estimate(
        chip=chip_name,
        fits=needed <= chip.memory,
        memory_fraction=needed / chip.memory,
        terms=terms,
        bound=bound,
        seconds=(overlapped, in_sequence),
        utilization=(work / chip.peak_flops / overlapped, work / chip.peak_flops / in_sequence),
    )


def format_plan(plan: StepPlan, estimates: Sequence[Estimate]) -> str:
    """Formats a plan and its estimates as text with Markdown tables."""
    memory = [(part, with_unit(size, "B")) for part, size in plan.memory.items()]
    memory.append(("total", with_unit(sum(plan.memory.values()), "B")))
    traffic = [
        (item.kind, str(item.group_size), str(item.count), with_unit(item.bytes_sent, "B")) for item in plan.traffic
    ]
    times = [
        (
            item.chip,
            f"{100 * item.memory_fraction:.0f} %",
            " … ".join(with_unit(seconds, "s") for seconds in item.seconds),
            " … ".join(f"{100 * fraction:.0f}" for fraction in item.utilization) + " %",
            item.bound,
        )
        for item in estimates
    ]
    parts = [
        f"{plan.model}: {plan.num_parameters / 1e6:.1f} M parameters, batch {plan.batch_size}, "
        f"{plan.num_chips} chips as {plan.mesh}",
        f"FLOPs of the model per step: {plan.flops:.4g}, per device {plan.flops / plan.num_chips:.4g}",
        markdown_table(("on each device", "memory"), memory),
        markdown_table(("sent per device and step", "devices in a group", "calls", "bytes"), traffic),
        "Time of a step, from all terms overlapped to none:",
        markdown_table(("chip", "memory used", "step", "utilization", "bound by"), times),
    ]
    return "\n\n".join(parts)
