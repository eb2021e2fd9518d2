"""Results of evaluations, in results.json and table.md: every row has its metrics and the protocol behind them."""

from collections.abc import Mapping, Sequence
import json
import math
import os
from typing import Any, TypedDict

import jax

from eqjax.addresses import local_path
from eqjax.evaluation.protocol import DEVICE_ENTRIES
from eqjax.io import atomic_write, read_json, write_json
from eqjax.tables import markdown_table

_METRICS = ("fid", "sfid", "inception_score", "kid", "precision", "recall", "rfid", "rsfid", "psnr", "ssim", "lpips")


class Result(TypedDict):
    """Metrics by name, and the protocol as JSON values. A value that is not finite is None in files."""

    metrics: dict[str, Any]
    protocol: dict[str, Any]


def save(folder: str | os.PathLike[str], results: Sequence[Result]) -> str:
    """Adds results to results.json and table.md, and returns the table.

    Earlier rows stay, except rows of the same protocol (on whatever device) and rows without metrics.

    Args:
      folder: folder of the two files; made if missing.
      results: new rows.

    Raises:
      ValueError: results.json was not written by this function.

    Example:
      >>> print(save("/tmp/results", [{"metrics": {"fid": 2.5}, "protocol": {"seed": 0}}]))
      | fid    |
      | ------ |
      | 2.5000 |
      <BLANKLINE>
      Protocol: seed: 0.
      <BLANKLINE>
    """
    new = [json_values(result) for result in results]
    identities = [_identity(result) for result in new]
    kept = [result for result in load(folder) if result["metrics"] and _identity(result) not in identities]
    text = table(kept + new)
    if jax.process_index() == 0:
        write_json(os.path.join(folder, "results.json"), kept + new)
        # Names of files need not be text in UTF-8.
        options: Any = dict(encoding="utf-8", errors="backslashreplace")
        with atomic_write(os.path.join(folder, "table.md")) as path, open(path, "w", **options) as file:
            file.write(text)
    return text


def load(folder: str | os.PathLike[str]) -> list[Result]:
    """Returns the results that `save` wrote to a folder; none if there is no results.json.

    Raises:
      ValueError: results.json has other contents, or cannot be read.
    """
    path = os.path.join(local_path(folder, "the folder of results"), "results.json")
    if not os.path.isfile(path):
        return []
    try:
        results = read_json(path)
        if all(_is_result(result["metrics"], result["protocol"]) for result in results):
            return results
        error = "no list of metrics with protocols"
    except ValueError as found:
        error = str(found)
    except (TypeError, KeyError) as found:
        error = repr(found)
    raise ValueError(f"{path} was not written by `eqjax evaluate`, or was changed ({error}): give another --output.")


def _is_result(metrics: Any, protocol: Any) -> bool:
    """Returns whether two values from a file are the metrics, numbers or None, and the protocol of a row."""
    if not isinstance(metrics, dict) or not isinstance(protocol, dict):
        return False
    return all(isinstance(metrics.get(name), int | float | None) for name in _METRICS)


def _identity(result: Result) -> dict[str, Any]:
    """Returns the protocol without the device: rows with equal ones replace each other."""
    return {name: value for name, value in result["protocol"].items() if name not in DEVICE_ENTRIES}


def json_values(values: Any) -> Any:
    """Returns nested dicts and lists with None instead of NaN and infinities, which JSON cannot hold.

    Example:
      >>> json_values({"loss": (1.0, float("nan"))})
      {'loss': [1.0, None]}
    """
    if isinstance(values, dict):
        return {str(name): json_values(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [json_values(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def table(results: Sequence[Result]) -> str:
    """Formats results as a Markdown table: protocol entries that differ, then metrics; common entries follow below.

    Args:
      results: at least one row.
    """
    protocols = [result["protocol"] for result in results]
    names = list(dict.fromkeys(name for protocol in protocols for name in protocol))
    differing = [name for name in names if len({json.dumps(p.get(name)) for p in protocols}) > 1]
    metrics = [name for name in _METRICS if any(name in result["metrics"] for result in results)]
    rows = [
        [
            *(_protocol_cell(r["protocol"], name) for name in differing),
            *(_metric_cell(r["metrics"], n) for n in metrics),
        ]
        for r in results
    ]
    text = markdown_table(differing + metrics, rows) if metrics else "No metric was measured: images alone."
    shared = {name: protocols[0].get(name) for name in names if name not in differing}
    common = [f"{name}: {value}" for name, value in shared.items() if value is not None]
    return f"{text}\n\nProtocol: {', '.join(common)}.\n"


def _protocol_cell(protocol: Mapping[str, Any], name: str) -> str:
    value = protocol.get(name)
    return "" if value is None else str(value)


def _metric_cell(metrics: Mapping[str, Any], name: str) -> str:
    if name not in metrics:
        return ""
    return "–" if metrics[name] is None else f"{metrics[name]:.4f}"
