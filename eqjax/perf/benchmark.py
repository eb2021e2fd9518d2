"""Measures how fast this machine samples, decodes and trains, and compares with its peak."""

from collections.abc import Sequence
import dataclasses
import json
import os
import time
from typing import Any

from absl import logging
import jax

from eqjax import memory
from eqjax.io import read_json_object, write_json
from eqjax.model import Model
from eqjax.perf.benchmark_models import make_model, names_weights
from eqjax.perf.benchmark_options import BenchmarkOptions
from eqjax.perf.benchmark_parts import Measurement, measure_part
from eqjax.perf.timing import PATIENCE, matmul_peak, peak_memory
from eqjax.progress import announced
from eqjax.tables import markdown_table, with_unit

Row = dict[str, Any]


def run_benchmark(
    requests: Sequence[BenchmarkOptions],
    *,
    output: str | None = None,
    resume: bool = False,
    time_limit: float | None = None,
) -> dict[str, Any]:
    """Measures all parts of all requests, one row after another.

    A row that fails, such as for want of memory, has an "error", a sentence, and the next row follows.

    Args:
      requests: what to measure.
      output: JSON file with the result, written again after every row; None: no file.
      resume: keep the rows of that file that were measured on this kind of device with this version of JAX, and
        measure the others.
      time_limit: seconds after which no further row is started; None: no limit.

    Returns:
      {"device": …, "jax": …, "rows": […]} as JSON values; a row has the options, "part" and the figures.

    Raises:
      ValueError: an option is wrong, before anything is measured; no row could be measured; the file holds something
        else.
      FileNotFoundError: there are no such weights or config file.
    """
    names = [request.part_names() for request in requests]  # Wrong options are refused here.
    results: dict[str, Any] = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "rows": []}
    kept = _rows_to_keep(output, results) if resume and output else []
    if not resume and output:
        write_json(output, results)
    start, models = time.monotonic(), _Models()
    for request, parts in zip(requests, names, strict=True):
        for part in parts:
            described = _describe(request, part)
            row = next((row for row in kept if described.items() <= row.items()), None)
            if row is None and time_limit is not None and time.monotonic() - start > time_limit:
                row = {**described, "error": f"not started, as {time_limit:g} s were over"}
            row = row or {**described, **_measure(request, part, models)}
            logging.info("%s: %s", _name(row), row.get("error") or _summary(row))
            results["rows"].append(row)
            if output:
                write_json(output, {**results, "rows": [*results["rows"], *_missing(kept, results["rows"])]})
    failed = [row for row in results["rows"] if "error" in row]
    if results["rows"] and len(failed) == len(results["rows"]):
        raise ValueError(f"nothing could be measured: {failed[0]['error']}")
    return results


def _rows_to_keep(output: str, machine: dict[str, Any]) -> list[Row]:
    """Returns the rows of an earlier result without errors, if it is of the same machine.

    Raises:
      ValueError: the file holds something else.
    """
    if not os.path.exists(output):
        return []
    found = read_json_object(output)
    if not isinstance(found.get("rows"), list):
        raise ValueError(f"{output} holds no rows of a benchmark; give another --output, or leave --resume out.")
    if any(found.get(name) != machine[name] for name in ("device", "jax")):
        logging.warning(
            "%s was measured on %s with jax %s, this is %s with jax %s: everything is measured again.",
            output, found.get("device"), found.get("jax"), machine["device"], machine["jax"],
        )  # fmt: skip
        return []
    return [row for row in found["rows"] if "error" not in row]


