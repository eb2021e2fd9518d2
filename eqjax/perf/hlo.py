"""Reads the collectives of a compiled program from its HLO text: the traffic between devices, with loops unrolled.

HLO names the devices of a collective, its replica groups, in four ways. Two groups of two devices are

    replica_groups={{0,2},{1,3}}                   lists of device numbers
    replica_groups=[2,2]<=[2,2]T(1,0)              shape of the groups <= shape of 0, 1, …, transposed by T
    replica_groups=mesh['a'=2,'b'=2] {'a'}         axes of a mesh of devices 0, 1, …
    source_target_pairs={{0,2},{2,0}}              senders and receivers, of collective-permute

A mesh may name its devices, `mesh[…], device_ids=([2,2]T(1,0)) {'a'}`, and groups may run along a factor of an
axis: `'a':(2)2` splits 'a' into factors 2 · 2 · … and takes the second one.
"""

import dataclasses
import math
import re

from jaxtyping import Int
import numpy as np

_ITEM_SIZES = {
    "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """The calls of one kind of collective in groups of one size and span.

    Attributes:
      kind: HLO's name, such as "all-gather".
      group_size: devices in a group.
      span: largest difference of device numbers in a group, plus 1: at most the node size where groups stay in a node.
      count: number of calls.
      bytes_sent: bytes that one device sends in all calls, for ring algorithms.
    """

    kind: str
    group_size: int
    span: int
    count: int
    bytes_sent: float


def collectives(text: str) -> list[Collective]:
    """Lists the collectives of a compiled program, one entry per kind, group size and span.

    Args:
      text: the program, `compiled.as_text()`.

    Raises:
      ValueError: the groups of a collective are in an unknown notation.
    """
    found: dict[tuple[str, int, int], tuple[int, float]] = {}
    for body, times in _reachable_computations(text):
        for line in body:
            match = re.search(rf"= (.+?) ({'|'.join(_KINDS)})(-start)?\(", line)
            if match is None:
                continue
            kind, groups = match[2], device_groups(line)
            size, span = groups.shape[1], int(np.ptp(groups, axis=1).max()) + 1
            if size == 1:
                continue
            sent = _sent_fraction(kind, size) * _result_bytes(match[1], is_start=bool(match[3]))
            count, total = found.get((kind, size, span), (0, 0.0))
            found[kind, size, span] = count + times, total + times * sent
    return [Collective(*key, *values) for key, values in sorted(found.items())]


def device_groups(line: str) -> Int[np.ndarray, "groups size"]:
    """Returns the device numbers of a collective, one group per row; the module's docstring has the four notations.

    Args:
      line: the HLO instruction.

    Raises:
      ValueError: the line holds no groups in a known notation.

    Example:
      >>> device_groups("all-reduce(%x), replica_groups=[2,2]<=[2,2]T(1,0)").tolist()
      [[0, 2], [1, 3]]
    """
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", line
    )
    if mesh:
        sizes, shape, order, axes = mesh.groups()
        return _mesh_groups(sizes, axes, None if shape is None else _transposed_iota(shape, order))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        return _transposed_iota(iota[2], iota[3]).reshape(_integers(iota[1]))
    lists = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,]+\}(?:,\{[\d,]+\})*)\}", line)
    if lists is None:
        raise ValueError(f"no groups of devices in a known notation in: {line.strip()[:200]}")
    return np.array([_integers(group) for group in re.findall(r"\{([\d,]+)\}", lists[1])])


def computations(text: str) -> dict[str, list[str]]:
    r"""Returns the lines of every computation of a program by its name; that of the entry is "ENTRY".

    Args:
      text: the program, `compiled.as_text()`.

    Example:
      >>> computations("ENTRY %main (p: f32[]) -> f32[] {\n  ROOT %p = f32[] parameter(0)\n}")["ENTRY"]
      ['  ROOT %p = f32[] parameter(0)', '}']
    """
    bodies: dict[str, list[str]] = {}
    name = None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            name = "ENTRY" if head[1] else head[2]
            bodies[name] = []
        elif name is not None:
            bodies[name].append(line)
    return bodies


def trip_count(line: str) -> int | None:
    """Returns the turns of the loop that an instruction starts, or None if the compiler does not know them."""
    found = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    return int(found[1]) if found else None


def _reachable_computations(text: str) -> list[tuple[list[str], int]]:
    """Returns (lines, number of executions) of every computation that the entry reaches."""
    bodies = computations(text)
    times: dict[str, int] = {}
    waiting = [("ENTRY", 1)]
    while waiting:
        name, count = waiting.pop()
        times[name] = times.get(name, 0) + count
        for line in bodies[name]:
            for callee in re.findall(r"(?:body|calls|to_apply)=%?([\w.-]+)", line):
                if callee in bodies:
                    waiting.append((callee, count * (trip_count(line) or 1)))
    return [(bodies[name], count) for name, count in times.items()]


def _sent_fraction(kind: str, size: int) -> float:
    """Returns the bytes that a device sends in a ring of `size` devices, over the bytes of the result that it holds."""
    if kind == "collective-permute":
        return 1.0
    if kind == "all-reduce":
        return 2 * (size - 1) / size
    # The result of a reduce-scatter is one of `size` parts; that of the others is whole.
    return (size - 1) / size * (size if kind == "reduce-scatter" else 1)


def _result_bytes(types: str, is_start: bool) -> int:
    """Returns the bytes of "(f32[2,3]{1,0}, …)"; the result of an asynchronous start holds its operands first."""
    sizes = [
        _ITEM_SIZES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", types)
    ]
    return sum(sizes[len(sizes) // 2 :] if is_start and len(sizes) > 1 else sizes)


def _integers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _transposed_iota(shape: str, order: str | None) -> Int[np.ndarray, "..."]:
    """Returns 0, 1, … in a shape such as "4,2", its axes transposed by "1,0" (None: as they are)."""
    numbers = np.arange(math.prod(_integers(shape))).reshape(_integers(shape))
    return numbers.transpose(_integers(order)) if order else numbers


def _mesh_groups(sizes: str, axes: str, devices: Int[np.ndarray, "..."] | None) -> Int[np.ndarray, "groups size"]:
    """Returns the groups along axes of a mesh.

    Args:
      sizes: the mesh, "'a'=4,'b'=2".
      axes: "'a'" for a whole axis, or "'a':(2)2" for its factor 2 after factors whose product is (2).
      devices: numbers of the devices in the mesh's order; None: 0, 1, ….
    """
    mesh = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    shape: list[int] = []
    chosen: list[int] = []  # Axes of `shape` that the groups run along.
    for name, size in mesh.items():
        factors = sorted((int(before or 1), int(factor or size)) for axis, before, factor in wanted if axis == name)
        done = 1
        for before, factor in factors:
            shape += [before // done, factor]
            chosen.append(len(shape) - 1)
            done = before * factor
        shape.append(size // done)
    numbers = (np.arange(math.prod(shape)) if devices is None else devices).reshape(shape)
    numbers = np.moveaxis(numbers, chosen, range(-len(chosen), 0))
    return numbers.reshape(-1, math.prod(shape[axis] for axis in chosen))
