"""Formats tables as Markdown."""

from collections.abc import Sequence


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