def _missing(kept: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of an earlier result that are not among the rows: still to come, or not asked for."""
    return [row for row in kept if row not in rows]


def _describe(request: BenchmarkOptions, part: str) -> Row:
    """Returns the options that determine a row, as JSON values."""
    described = dataclasses.asdict(request)
    del described["sampling"], described["parts"], described["num_kernels"]
    if request.kind in ("sampling", "floor") and part != "decoder":
        described |= request.sampling.to_dict()
    return json.loads(json.dumps({**described, "part": part}))


def _name(row: Row) -> str:
    return f"{row['kind']} of {row['config']}, batch {row['batch_size']}, {row['dtype']}, {row['part']}"


class _Models:
    """Makes models, of which it holds one."""

    def __init__(self) -> None:
        self._held: tuple[Any, Model] | None = None

    def get(self, request: BenchmarkOptions) -> Model | None:
        """Returns the model that a request needs, or None."""
        if request.kind == "training" or (request.kind == "floor" and not names_weights(request.config)):
            self._held = None  # A training step wants the memory.
            return None
        wanted = request.config, request.dtype, request.fields
        if self._held is None or self._held[0] != wanted:
            self._held = None
            with announced(f"Making the model {request.config}", patience=PATIENCE):
                self._held = wanted, make_model(*wanted)
        return self._held[1]


def _measure(request: BenchmarkOptions, part: str, models: _Models) -> Row:
    """Returns the figures of a row, or its error."""
    try:
        measured = measure_part(request, part, models.get(request))
        peak = None if measured.timing is None else matmul_peak(request.dtype, request.precision)
        return _figures(measured, request, peak)
    except Exception as error:  # Whatever it is, other rows may be measured.
        logging.debug("A row failed.", exc_info=True)
        remedy = "lower batch_size, or take a device with more memory"
        if memory.is_out_of_memory(error):
            return {"error": memory.describe(error, f"batch_size={request.batch_size}", remedy)}
        return {"error": next(iter(str(error).splitlines()), type(error).__name__)}


def _figures(measured: Measurement, request: BenchmarkOptions, peak: float | None) -> Row:
    row: Row = {"gflop": measured.flops / 1e9}
    if measured.bytes is not None:
        row["gigabytes"] = measured.bytes / 1e9
    timing = measured.timing
    if timing is None or peak is None:
        return row
    row["seconds"] = timing.seconds
    row["seconds_per_column"] = timing.seconds / request.num_columns
    row["images_per_second"] = request.batch_size / timing.seconds
    row["compile_seconds"] = timing.compile_seconds
    row["temporary_megabytes"] = timing.temporary_bytes / 1e6
    row["peak_memory_megabytes"] = peak_memory() / 1e6
    row["tflops"], row["peak_tflops"] = measured.flops / timing.seconds / 1e12, peak / 1e12
    row["fraction_of_peak"] = measured.flops / timing.seconds / peak
    if timing.kernels:
        row["kernels"] = [dataclasses.asdict(kernel) for kernel in timing.kernels]
    return row


# ── Text ────────────────────────────────────────────────────────────────────────────────────────


def _summary(row: Row) -> str:
    if "seconds" not in row:
        return f"{row['gflop']:.4g} GFLOP"
    return (
        f"{with_unit(row['seconds'], 's')}, {row['images_per_second']:.4g} images per second, "
        f"{100 * row['fraction_of_peak']:.3g} % of the peak"
    )


def format_results(results: dict[str, Any]) -> str:
    """Formats results as text: what all rows share in a line, a table of the rows, and tables of their kernels."""
    rows = [{k: _format(v) for k, v in row.items() if k != "kernels"} for row in results["rows"]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    shared = {name: rows[0][name] for name in names if len({row.get(name, "") for row in rows}) == 1} if rows else {}
    shared = {name: value for name, value in shared.items() if name not in ("part", *_FIGURES)}
    machine = {name: value for name, value in results.items() if name != "rows"}
    line = " ".join(f"{name}={value}" for name, value in {**machine, **shared}.items() if value != "")
    shown = sorted((name for name in names if name not in shared), key=lambda name: name in _FIGURES)
    parts = [line, markdown_table(shown, [[row.get(name, "") for name in shown] for row in rows])]
    for row in results["rows"]:
        if kernels := row.get("kernels"):
            cells = [
                (k["name"], k["calls"], with_unit(k["seconds"], "s"), f"{100 * k['fraction']:.1f} %") for k in kernels
            ]
            parts.append(f"{_name(row)}, longest kernels of a call:")
            parts.append(markdown_table(("kernel", "calls", "time", "of all"), cells))
    return "\n\n".join(parts)


# Columns of the table that are measured; others are options.
_FIGURES = (
    "gflop", "gigabytes", "seconds", "seconds_per_column", "images_per_second", "compile_seconds",
    "temporary_megabytes", "peak_memory_megabytes", "tflops", "peak_tflops", "fraction_of_peak", "error",
)  # fmt: skip


def _format(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
