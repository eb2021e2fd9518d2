"""The kernels of a call: how often each runs, and how long, read from a trace of JAX's profiler."""

import collections
from collections.abc import Callable, Iterable, Iterator
import dataclasses
import pathlib
import tempfile
from typing import Any

import jax

# Lines of a device's plane that hold kernels: a GPU's streams, a TPU's operations.
_DEVICE_LINES = ("Stream", "XLA Ops")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of a call; on a CPU, an operation of the program.

    Attributes:
      name: its name.
      calls: how often it ran.
      seconds: time of all its runs, without that of operations inside of it.
      fraction: this time over that of all kernels of the call.
    """

    name: str
    calls: int
    seconds: float
    fraction: float


def profile_kernels(call: Callable[[], Any], count: int) -> tuple[Kernel, ...]:
    """Calls a function under JAX's profiler, and returns its longest kernels.

    Args:
      call: the function, which should be compiled and have run before.
      count: number of kernels.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        paths = sorted(pathlib.Path(folder).rglob("*.xplane.pb"))
        traces = [jax.profiler.ProfileData.from_file(str(path)) for path in paths]
        return longest(((event for trace in traces for event in _kernels(trace))), count)


def longest(events: Iterable[tuple[str, float]], count: int) -> tuple[Kernel, ...]:
    """Returns the kernels that take longest, the first first.

    Args:
      events: (name, seconds) of every run of a kernel.
      count: number of kernels.

    Example:
      >>> [kernel] = longest([("gemm", 2.0), ("norm", 1.0), ("gemm", 1.0)], 1)
      >>> kernel
      Kernel(name='gemm', calls=2, seconds=3.0, fraction=0.75)
    """
    times = collections.defaultdict(list)
    for name, seconds in events:
        times[name].append(seconds)
    total = sum(map(sum, times.values()))
    kernels = [Kernel(name, len(all_), sum(all_), sum(all_) / total if total else 0.0) for name, all_ in times.items()]
    return tuple(sorted(kernels, key=lambda kernel: -kernel.seconds)[:count])


def _kernels(trace: Any) -> Iterator[tuple[str, float]]:
    """Yields (name, seconds) of the kernels of a trace: of devices, or of the host where there are none (CPUs)."""
    planes = [plane for plane in trace.planes if plane.name.startswith("/device:") and "CUSTOM" not in plane.name]
    lines = [line for plane in planes for line in plane.lines if line.name.startswith(_DEVICE_LINES)]
    if lines:
        for line in lines:
            yield from exclusive((event.name, event.start_ns, event.duration_ns) for event in line.events)
        return
    for line in (line for plane in trace.planes if plane.name == "/host:CPU" for line in plane.lines):
        operations = (event for event in line.events if any(name == "hlo_op" for name, _ in event.stats))
        yield from exclusive((event.name, event.start_ns, event.duration_ns) for event in operations)


def exclusive(events: Iterable[tuple[str, float, float]]) -> Iterator[tuple[str, float]]:
    """Yields (name, seconds) of events without the time of those inside of them, such as a loop without its body.

    Args:
      events: (name, start, duration) on one line, in nanoseconds; an event lies inside another, or apart from it.

    Example:
      >>> [(name, round(seconds * 1e9)) for name, seconds in exclusive([("loop", 0.0, 10.0), ("norm", 2.0, 3.0)])]
      [('norm', 3), ('loop', 7)]
    """
    open_events: list[list[Any]] = []  # Name, end, own time; each inside the one before.
    for name, start, duration in sorted(events, key=lambda event: (event[1], -event[2])):
        while open_events and open_events[-1][1] <= start:
            ended = open_events.pop()
            yield ended[0], ended[2] / 1e9
        if open_events:
            open_events[-1][2] -= duration
        open_events.append([name, start + duration, duration])
    for ended in reversed(open_events):
        yield ended[0], ended[2] / 1e9
