"""Formats numbers with units, and tables as Markdown."""

from collections.abc import Sequence

_PREFIXES = {1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ", 1e-9: "n"}


def with_unit(value: float, unit: str) -> str:
    """Formats a number with three digits and the prefix that fits its size.

    Args:
      value: the number, in the unit.
      unit: the unit without prefix, such as "s" or "B".

    Example:
      >>> with_unit(0.0000421, "s"), with_unit(2_578_000_000, "B"), with_unit(0, "s")
      ('42.1 µs', '2.58 GB', '0 s')
    """
    rounded = float(f"{value:.3g}")
    factor = next((factor for factor in _PREFIXES if abs(rounded) >= factor), min(_PREFIXES))
    digits = f"{rounded / factor:#.3g}".rstrip(".")
    return f"{digits if rounded else 0} {_PREFIXES[factor] if rounded else ''}{unit}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Formats a table with aligned columns, readable as text and as Markdown.

    Args:
      header: names of the columns.
      rows: cells, shown with `str`; every row has as many as the header.

    Returns:
      The lines, joined, with no newline at the end.

    Raises:
      ValueError: a row has another number of cells.

    Example:
      >>> print(markdown_table(["solver", "error"], [["euler", 0.1]]))
      | solver | error |
      | ------ | ----- |
      | euler  | 0.1   |
    """
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    wrong = next((row for row in cells if len(row) != len(header)), None)
    if wrong is not None:
        raise ValueError(f"a row has {len(wrong)} cells, the header {len(header)}: {wrong}.")
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])
