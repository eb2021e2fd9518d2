"""Plots of orbits: their mean curve, the curve of every image, a scatter of the curves, and the error of every column.

A perfectly equivariant model gives constant curves at zero, all at one point of the scatter.

Letters: G elements, B images.

Source: the three linked views of NERO evaluation, arXiv 2305.19889, section 4.
"""

from collections.abc import Sequence
import os
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from eqjax.equivariance.actions import Action, describe, make_action
from eqjax.equivariance.orbits import Orbit
from eqjax.evaluation import plots
from eqjax.typing import AnyArray


class Scatter(NamedTuple):
    """Curves of an orbit as points in the plane.

    Attributes:
      points: a point per image.
      explained: fraction of the curves' variance along each axis.
    """

    points: Float[np.ndarray, "B 2"]
    explained: Float[np.ndarray, "2"]


def curve_scatter(curves: Float[AnyArray, "G B"]) -> Scatter:
    """Projects the curve of every image to the two directions in which curves differ most (PCA).

    Source: NERO evaluation, arXiv 2305.19889, section 4.

    Example:
      >>> curves = np.outer([1.0, 2.0, 1.0], [1.0, 3.0, 5.0])
      >>> curve_scatter(curves).explained.round(3)
      array([1., 0.])
    """
    vectors = np.asarray(curves, np.float64).T
    centered = vectors - vectors.mean(0)
    left, values, _ = np.linalg.svd(centered, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    explained = np.zeros(2)
    kept = min(2, len(values))
    points[:, :kept] = (left * values)[:, :kept]
    if (total := np.square(values).sum()) > 0:
        explained[:kept] = np.square(values[:kept]) / total
    return Scatter(points, explained)


def plot_orbit(folder: str | os.PathLike[str], name: str, orbit: Orbit, groups: Sequence[str] | None = None) -> None:
    """Writes four plots (PNG) and their data (CSV).

    NAME_mean: errors along the orbit, means over images with their standard deviation. NAME_images: the encoder's error
    of every image. NAME_scatter: these curves as points. NAME_columns: the encoder's error in every column.

    Args:
      folder: folder of the files, which must exist.
      name: beginning of the files' names.
      orbit: the orbit.
      groups: name of every image's group, such as its class, for colors; None: all alike.

    Raises:
      ModuleNotFoundError: matplotlib is missing.
    """
    path = os.path.join(folder, name)
    places, names, x_label = _axis(orbit.actions)
    quality = f"(PSNR of reconstructions {orbit.psnr.mean():.1f} dB)"
    kinds = {
        "encoder": orbit.encoder_errors,
        "decoder": orbit.decoder_errors,
        "against the orbit's mean": orbit.consensus_errors,
    }
    series = {kind: (places, values.mean(1), values.std(1)) for kind, values in kinds.items()}
    y_label = "relative error"
    plots.plot_lines(
        f"{path}_mean.png",
        series,
        title=f"{name}: errors along the orbit\n{quality}",
        x_label=x_label,
        y_label=f"{y_label}, mean ± deviation over images",
        x_names=names,
        reference=("latents without relation", float(np.sqrt(2))),
    )
    table = {"element": np.array(orbit.labels)} | {kind: values.mean(1) for kind, values in kinds.items()}
    plots.write_csv(f"{path}_mean.csv", table | {"transformed PSNR, dB": orbit.transformed_psnr.mean(1)})

    labels = list(groups) if groups is not None else ["images"] * orbit.encoder_errors.shape[1]
    members = {label: [i for i, other in enumerate(labels) if other == label] for label in dict.fromkeys(labels)}
    plots.plot_groups(
        f"{path}_images.png",
        {label: [(places, orbit.encoder_errors[:, i]) for i in rows] for label, rows in members.items()},
        title=f"{name}: the encoder's error of every image\n{quality}",
        x_label=x_label,
        y_label=y_label,
        x_names=names,
    )
    curves = {f"image {i}, {label}": orbit.encoder_errors[:, i] for i, label in enumerate(labels)}
    plots.write_csv(f"{path}_images.csv", {"element": np.array(orbit.labels)} | curves)

    points, explained = curve_scatter(orbit.encoder_errors)
    plots.plot_groups(
        f"{path}_scatter.png",
        {label: [(points[rows, 0], points[rows, 1])] for label, rows in members.items()},
        title=f"{name}: every image's curve as a point\n{quality}",
        x_label=f"first component of the error ({explained[0]:.0%} of the variance)",
        y_label=f"second component ({explained[1]:.0%})",
        points=True,
    )
    plots.write_csv(f"{path}_scatter.csv", {"group": np.array(labels), "first": points[:, 0], "second": points[:, 1]})
    plots.plot_heatmaps(
        f"{path}_columns.png",
        {"": orbit.column_errors},
        title=f"{name}: the encoder's error in every column {quality}",
        scale_label="RMS error / RMS of the latents (gray: not valid)",
        x_label="column, from the left",
        y_names=orbit.labels,
    )


def _axis(actions: Sequence[Action]) -> tuple[np.ndarray, list[str] | None, str]:
    """Returns the places of elements on an axis, their names if they are not numbers, and the axis' label."""
    shifts = np.array([float(action.shift) for action in actions])
    plain = [describe(action) for action in actions]
    if plain == [describe(make_action(shift)) for shift in shifts] and len(set(shifts)) == len(shifts) > 2:
        return shifts, None, "shift of the image, pixels"
    # Warps have one name: they are numbered.
    names = [f"{name} {plain[: i + 1].count(name)}" if plain.count(name) > 1 else name for i, name in enumerate(plain)]
    return np.arange(len(actions)), names, "transform"
