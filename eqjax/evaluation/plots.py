"""Writes tables as CSV and plots as PNG; matplotlib is imported only when something is plotted."""

from collections.abc import Mapping, Sequence
import csv
import io
import os
from typing import TYPE_CHECKING, Any

from jaxtyping import Num, Shaped
import numpy as np

from eqjax import extras
from eqjax.io import atomic_write
from eqjax.typing import AnyArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 110
_MAX_NUMBERED = 10  # Heat maps of at most so many rows and columns show their numbers.


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
    x_step: int | None = None,
    x_names: Sequence[str] | None = None,
    reference: tuple[str, float] | None = None,
) -> None:
    """Plots lines with error bars.

    Args:
      path: PNG file to write.
      series: x, y, and the half length of the error bars or None, by the line's name; NaN is left out.
      title: title of the plot.
      x_label: label of the x axis.
      y_label: label of the y axis.
      x_step: distance of the ticks of the x axis, from 0; None: chosen by matplotlib.
      x_names: names of the places 0, 1, … of the x axis, instead of numbers.
      reference: name and height of a dashed line to compare with.
    """
    figure, (axes,) = _make_figure(1)
    for name, (x, y, error) in series.items():
        axes.errorbar(x, y, yerr=error, marker="o", markersize=3.5, linewidth=1.5, capsize=2.5, label=name)
    if reference is not None:
        axes.axhline(reference[1], color="0.4", linestyle="--", linewidth=1.2, label=reference[0])
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title, loc="left", fontsize=11)
    if x_step is not None:
        axes.set_xticks(range(0, int(max(np.max(x) for x, _, _ in series.values())) + 1, x_step))
    _name_ticks(axes, x_names)
    axes.grid(alpha=0.3)
    # Outside, where it hides no line.
    columns = len(series) + 1 if len(series) < 4 else 2
    figure.legend(loc="outside lower center", fontsize=9, frameon=False, ncols=columns)
    _save(figure, path)


def plot_groups(
    path: str | os.PathLike[str],
    groups: Mapping[str, Sequence[tuple[Num[AnyArray, "n"], Num[AnyArray, "n"]]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    points: bool = False,
    x_names: Sequence[str] | None = None,
) -> None:
    """Plots many curves, or many points, in one color per group.

    Args:
      path: PNG file to write.
      groups: curves, or arrays of points, as (x, y), by the group's name.
      title: title of the plot.
      x_label: label of the x axis.
      y_label: label of the y axis.
      points: whether to draw points instead of curves.
      x_names: names of the places 0, 1, … of the x axis, instead of numbers.
    """
    figure, (axes,) = _make_figure(1)
    for i, (name, members) in enumerate(groups.items()):
        for j, (x, y) in enumerate(members):
            style: Any = {"marker": "o", "linestyle": ""} if points else {"linewidth": 1.0, "alpha": 0.7}
            color = f"C{i % 10}" if len(groups) <= 10 else None
            axes.plot(x, y, color=color, markersize=5, label=name if j == 0 else None, **style)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title, loc="left", fontsize=11)
    _name_ticks(axes, x_names)
    axes.grid(alpha=0.3)
    if len(groups) > 1:
        figure.legend(loc="outside lower center", fontsize=9, frameon=False, ncols=min(len(groups), 5))
    _save(figure, path)


def _name_ticks(axes: "Axes", names: Sequence[str] | None) -> None:
    if names is not None:
        rotation, align = (30, "right") if max(map(len, names)) > 8 else (0, "center")
        axes.set_xticks(range(len(names)), names, rotation=rotation, ha=align, fontsize=8)


def plot_heatmaps(
    path: str | os.PathLike[str],
    panels: Mapping[str, Num[AnyArray, "rows columns"]],
    *,
    title: str,
    scale_label: str,
    x_label: str = "",
    y_label: str = "",
    limits: tuple[float, float] | None = None,
    diverging: bool = False,
    x_step: int | None = None,
    y_names: Sequence[str] | None = None,
) -> None:
    """Plots heat maps, two side by side, with one color scale; small ones show their numbers. NaN is gray.

    Args:
      path: PNG file to write.
      panels: values by the panel's title.
      title: title of the plot.
      scale_label: label of the color scale: what the numbers are, with their unit.
      x_label: label of the x axes.
      y_label: label of the y axes.
      limits: lowest and highest value of the color scale; None: those of all panels, and if diverging, symmetric.
      diverging: whether the sign matters: 0 is white, positive values are red, negative ones blue.
      x_step: distance of the ticks of the x axes, which vertical lines mark; None: a tick per column.
      y_names: names of the rows, instead of their numbers.
    """
    figure, all_axes = _make_figure(len(panels))
    low, high = limits or _limits(list(panels.values()), diverging)
    image: Any = None
    for axes, (name, values) in zip(all_axes, panels.items(), strict=True):
        values = np.asarray(values, np.float64)
        axes.set_facecolor("0.85")
        image = axes.imshow(values, vmin=low, vmax=high, cmap="RdBu_r" if diverging else "viridis", aspect="auto")
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_yticks(range(values.shape[0]))
        if y_names is not None:
            axes.set_yticklabels(y_names, fontsize=8)
        axes.set_xticks(range(0, values.shape[1] + 1, x_step) if x_step else range(values.shape[1]))
        if x_step:
            axes.set_xlim(-0.5, values.shape[1] - 0.5)
            for x in range(x_step, values.shape[1], x_step):
                axes.axvline(x - 0.5, color="white", linewidth=0.6)
        if max(values.shape) <= _MAX_NUMBERED:
            _write_numbers(axes, values, (low, high), diverging)
    figure.colorbar(image, ax=all_axes, label=scale_label, shrink=0.9)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _limits(panels: list[Any], diverging: bool) -> tuple[float, float]:
    """Returns the range of all finite values; symmetric around 0 if their sign matters."""
    values = np.concatenate([np.ravel(panel) for panel in panels])
    values = values[np.isfinite(values)]
    if not len(values):
        return -1.0, 1.0
    if diverging:
        largest = max(float(np.abs(values).max()), 1e-6)
        return -largest, largest
    return float(values.min()), float(values.max())


def _write_numbers(axes: "Axes", values: np.ndarray, limits: tuple[float, float], diverging: bool) -> None:
    """Writes every finite value on its cell, in white on dark ones."""
    middle, half = sum(limits) / 2, max((limits[1] - limits[0]) / 2, 1e-12)
    digits = 2 if half >= 0.1 else 3
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            place = (value - middle) / half  # -1 … 1
            color = "white" if (abs(place) > 0.65 if diverging else place < 0) else "black"
            text = f"{value:.{digits}f}".replace("0.", ".", 1)
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)


def check_installed() -> None:
    """Checks that matplotlib is installed, without importing it.

    Raises:
      ModuleNotFoundError: matplotlib is missing; the message gives the command that installs it.
    """
    extras.require("matplotlib", "plots need matplotlib")


def _make_figure(num_panels: int) -> "tuple[Figure, list[Axes]]":
    check_installed()
    from matplotlib.figure import Figure

    columns = min(num_panels, 2)
    rows = -(-num_panels // columns)
    size = (7.0, 4.2) if num_panels == 1 else (9.0, 1.0 + 3.6 * rows)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(num_panels)]


def _save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(buffer.getvalue())
