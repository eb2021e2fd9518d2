"""Differences of two dicts."""

from typing import Any

import pytest

from eqjax.differences import check_equal, differences

NAMES: dict[str, Any] = dict(found_name="file", expected_name="model")


def test_equal_dicts_have_none():
    assert differences({"a": {"b": [1]}}, {"a": {"b": [1]}}, **NAMES) == []
    check_equal({}, {}, "they differ:", **NAMES)


def test_nested_and_missing_entries_are_listed_by_name():
    found, expected = {"b": 2, "a": {"x": 1, "y": 0}}, {"a": {"x": 1, "y": 3}, "c": "new"}
    assert differences(found, expected, **NAMES) == [
        "  a.y: file 0, model 3",
        "  b: file 2, model None",
        "  c: file None, model 'new'",
    ]


def test_only_the_first_differences_are_listed():
    lines = differences({str(i): i for i in range(5)}, {}, limit=3, **NAMES)
    assert len(lines) == 4 and lines[-1] == "  … and 2 more"


def test_long_values_are_cut():
    (line,) = differences({"names": "n" * 1000}, {}, **NAMES)
    assert line.endswith("n…, model None") and len(line) < 250


def test_unequal_dicts_raise_the_given_error():
    with pytest.raises(KeyError, match=r"they differ:.*width: file 8, model 16"):
        check_equal({"width": 8}, {"width": 16}, "they differ:", error=KeyError, **NAMES)
