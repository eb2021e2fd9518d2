"""Writes tables as CSV and plots as PNG; matplotlib is imported only when something is plotted."""

from collections.abc import Mapping
import csv
import io
import os
from typing import TYPE_CHECKING

from jaxtyping import Num, Shaped
import numpy as np

from eqjax import extras
from eqjax.io import atomic_write
from eqjax.typing import AnyArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_csv(path: str | os.PathLike[str], columns: Mapping[str, Shaped[AnyArray, "n"]]) -> None:
    """Writes columns of equal length, by name, as a CSV file."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def plot_lines(
    path: str | os.PathLike[str],
    series: Mapping[str, tuple[Num[AnyArray, "n"], Num[AnyArray, "n"], Num[AnyArray, "n"] | None]],
    *,
    title: str,
    x_label: str,
    y_label: str,
) -> None:
    """Plots lines with error bars.

    Args:
      path: PNG file to write.
      series: x, y, and the half length of the error bars or None, by the line's name; NaN is left out.
      title: title of the plot.
      x_label: label of the x axis.
      y_label: label of the y axis.
    """
    figure, axes = _make_figure(1)
    for name, (x, y, error) in series.items():
        axes[0].errorbar(x, y, yerr=error, marker="o", markersize=3, linewidth=1.2, capsize=2, label=name)
    axes[0].set(title=title, xlabel=x_label, ylabel=y_label)
    axes[0].grid(alpha=0.3)
    axes[0].legend(fontsize=7, frameon=False)
    _save(figure, path)


def plot_heatmaps(
    path: str | os.PathLike[str],
    panels: Mapping[str, Num[AnyArray, "rows columns"]],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    limits: tuple[float, float] | None = None,
) -> None:
    """Plots heat maps side by side.

    Args:
      path: PNG file to write.
      panels: values by the panel's title.
      title: title of the plot.
      x_label: label of the x axes.
      y_label: label of the y axes.
      limits: lowest and highest value of the color scale; None: each panel's own.
    """
    figure, axes = _make_figure(len(panels))
    low, high = limits or (None, None)
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        image = axis.imshow(np.asarray(values), vmin=low, vmax=high, cmap="viridis", aspect="auto")
        axis.set(title=name, xlabel=x_label, ylabel=y_label)
        figure.colorbar(image, ax=axis, shrink=0.8)
    figure.suptitle(title)
    _save(figure, path)


def check_installed() -> None:
    """Checks that matplotlib is installed, without importing it.

    Raises:
      ModuleNotFoundError: matplotlib is missing; the message gives the command that installs it.
    """
    extras.require("matplotlib", "plots need matplotlib")


def _make_figure(num_panels: int) -> "tuple[Figure, list[Axes]]":
    check_installed()
    from matplotlib.figure import Figure

    width = 1.5 + 3.5 * num_panels if num_panels > 1 else 5.5
    figure = Figure(figsize=(width, 3.4), dpi=90, layout="constrained")
    return figure, [figure.add_subplot(1, num_panels, i + 1) for i in range(num_panels)]


def _save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(buffer.getvalue())
