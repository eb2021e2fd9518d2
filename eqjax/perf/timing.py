"""Times compiled functions, and measures the peaks with which speeds are compared."""

from collections.abc import Callable
import dataclasses
import functools
import resource
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from eqjax import xla_flags
from eqjax.perf.profiles import Kernel, profile_kernels
from eqjax.precision import computing_in
from eqjax.progress import announced

PATIENCE = 2.0  # Seconds after which work that may be quick is announced.


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of a compiled function.

    Attributes:
      seconds: median duration of its calls.
      compile_seconds: duration of tracing and compiling.
      temporary_bytes: memory that the program needs beside its arguments and results.
      kernels: the longest kernels of one more call, under a profiler; empty if that was not asked for.
    """

    seconds: float
    compile_seconds: float
    temporary_bytes: int
    kernels: tuple[Kernel, ...] = ()


def measure(function: Callable[..., Any], *args: Any, repeats: int = 3, num_kernels: int = 0) -> Timing:
    """Compiles a function, calls it once, and times further calls.

    Args:
      function: a function to be traced.
      *args: its arguments.
      repeats: timed calls.
      num_kernels: kernels of a profile to return; 0: no profile.
    """
    name, start = function.__name__.replace("_", " "), time.perf_counter()
    with announced(f"Compiling {name}", patience=PATIENCE):
        compiled = jax.jit(function).lower(*args).compile(compiler_options=options(profiled=num_kernels > 0))
    compile_seconds = time.perf_counter() - start
    return time_calls(name, lambda: compiled(*args), compiled, compile_seconds, repeats, num_kernels)


def options(*, profiled: bool) -> dict[str, Any] | None:
    """Returns the compiler's options of a program on one device, or None; see `eqjax.xla_flags`."""
    return xla_flags.options(jax.devices()[0].platform, profiled=profiled) or None


def time_calls(
    name: str,
    call: Callable[[], Any],
    compiled: jax.stages.Compiled,
    compile_seconds: float,
    repeats: int,
    num_kernels: int,
) -> Timing:
    """Times calls of a compiled program, after a first one.

    Args:
      name: what is called, for messages.
      call: calls it.
      compiled: the program.
      compile_seconds: duration of compiling it.
      repeats: timed calls.
      num_kernels: kernels of a profile to return; 0: no profile.
    """
    times = []
    with announced(f"Timing {repeats} calls of {name}, after a first one", patience=PATIENCE):
        jax.block_until_ready(call())
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - start)
    kernels: tuple[Kernel, ...] = ()
    if num_kernels:
        with announced(f"Profiling {name}", patience=PATIENCE):
            kernels = profile_kernels(call, num_kernels)
    # Not every backend has an analysis.
    temporary_bytes = getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0)
    return Timing(statistics.median(times), compile_seconds, temporary_bytes, kernels)


@functools.cache
def matmul_peak(dtype: str, precision: str = "highest") -> float:
    """Measures the FLOP/s of large matrix products, once for every dtype and precision.

    The numbers are random: chips draw less power for products of equal numbers, and an H200 multiplies ones a tenth
    faster. Ten products follow each other, as starting a single one takes a part of its time.

    Args:
      dtype: type of the numbers, "float32" or "bfloat16".
      precision: of products of float32 numbers, see `eqjax.precision.computing_in`.
    """
    on_cpu = jax.default_backend() == "cpu"
    n, count = (2048, 1) if on_cpu else (8192, 10)
    a = jnp.asarray(np.random.default_rng(0).standard_normal((n, n), np.float32) / np.sqrt(np.float32(n)), dtype)

    def products(a: Float[Array, "n n"], b: Float[Array, "n n"]) -> Float[Array, "n n"]:
        with computing_in(precision):
            return jax.lax.fori_loop(0, count, lambda _, c: c @ b, a)

    return count * 2 * n**3 / measure(products, a, a, repeats=5).seconds


def peak_memory() -> int:
    """Returns the peak memory in bytes: of the device if it reports it, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
