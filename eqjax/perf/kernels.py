"""Counts the kernels and launches of a compiled GPU program, with loops unrolled.

Kernels are read from the program's text. What the host launches is read from the compiler's dump of its thunks, the
steps of the executable: single kernels, and command buffers (CUDA graphs) of many kernels.
"""

from collections.abc import Mapping
import dataclasses
import re

from eqjax.perf import hlo

# Instructions that start a kernel of their own; the compiler wraps all others into fusions. One that runs beside others
# is two, "…-start" and "…-done".
_KERNELS = {
    "fusion", "custom-call", "copy", "sort", "convolution", "dot", "reduce", "scatter", "gather", "all-gather",
    "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "rng-bit-generator", "cholesky",
    "triangular-solve", "fft",
}  # fmt: skip
_OPCODE = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = .*? ([\w-]+)\(")
_CALLED = {"call": r"to_apply=%?([\w.-]+)", "async-start": r"calls=%?([\w.-]+)"}


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a program.

    Attributes:
      name: name of its body.
      depth: number of loops around it.
      turns: turns each time that the program comes to it; None: the compiler does not know, and they count as one.
      visits: how often the program comes to it.
      kernels: kernels of one turn; those of inner loops are left out.
    """

    name: str
    depth: int
    turns: int | None
    visits: int
    kernels: int


@dataclasses.dataclass(frozen=True)
class Launches:
    """What the host launches in one run of a program.

    Attributes:
      command_buffers: launches of command buffers.
      kernels_in_buffers: kernels that these hold.
      single_kernels: kernels launched by themselves.
    """

    command_buffers: int
    kernels_in_buffers: int
    single_kernels: int


def count_kernels(text: str) -> tuple[int, list[Loop]]:
    """Counts the kernels of one run of a program, and lists its loops in their order.

    Of a conditional, the branch with the most kernels counts.

    Args:
      text: the program, `compiled.as_text()`.
    """
    bodies = hlo.computations(text)
    loops: list[Loop] = []

    def visit(name: str, visits: int, depth: int) -> tuple[int, int]:
        """Returns (kernels of one run, those of them that are in no inner loop)."""
        own = inner = 0
        for line in bodies.get(name, ()):
            found = _OPCODE.match(line)
            opcode = found[1] if found else ""
            own += opcode in _KERNELS or opcode.removesuffix("-start") in _KERNELS
            if opcode == "while":
                turns, place = hlo.trip_count(line), len(loops)
                body = re.findall(r"body=%?([\w.-]+)", line)[0]
                total, outside = visit(body, visits * (turns or 1), depth + 1)
                loops.insert(place, Loop(body, depth, turns, visits, outside))
                inner += (turns or 1) * total
            elif opcode == "conditional":
                branches = [visit(branch, visits, depth) for branch in _branches(line)]
                largest = max(branches, default=(0, 0))
                own, inner = own + largest[1], inner + largest[0] - largest[1]
            elif opcode in _CALLED:
                for callee in re.findall(_CALLED[opcode], line):
                    total, outside = visit(callee, visits, depth)
                    own, inner = own + outside, inner + total - outside
        return own + inner, own

    return visit("ENTRY", 1, 0)[0], loops


def _branches(line: str) -> list[str]:
    """Returns the computations of a conditional: a list, or those of true and false."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", line)
    names = listed[1] if listed else ",".join(re.findall(r"(?:true|false)_computation=(%?[\w.-]+)", line))
    return re.findall(r"[\w.-]+", names)


def count_launches(text: str, thunks: str, metadata: str) -> Launches:
    """Counts what the host launches in one run.

    The conditions of loops whose turns the compiler knows are not run. All branches of conditionals count.

    Args:
      text: the program, `compiled.as_text()`, which knows the turns of loops.
      thunks: the dump `thunk_sequence_after_thunk_passes.txt`.
      metadata: the dump `thunk_metadata.txt`, which maps its numbers to instructions.
    """
    turns = {
        found[1]: trips
        for line in text.splitlines()
        if (found := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = .* while\(", line)) and (trips := hlo.trip_count(line))
    }
    names = {number: name for name, number in re.findall(r'profile_annotation: "([^"]*)"\s+thunk_id: (\d+)', metadata)}
    by_number = {int(number): turns[name] for number, name in names.items() if name in turns}
    return _sum_thunks(thunks.splitlines(), by_number)


def _sum_thunks(lines: list[str], turns: Mapping[int, int]) -> Launches:
    """Walks the tree of thunks, which indentation shows; `turns` are those of loops by the loop's number."""
    buffers = inside = single = 0
    # (indentation, times that what is below it runs, whether it is in a command buffer, number) from the outermost on.
    around: list[tuple[int, int, bool, int]] = [(-1, 1, False, 0)]
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.strip() in ("condition:", "body:"):
            # The word of a condition is not indented: it follows its loop.
            while line.strip() == "body:" and around[-1][0] >= indent:
                around.pop()
            place, times, buffered, number = around.pop()
            outer = around[-1][1] if around else 1
            known = turns.get(number)
            times = outer * (known or 1) if line.strip() == "body:" else outer * (known is None)
            around.append((place, times, buffered, number))
            continue
        found = re.match(r"\s*(\d+): (k\w+)", line)
        if found is None:
            continue
        while around[-1][0] >= indent:
            around.pop()
        _, times, buffered, _ = around[-1]
        is_buffer = found[2] == "kCommandBuffer"
        follower = lines[i + 1] if i + 1 < len(lines) else ""
        # What waits for a kernel on another stream launches nothing.
        is_leaf = found[2] not in ("kWhile", "kAsyncDone") and len(follower) - len(follower.lstrip()) <= indent
        if is_buffer:
            buffers += times
        elif is_leaf and buffered:
            inside += times
        elif is_leaf:
            single += times
        around.append((indent, times, buffered or is_buffer, int(found[1])))
    return Launches(buffers, inside, single)
