"""The cost model of `eqjax plan`: memory, FLOPs, traffic and time of a generator's training step on other machines.

The real step is compiled for as many devices, from shapes alone: by the GPU compiler for the chip itself, or by the
CPU compiler for virtual devices. Memory and collectives come from the compiled program, FLOPs from the traced one, and
a roofline turns them into times.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax

from eqjax import loading, pretrained
from eqjax.latent_cache.encode import encoder_params
from eqjax.perf import gpu_compiler, programs
from eqjax.perf.chips import find_chip
from eqjax.perf.hlo import Collective, collectives
from eqjax.tables import markdown_table, with_unit
from eqjax.tokenizer import Tokenizer
from eqjax.typing import Config, Tree

# It widens bfloat16, and writes a reduce-scatter as an all-reduce.
CPU_COMPILER = f"CPU compiler of jax {jax.__version__}: upper estimates"


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Memory, FLOPs and traffic of a training step on a mesh, for any chip.

    Attributes:
      compiler: which compiler memory and traffic come from.
      model: description of the generator.
      num_chips: devices of the mesh.
      mesh: its axes, as `sharding.parse_mesh` reads them.
      batch_size: images of a step.
      num_parameters: number of the generator's parameters.
      memory: bytes per device, by kind of content.
      flops: FLOPs of the model in a step, all devices together, without rematerialization.
      float32: whether products are of float32 numbers rather than of bfloat16.
      precision: of products of float32 numbers, see `eqjax.precision.computing_in`.
      traffic: the collectives of a step.
    """

    compiler: str
    model: str
    num_chips: int
    mesh: str
    batch_size: int
    num_parameters: int
    memory: dict[str, int]
    flops: float
    float32: bool
    precision: str
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


def plan_step(config: Config, num_chips: int, num_columns: int = 16, chip_name: str | None = None) -> StepPlan:
    """Plans a training step on a mesh; compiles, but allocates no array.

    Args:
      config: a generator's config; its mesh, batch size and accumulation steps are used.
      num_chips: devices of the mesh.
      num_columns: L of the training images.
      chip_name: a CUDA GPU of `eqjax.perf.chips.CHIPS`, for which the GPU compiler compiles; None: the CPU compiler
        does, and JAX must have at least `num_chips` devices (virtual ones will do).

    Raises:
      ModuleNotFoundError: the GPU compiler is not installed.
      ValueError: the config is a tokenizer's, the mesh or the batch size does not fit, or there are too few devices.
    """
    if "generator" not in config:
        raise ValueError(
            f"--config has trainer={config.get('trainer')!r}, but only a generator's step is planned; give a "
            "configuration such as configs/imagenet_generator.py."
        )
    if chip_name is None:
        lowered = programs.lower_generator_step(config, _cpu_devices(num_chips), num_columns)
        # Nothing runs, so time spent on optimizing the CPU program would be lost.
        compiled = lowered.program.compile(compiler_options={"xla_backend_optimization_level": 0})
        analysis: Any = compiled.memory_analysis()
        compiler, temporary = CPU_COMPILER, int(analysis.temp_size_in_bytes)
        traffic = collectives(str(compiled.as_text()))
    else:
        chip = find_chip(chip_name)
        lowered = programs.lower_generator_step(config, gpu_compiler.devices(chip, num_chips), num_columns)
        program = gpu_compiler.compile_program(lowered.program, chip, triton=False)
        compiler, temporary, traffic = program.compiler, program.memory["temporary"], program.traffic
    state: Any = lowered.state
    return StepPlan(
        compiler=compiler,
        model=f"width {config.generator.width}, depth {config.generator.depth}, {_products(config)}, "
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
            "batch": _local_bytes(lowered.batch),
            "activations and gradients": temporary,
        },
        flops=lowered.flops,
        float32=str(config.generator.dtype) == "float32",
        precision=config.precision,
        traffic=traffic,
    )


def _products(config: Config) -> str:
    """Returns what products are computed in, such as "bfloat16" or "float32 at tf32"."""
    dtype = str(config.generator.dtype)
    return f"{dtype} at {config.precision}" if dtype == "float32" else dtype


def _cpu_devices(count: int) -> list[Any]:
    """Returns the first devices.

    Raises:
      ValueError: there are too few.
    """
    devices = jax.devices()
    if len(devices) < count:
        raise ValueError(f"there are {len(devices)} devices, not {count}; start with `eqjax plan`.")
    return devices[:count]


def _local_bytes(tree: Tree) -> int:
    """Returns the bytes of a tree of sharded shapes on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def estimate(plan: StepPlan, chip_name: str, encoder_flops: float = 0.0) -> Estimate:
    """Predicts the time of a planned step on a chip by a roofline of three terms.

    compute: FLOPs at the bfloat16 peak, or at the chip's slower rate of float32 products at their precision. memory:
    the state and the activations, each written once and read once. network: the bytes that a device sends, over the
    fast links where a group stays in a node. A step takes the longest term if all overlap, and their sum if none do.

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
        "compute": work * (chip.float32_slowdown(plan.precision) if plan.float32 else 1) / chip.peak_flops,
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
        f"Memory and traffic by the {plan.compiler}.",
        f"FLOPs of the model per step: {plan.flops:.4g}, per device {plan.flops / plan.num_chips:.4g}",
        markdown_table(("on each device", "memory"), memory),
        markdown_table(("sent per device and step", "devices in a group", "calls", "bytes"), traffic),
        "Time of a step, from all terms overlapped to none:",
        markdown_table(("chip", "memory used", "step", "utilization", "bound by"), times),
    ]
    return "\n\n".join(parts)
