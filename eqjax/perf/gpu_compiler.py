"""Compiles programs for NVIDIA GPUs on machines that have none, and reads the result.

XLA's GPU compiler is part of JAX's CUDA plugin. It needs a description of the chip, but neither the chip nor a driver.
Fusion, memory, collectives and command buffers are those of a real GPU. Autotuning is not, as it times kernels: a GPU
may choose other tile sizes, and cuBLAS in the place of Triton. Nothing is timed here.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import pathlib
import tempfile
import time
from typing import Any

import jax
from jax.experimental import topologies

from eqjax.generator.gpu_kernels import cuda_is_installed
from eqjax.perf.chips import Chip
from eqjax.perf.hlo import Collective, collectives
from eqjax.perf.kernels import Launches, Loop, count_kernels, count_launches

_NO_TILES = "Couldn't find output tile sizes"  # In the compiler's error, see `compile_program`.
# Versions of cuDNN and CUDA that JAX itself asks for, so that the compiler uses all it can.
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared_optin} threads_per_core_limit: {threads}
  core_count: {cores} fpus_per_core: {units} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: {clock}
  device_memory_size: {memory} cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{name}"
"""


@dataclasses.dataclass(frozen=True)
class GpuProgram:
    """A program as compiled for a GPU.

    Attributes:
      compiler: the compiler with its version, and the chip that it compiled for.
      compile_seconds: duration of compiling.
      kernels: kernels of one run, loops unrolled.
      loops: its loops.
      launches: what the host launches; None: this version of the compiler describes it otherwise.
      memory: bytes on each device: "arguments", "results" (those in the place of arguments left out), "temporary".
      traffic: the collectives of one run.
    """

    compiler: str
    compile_seconds: float
    kernels: int
    loops: list[Loop]
    launches: Launches | None
    memory: Mapping[str, int]
    traffic: list[Collective]


def is_installed() -> bool:
    """Returns whether JAX's CUDA plugin, and with it the GPU compiler, is installed."""
    return cuda_is_installed()


def check_installed() -> None:
    """Checks that the GPU compiler is installed.

    Raises:
      ModuleNotFoundError: it is not; the message says how to install it.
    """
    if not is_installed():
        raise ModuleNotFoundError(
            "the GPU compiler is missing. In a clone, `make gpu-compile` installs it; elsewhere: "
            f"pip install --no-deps jax-cuda12-plugin=={jax.__version__} jax-cuda12-pjrt=={jax.__version__} "
            "nvidia-cuda-nvcc-cu12. It needs neither a GPU nor a driver."
        )


def compiler_name(chip: Chip) -> str:
    """Returns what compiles for a chip, with its version.

    Example:
      >>> from eqjax.perf.chips import find_chip
      >>> compiler_name(find_chip("H100")).startswith("GPU compiler of jax")
      True
    """
    return f"GPU compiler of jax {jax.__version__} for {chip.name}"


def target(chip: Chip) -> str:
    """Returns the compiler's description of a chip, a text in the format of protocol buffers.

    Raises:
      ValueError: the chip is no CUDA GPU.
    """
    if chip.cuda is None:
        raise ValueError(f"{chip.name} is no CUDA GPU; eqjax/perf/chips.py describes those for the GPU compiler.")
    cuda = chip.cuda
    return _TARGET.format(
        shared=cuda.shared_memory_per_core,
        shared_optin=cuda.shared_memory_per_core - 1024,  # The driver keeps 1 KB for every block.
        threads=cuda.threads_per_core,
        cores=cuda.cores,
        units=cuda.float32_units,
        bandwidth=int(chip.memory_bandwidth),
        cache=cuda.l2_cache,
        clock=cuda.clock_ghz,
        memory=int(chip.memory),
        major=cuda.compute_capability[0],
        minor=cuda.compute_capability[1],
        name=cuda.device_name,
    )


def topology(chip: Chip, count: int) -> str:
    """Returns the arrangement of devices as the compiler names it: 1 × nodes × devices of a node.

    Raises:
      ValueError: several nodes are not full.

    Example:
      >>> from eqjax.perf.chips import find_chip
      >>> topology(find_chip("H100"), 4), topology(find_chip("H100"), 16)
      ('1x1x4', '1x2x8')
    """
    if count <= chip.node_size:
        return f"1x1x{count}"
    if count % chip.node_size:
        raise ValueError(f"{count} devices do not fill nodes of {chip.node_size} {chip.name}; make it a multiple.")
    return f"1x{count // chip.node_size}x{chip.node_size}"


def devices(chip: Chip, count: int = 1) -> list[Any]:
    """Returns devices to compile for, not to run on; node after node.

    Args:
      chip: a CUDA GPU.
      count: number of devices.

    Raises:
      ModuleNotFoundError: the GPU compiler is not installed.
      ValueError: the chip is no CUDA GPU, or several nodes are not full.
    """
    description, arrangement = target(chip), topology(chip, count)
    check_installed()
    found = topologies.get_topology_desc(
        topology_name="", platform="cuda", target_config=description, topology=arrangement
    )
    return list(found.devices)


def compile_program(lowered: Any, chip: Chip, *, triton: bool = True) -> GpuProgram:
    """Compiles a program that was lowered for `devices` of a chip.

    Args:
      lowered: `jax.jit(…).lower(…)`, all of whose arguments are on these devices.
      chip: the chip.
      triton: whether products may be compiled with Triton; otherwise cuBLAS computes them all. Triton's tile sizes
        are chosen by timing; those that the compiler takes without a GPU do not exist for some shapes, such as those
        of training steps. The program is then compiled again without Triton.

    Raises:
      RuntimeError: the compiler refuses the program.
    """
    try:
        return _compile(lowered, chip, triton)
    except jax.errors.JaxRuntimeError as error:
        if not triton or _NO_TILES not in str(error):
            raise
    return _compile(lowered, chip, triton=False)


def _compile(lowered: Any, chip: Chip, triton: bool) -> GpuProgram:
    options: dict[str, Any] = {"xla_dump_hlo_as_text": True, "xla_gpu_enable_triton_gemm": triton}
    # Only a compilation writes the dump, so that a program from JAX's cache would have none.
    with tempfile.TemporaryDirectory() as folder, _without_cache():
        start = time.perf_counter()
        compiled = lowered.compile(compiler_options={**options, "xla_dump_to": folder})
        seconds = time.perf_counter() - start
        text = str(compiled.as_text())
        launches = _launches(text, pathlib.Path(folder))
    analysis: Any = compiled.memory_analysis()
    kernels, loops = count_kernels(text)
    return GpuProgram(
        compiler=compiler_name(chip) + ("" if triton else ", products by cuBLAS"),
        compile_seconds=seconds,
        kernels=kernels,
        loops=loops,
        launches=launches,
        memory={
            "arguments": int(analysis.argument_size_in_bytes),
            "results": int(analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
            "temporary": int(analysis.temp_size_in_bytes),
        },
        traffic=collectives(text),
    )


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Leaves JAX's cache of compiled programs alone for the block."""
    config: Any = jax.config  # Its fields are set at run time.
    before = config.jax_enable_compilation_cache
    config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        config.update("jax_enable_compilation_cache", before)


def _launches(text: str, folder: pathlib.Path) -> Launches | None:
    """Reads the launches from the compiler's dump, or returns None if it has no such files."""
    thunks = list(folder.glob("*thunk_sequence_after_thunk_passes.txt"))
    metadata = list(folder.glob("*thunk_metadata.txt"))
    if len(thunks) != 1 or len(metadata) != 1:
        return None
    return count_launches(text, thunks[0].read_text(), metadata[0].read_text())
