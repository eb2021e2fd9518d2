"""Markdown tables."""

import pytest

from eqjax.tables import markdown_table


def test_columns_are_as_wide_as_their_widest_cell_and_at_least_three():
    assert markdown_table(["a", "name"], [[1, "x"], [12345, None]]).splitlines() == [
        "| a     | name |",
        "| ----- | ---- |",
        "| 1     | x    |",
        "| 12345 | None |",
    ]
    assert markdown_table(["a"], [["b"]]).splitlines()[1] == "| --- |"


def test_a_table_without_rows_is_its_header():
    assert markdown_table(["a", "b"], []) == "| a   | b   |\n| --- | --- |"


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"a row has 1 cells, the header 2: \['x'\]"):
        markdown_table(["a", "b"], [["x"]])
