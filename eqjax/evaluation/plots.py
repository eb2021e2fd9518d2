"""Tables as CSV and plots as PNG; matplotlib is imported only where something is drawn."""

import csv
import importlib.util
import io

import numpy as np

from eqjax.io import atomic_write


def write_csv(path, columns):
    """Writes {name: values of equal length} as a CSV file, whole or not at all."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def lines(path, series, *, title, x_label, y_label):
    """A plot of lines with error bars.

    Args:
      path: PNG file.
      series: {name: (x, y, error or None)}, each [n]; NaN is left out.
      title, x_label, y_label: texts.
    """
    figure, axes = _figure(1)
    for name, (x, y, error) in series.items():
        axes[0].errorbar(x, y, yerr=error, marker="o", markersize=3, linewidth=1.2, capsize=2, label=name)
    axes[0].set(title=title, xlabel=x_label, ylabel=y_label)
    axes[0].grid(alpha=0.3)
    axes[0].legend(fontsize=7, frameon=False)
    _save(figure, path)


def maps(path, panels, *, title, x_label="", y_label="", limits=None):
    """Heat maps side by side.

    Args:
      path: PNG file.
      panels: {name: [rows, columns]}.
      title, x_label, y_label: texts.
      limits: (lowest, highest) value of the colors; None: of each panel.
    """
    figure, axes = _figure(len(panels))
    low, high = limits or (None, None)
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        image = axis.imshow(np.asarray(values), vmin=low, vmax=high, cmap="viridis", aspect="auto")
        axis.set(title=name, xlabel=x_label, ylabel=y_label)
        figure.colorbar(image, ax=axis, shrink=0.8)
    figure.suptitle(title)
    _save(figure, path)


def check_installed():
    """Checks that matplotlib is there, without importing it.

    Raises:
      ModuleNotFoundError: it is not; the message says how to install it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("plots need matplotlib: pip install -e '.[analysis]'")


def _figure(count):
    check_installed()
    from matplotlib import figure

    made = figure.Figure(figsize=(1.5 + 3.5 * count if count > 1 else 5.5, 3.4), dpi=90, layout="constrained")
    return made, [made.add_subplot(1, count, i + 1) for i in range(count)]


def _save(figure, path):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(buffer.getvalue())
