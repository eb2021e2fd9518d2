"""Compares two sides, such as a saved and a requested configuration, and lists their differences."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from eqjax.messages import shorten

_LIMIT = 12


def differences(
    found: Mapping[str, Any], expected: Mapping[str, Any], *, found_name: str, expected_name: str, limit: int = _LIMIT
) -> list[str]:
    """Lists the entries in which two dicts differ, nested dicts entry by entry.

    Args:
      found: first dict.
      expected: second dict; an entry that one of them lacks counts as None there.
      found_name: name of the first dict in the lines, such as "checkpoint".
      expected_name: name of the second dict in the lines, such as "this run".
      limit: lines to return; a last line counts the differences left out.

    Returns:
      One indented line per difference, sorted by name, with both values (cut after 200 characters); empty if there are
      none.

    Example:
      >>> differences({"width": 8}, {"width": 16}, found_name="file", expected_name="model")
      ['  width: file 8, model 16']
    """
    left, right = _flatten(found), _flatten(expected)
    lines = [
        f"  {shorten(name)}: {found_name} {shorten(repr(left.get(name)))}, "
        f"{expected_name} {shorten(repr(right.get(name)))}"
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name)
    ]
    return lines if len(lines) <= limit else [*lines[:limit], f"  … and {len(lines) - limit} more"]


def check_equal(
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    message: str,
    *,
    found_name: str,
    expected_name: str,
    error: type[Exception] = ValueError,
) -> None:
    """Raises `error` with `message` and the list of `differences` unless both sides are equal.

    Raises:
      error: the two sides differ.
    """
    lines = differences(found, expected, found_name=found_name, expected_name=expected_name)
    if lines:
        raise error("\n".join([message, *lines]))


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(values), sep=".") if values else {}
