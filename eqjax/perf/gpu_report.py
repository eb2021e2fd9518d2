"""The report of `eqjax gpu-compile`: a program of a published size, compiled for a GPU, in figures."""

import dataclasses
from typing import Any

from eqjax.perf import gpu_compiler, programs
from eqjax.perf.benchmark_models import read_config
from eqjax.perf.chips import Chip, find_chip
from eqjax.perf.gpu_compiler import GpuProgram
from eqjax.sampling.options import SamplingOptions
from eqjax.tables import markdown_table, with_unit

KINDS = ("sampling", "decoding", "training")
# Seconds from the start of one small kernel to that of the next which waits for it, in a command buffer: an estimate.
KERNEL_SECONDS = 2e-6
_SAMPLING = SamplingOptions(guidance_scale=7.0)  # Any scale but 1 takes the same time.


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuRequest:
    """What to compile.

    Attributes:
      kind: "sampling" (latents), "decoding", or "training" (a step: of a generator from latents, or of a tokenizer).
      chip: name of a CUDA GPU in `eqjax.perf.chips.CHIPS`.
      config: a published size ("S", "B", "L", "H") or a config file with ":variant".
      batch_size: images at once, of all devices together.
      num_columns: columns of an image.
      dtype: compute dtype.
      sampling: the sampling options.
      num_chips: devices; more than one for sampling and training.
      mesh: their mesh, as `sharding.parse_mesh` reads it.
    """

    kind: str
    chip: str = "H100"
    config: str = "L"
    batch_size: int = 64
    num_columns: int = 16
    dtype: str = "bfloat16"
    sampling: SamplingOptions = _SAMPLING
    num_chips: int = 1
    mesh: str = "data:-1"


@dataclasses.dataclass(frozen=True)
class GpuReport:
    """A compiled program, and what it needs at least.

    Attributes:
      request: what was asked for.
      program: the compiled program.
      flops: FLOPs of its matrix products, all devices together; training without rematerialization.
      seconds: least times of a run on each device: "products" at the peak of the dtype, "kernels" if each takes
        `KERNEL_SECONDS`, "network".
    """

    request: GpuRequest
    program: GpuProgram
    flops: float
    seconds: dict[str, float]


def compile_request(request: GpuRequest) -> GpuReport:
    """Compiles a program for a GPU; no GPU is needed.

    Raises:
      ModuleNotFoundError: the GPU compiler is not installed.
      ValueError: an unknown kind, chip or config; a mesh or a batch size that does not fit; several devices where
        there is nothing to share.
      RuntimeError: the compiler refuses the program.
    """
    if request.kind not in KINDS:
        raise ValueError(f"{request.kind!r} is not one of {', '.join(KINDS)}.")
    if request.num_chips > 1 and request.kind == "decoding":
        raise ValueError(
            f"num_chips={request.num_chips}: {request.kind} runs on every device by itself; give one device and its "
            "part of the batch."
        )
    chip = find_chip(request.chip)
    devices = gpu_compiler.devices(chip, request.num_chips)
    lowered = _lower(request, devices)
    program = gpu_compiler.compile_program(lowered.program, chip, triton=request.kind != "training")
    return GpuReport(request, program, lowered.flops, _least_seconds(request, chip, program, lowered.flops))


def _lower(request: GpuRequest, devices: list[Any]) -> programs.Lowered:
    sizes: dict[str, Any] = dict(batch_size=request.batch_size, num_columns=request.num_columns, dtype=request.dtype)
    if request.kind == "sampling":
        sizes |= dict(sampling=request.sampling, mesh=request.mesh)
        return programs.lower_sampling(request.config, **sizes, devices=devices)
    if request.kind == "decoding":
        return programs.lower_decoding(request.config, **sizes, device=devices[0])
    config = read_config(request.config)
    config.batch_size, config.mesh, config[config.trainer].dtype = request.batch_size, request.mesh, request.dtype
    if config.trainer == "tokenizer":
        return programs.lower_tokenizer_step(config, devices, request.num_columns)
    return programs.lower_generator_step(config, devices, request.num_columns)


def _least_seconds(request: GpuRequest, chip: Chip, program: GpuProgram, flops: float) -> dict[str, float]:
    slowdown = chip.float32_slowdown("highest") if request.dtype == "float32" else 1
    seconds = {
        "products": flops / request.num_chips * slowdown / chip.peak_flops,
        "kernels": program.kernels * KERNEL_SECONDS,
        "network": sum(
            item.bytes_sent / (chip.link_bandwidth if item.span <= chip.node_size else chip.network_bandwidth)
            for item in program.traffic
        ),
    }
    return {name: value for name, value in seconds.items() if value}


def format_report(report: GpuReport) -> str:
    """Formats a report as text with Markdown tables."""
    request, program = report.request, report.program
    chip = find_chip(request.chip)
    memory = sum(program.memory.values())
    rows = [(name, with_unit(size, "B")) for name, size in program.memory.items()]
    rows.append(("total", f"{with_unit(memory, 'B')}, {100 * memory / chip.memory:.0f} % of {chip.name}"))
    kernels = f", gpu_kernels={request.sampling.gpu_kernels}" if request.kind == "sampling" else ""
    parts = [
        f"{request.kind} of {request.config}: batch {request.batch_size}, {request.num_columns} columns, "
        f"{request.dtype}, {request.num_chips} × {request.chip}{kernels}",
        f"{program.compiler}, without autotuning: {program.compile_seconds:.0f} s",
        f"kernels of a run: {program.kernels}, {_launched(program)}",
        markdown_table(("on each device", "memory"), rows),
    ]
    if program.loops:
        loops = [
            ("  " * loop.depth + loop.name, loop.visits, "?" if loop.turns is None else loop.turns, loop.kernels)
            for loop in program.loops
        ]
        parts.append(markdown_table(("loop", "visits", "turns of a visit", "kernels of a turn"), loops))
    if program.traffic:
        sent = [(item.kind, item.group_size, item.count, with_unit(item.bytes_sent, "B")) for item in program.traffic]
        parts.append(markdown_table(("sent per device and run", "devices in a group", "calls", "bytes"), sent))
    least = ", ".join(f"{name} {with_unit(seconds, 's')}" for name, seconds in report.seconds.items())
    parts.append(
        f"FLOPs of the products: {report.flops:.4g}. Computed, not measured: {least} (peaks of the data sheet, "
        f"{with_unit(KERNEL_SECONDS, 's')} a kernel)."
    )
    return "\n\n".join(parts)


def _launched(program: GpuProgram) -> str:
    launches = program.launches
    if launches is None:
        return "launches unknown: this compiler describes them otherwise"
    return (
        f"of which {launches.kernels_in_buffers} in {launches.command_buffers} launches of command buffers and "
        f"{launches.single_kernels} by themselves"
    )
