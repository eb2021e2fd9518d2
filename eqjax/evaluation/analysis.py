"""The paper's analysis: measures of one model as JSON values, and several models side by side as a table and plots.

Source: Equivariant Image Modeling, arXiv 2503.18948, sections 1 and 4.3.

Letters: N images, H height, L columns.
"""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any, TypeAlias

import jax
from jaxtyping import Int, Shaped, UInt8
import numpy as np

from eqjax import pixels
from eqjax.differences import check_equal
from eqjax.equivariance.codecs import model_codec
from eqjax.equivariance.crop_shifts import crop_shift_errors
from eqjax.equivariance.footprints import decoder_footprints, footprint_fractions
from eqjax.evaluation import plots, tasks
from eqjax.evaluation.results import json_values
from eqjax.evaluation.roughness import border_roughness
from eqjax.generator import Generator
from eqjax.io import atomic_write, read_json_object, write_json
from eqjax.model import Model
from eqjax.tables import markdown_table
from eqjax.typing import AnyArray, Params

MAX_SHIFT = 32  # Largest shift, pixels.
MAX_CLASSES = 16  # Classes whose roughness is listed one by one.

# Measures of one model and seed as JSON values, by name.
Measures: TypeAlias = dict[str, Any]
# Measures of every seed, by the kind of model.
MeasuresByKind: TypeAlias = Mapping[str, Sequence[Measures]]


def tokenizer_measures(model: Model, images: Shaped[AnyArray, "N H W 3"], width: int) -> Measures:
    """Returns PSNR, shift errors and footprints of a tokenizer as JSON values.

    Args:
      model: a model with a tokenizer.
      images: uint8 images, width + MAX_SHIFT pixels wide.
      width: width of the crops in pixels.
    """
    codec, floats = model_codec(model), pixels.from_uint8(images)
    found = crop_shift_errors(codec, floats, np.arange(1, min(MAX_SHIFT, width - 1) + 1), width)
    maps = decoder_footprints(codec, floats[:, :, :width])
    column = codec.geometry.stride
    middle = found.errors[:, 1 : width // column // 2]  # Away from the borders, with a counterpart inside.
    return {
        "psnr": found.psnr,
        "column_width": column,
        "shift_errors": found.errors.tolist(),
        "shift_error_column": float(middle[column - 1].mean()),
        "shift_error_half": float(middle[column // 2 - 1].mean()),
        "shift_error_unrelated": found.unrelated,
        "footprint": maps.sum(1).tolist(),
        "footprint_map": maps[len(maps) // 2].tolist(),
        "footprint_fraction": footprint_fractions(maps, column),
    }


def roughness_measures(
    images: Mapping[str, UInt8[AnyArray, "N H W 3"]],
    labels: Int[AnyArray, "N"],
    class_names: Sequence[str],
    column_width: int,
) -> Measures:
    """Returns the roughness at column borders and middles as JSON values, of all images and of every class.

    Args:
      images: images by the name of the set, such as "real" and "reconstructed"; row i shows the same class in all.
      labels: index of each row's class.
      class_names: names of the classes; more than `MAX_CLASSES` are not listed one by one.
      column_width: width of a column in pixels; below 3 there is nothing between borders and middles, and nothing
        is returned.
    """
    if column_width < 3:
        return {}
    labels = np.asarray(labels)
    groups = {"all": np.ones(len(labels), bool)}
    if len(class_names) <= MAX_CLASSES:
        groups |= {name: labels == label for label, name in enumerate(class_names) if (labels == label).any()}
    found = {
        name: {group: border_roughness(np.asarray(rows)[members], column_width) for group, members in groups.items()}
        for name, rows in images.items()
    }
    return {
        "roughness": {
            name: {
                group: {"border": one.border, "middle": one.middle, "profile": one.profile.tolist()}
                for group, one in by_group.items()
            }
            for name, by_group in found.items()
        }
    }


def generator_measures(
    generator: Generator,
    params: Params,
    batches: Sequence[tasks.LatentBatch],
    first_inner: int,
    gradients: bool = True,
) -> Measures:
    """Returns losses and cosines of a generator's columns as JSON values.

    Args:
      generator: the module.
      params: its parameters.
      batches: scaled latents and labels, of one shape; at least two batches.
      first_inner: first column with a full window; measures named "…_inner" are over the columns from there on.
      gradients: whether to measure cosines, which take most of the time.
    """
    losses = tasks.column_losses(generator, params, batches, jax.random.key(0))
    measures: Measures = {"loss": losses.mean.tolist(), "loss_stderr": losses.stderr.tolist()}
    if not gradients:
        return measures
    conflict, ceiling = tasks.gradient_cosines(generator, params, batches, jax.random.key(1))
    corrected = tasks.noise_corrected_cosines(ceiling.mean)
    inner = slice(first_inner, None)
    return measures | {
        "cosines": conflict.mean.tolist(),
        "cosines_stderr": conflict.stderr.tolist(),
        "cosine": float(tasks.off_diagonal_mean(conflict.mean)),
        "cosine_inner": float(tasks.off_diagonal_mean(conflict.mean[inner, inner])),
        "cosine_ceiling": float(np.diag(ceiling.mean).mean()),
        "corrected_cosine": float(tasks.off_diagonal_mean(corrected)),
        "corrected_cosine_inner": float(tasks.off_diagonal_mean(corrected[inner, inner])),
    }


def read_measures(path: str | os.PathLike[str], made_with: Mapping[str, Any]) -> Measures:
    """Returns the measures in a file.

    Args:
      path: JSON file of measures with the "comparison" that they belong to.
      made_with: what they must have been computed with, as JSON values.

    Raises:
      ValueError: they were computed with something else.
    """
    measures = read_json_object(path)
    expected = json.loads(json.dumps(made_with))  # Tuples are lists in files.
    message = f"{path} was measured with other fields: give another --output, or the same fields."
    check_equal(measures.get("comparison", {}), expected, message, found_name="file", expected_name="now")
    return measures


# Columns of the table, in order; errors under shifts always stand beside PSNR.
_TABLE = {
    "psnr": "PSNR of training crops, dB",
    "shift_error_column": "shift by a column",
    "shift_error_half": "by half a column",
    "shift_error_unrelated": "unrelated images",
    "footprint": "own pixels",
    "cosine": "cosine",
    "cosine_inner": "cosine, full windows",
    "cosine_ceiling": "ceiling",
    "corrected_cosine": "noise-corrected cosine",
    "corrected_cosine_inner": "noise-corrected cosine, full windows",
    "spread": "loss spread",
    "transfer": "transfer",
    "transfer_trained": "trained half",
}


def summary(measures: Measures) -> dict[str, float]:
    """Returns one seed's measures for the table; measures that are not finite are NaN, missing ones are left out."""
    values = {name: measures[name] for name in _TABLE if isinstance(measures.get(name, ""), float | None)}
    values = {name: np.nan if value is None else value for name, value in values.items()}  # null in JSON.
    if "footprint_fraction" in measures:
        fractions = {int(reach): fraction for reach, fraction in measures["footprint_fraction"].items()}
        values["footprint"] = fractions[0]
    if "loss" in measures:
        values["spread"] = float(np.std(measures["loss"]) / np.mean(measures["loss"]))
    return {name: values[name] for name in _TABLE if name in values}


def write_report(output: str | os.PathLike[str], results: MeasuresByKind) -> str:
    """Writes results.json, table.md, and for every measure a CSV and a PNG file; returns the table.

    Args:
      output: folder of the files.
      results: measures of `tokenizer_measures` and `generator_measures`, a dict per seed, by the kind of model.
    """
    write_json(os.path.join(output, "results.json"), json_values(dict(results)))
    table = make_table(results)
    if rough := _having("roughness", results):
        table += "\n" + make_roughness_table(rough)
        _plot_roughness(output, rough)
    with atomic_write(os.path.join(output, "table.md")) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(table)
    if shifted := _having("shift_errors", results):
        _plot_shift_errors(output, shifted)
        _plot_footprints(output, shifted)
    if trained := _having("loss", results):
        _plot_losses(output, trained)
    if compared := _having("cosines", results):
        _plot_cosines(output, compared)
    return table


def _having(name: str, results: MeasuresByKind) -> MeasuresByKind:
    """Returns the kinds of models that have a measure."""
    return {kind: seeds for kind, seeds in results.items() if name in seeds[0]}


def make_table(results: MeasuresByKind) -> str:
    """Formats means and standard deviations over seeds as a Markdown table, a row per kind."""
    rows = {kind: [summary(measures) for measures in seeds] for kind, seeds in results.items()}
    names = [name for name in _TABLE if any(name in row[0] for row in rows.values())]  # Some may lack some.
    cells = [
        [kind, *(_mean_and_deviation([row.get(name, np.nan) for row in seeds], name) for name in names)]
        for kind, seeds in rows.items()
    ]
    return markdown_table(["", *(_TABLE[name] for name in names)], cells) + "\n"


def make_roughness_table(results: MeasuresByKind) -> str:
    """Formats the roughness at borders and middles as a Markdown table: a row per class of one kind, or per kind."""
    first = next(iter(results.values()))[0]["roughness"]
    places = {"border": "at borders", "middle": "at middles"}
    header = ["roughness", *(f"{text}, {name}" for text in places.values() for name in first)]

    def row(name: str, kind: str, group: str) -> list[str]:
        found = [measures["roughness"] for measures in results[kind]]
        return [name] + [
            _mean_and_deviation([_number(one[images][group][place]) for one in found], "roughness")
            for place in places
            for images in first
        ]

    kinds = list(results)
    groups = first[next(iter(first))]
    rows = [row(group, kinds[0], group) for group in groups] if len(kinds) == 1 else [row(k, k, "all") for k in kinds]
    note = (
        "Roughness: mean difference of the two pixels at a place, over that of all pixels that are neither at a border "
        "nor at the middle of a column. 1: columns cannot be seen.\n"
    )
    return f"{markdown_table(header, rows)}\n\n{note}"


def _number(value: float | None) -> float:
    """Returns a number of a JSON file, in which NaN is null."""
    return np.nan if value is None else value


def _mean_and_deviation(values: Sequence[float], name: str) -> str:
    if not np.isfinite(values).all():
        return "–"
    digits = {"psnr": 1, "roughness": 2}.get(name, 3)
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def _tokenizer_styles(results: MeasuresByKind) -> dict[str, Sequence[Measures]]:
    """Returns one kind per style of tokenizer, as the generators of a style share its tokenizers."""
    return {kind.split(",")[0]: seeds for kind, seeds in results.items()}


def _over_seeds(seeds: Sequence[Measures], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean over seeds and its error bar; of a single seed, that over batches (NaN if unknown)."""
    values = np.array([measures[name] for measures in seeds], np.float64)
    if len(seeds) > 1:
        return values.mean(0), values.std(0, ddof=1)
    return values[0], np.array(seeds[0].get(f"{name}_stderr", np.full(values.shape[1:], np.nan)))


def _plot_shift_errors(output: str | os.PathLike[str], results: MeasuresByKind) -> None:
    series, table, unrelated = {}, {}, []
    for style, seeds in _tokenizer_styles(results).items():
        unrelated += [measures["shift_error_unrelated"] for measures in seeds]
        errors, _ = _over_seeds(seeds, "shift_errors")  # [shifts, L]
        psnr = np.mean([measures["psnr"] for measures in seeds])
        inner = np.nanmean(errors[:, 1:-1], axis=1) if errors.shape[1] > 2 else np.nanmean(errors, axis=1)
        shifts = np.arange(1, len(errors) + 1)
        series[f"{style} (PSNR of training crops {psnr:.1f} dB)"] = shifts, inner, None
        table |= {"shift": shifts} | {f"{style}, column {k}": errors[:, k] for k in range(errors.shape[1])}
    plots.write_csv(os.path.join(output, "shifts.csv"), table)
    plots.plot_lines(
        os.path.join(output, "shifts.png"),
        series,
        title="Latents of a shifted image against the shifted latents",
        x_label="shift of the image, pixels",
        y_label="RMS error / RMS of the latents",
        x_step=_column_width(results),
        reference=("latents of unrelated images", float(np.mean(unrelated))),
    )


def _plot_footprints(output: str | os.PathLike[str], results: MeasuresByKind) -> None:
    panels, table = {}, {}
    for style, seeds in _tokenizer_styles(results).items():
        rows, _ = _over_seeds(seeds, "footprint")  # [L, pixels]
        panels[style] = np.log10(rows + 1e-6)
        table |= {"pixel": np.arange(rows.shape[1])} | {f"{style}, column {k}": row for k, row in enumerate(rows)}
    plots.write_csv(os.path.join(output, "footprints.csv"), table)
    plots.plot_heatmaps(
        os.path.join(output, "footprints.png"),
        panels,
        title="Footprints: which pixels change when one column's latent is replaced",
        scale_label="fraction of the change, log10",
        x_label="pixel (lines: column borders)",
        y_label="column that is replaced",
        x_step=_column_width(results),
    )


def _plot_losses(output: str | os.PathLike[str], results: MeasuresByKind) -> None:
    series, table = {}, {}
    for kind, seeds in results.items():
        for name, text in (("loss", "all columns trained"), ("transfer_loss", "left half trained")):
            if name not in seeds[0]:
                continue
            mean, error = _over_seeds(seeds, name)
            table |= {"column": np.arange(len(mean)), f"{kind}, {text}": mean, f"{kind}, {text}, error": error}
            # In units of the model's own mean: losses of different tokenizers have different units.
            scale = np.mean(_over_seeds(seeds, "loss")[0])
            series[f"{kind}, {text}"] = np.arange(len(mean)), mean / scale, error / scale
    plots.write_csv(os.path.join(output, "losses.csv"), table)
    plots.plot_lines(
        os.path.join(output, "losses.png"),
        series,
        title="Flow loss of every column",
        x_label="column, from the left",
        y_label="loss / mean loss with all columns trained",
        x_step=1,
    )


def _plot_cosines(output: str | os.PathLike[str], results: MeasuresByKind) -> None:
    panels, table = {}, {}
    for kind, seeds in results.items():
        mean, error = _over_seeds(seeds, "cosines")
        # A column's cosine with itself is 1 and says nothing.
        panels[kind] = np.where(np.eye(len(mean), dtype=bool), np.nan, mean)
        first, second = np.triu_indices(len(mean), 1)
        table |= {"column": first, "other": second, kind: mean[first, second]}
        table |= {f"{kind}, error": error[first, second]}
    plots.write_csv(os.path.join(output, "cosines.csv"), table)
    plots.plot_heatmaps(
        os.path.join(output, "cosines.png"),
        panels,
        title="Cosine between the gradients of two columns' losses",
        scale_label="cosine (red: they agree, blue: conflict)",
        x_label="column, from the left",
        y_label="column",
        diverging=True,
    )


def _plot_roughness(output: str | os.PathLike[str], results: MeasuresByKind) -> None:
    """Plots the roughness of all images at every place in a column."""
    series, table, column_width = {}, {}, _column_width(results)
    for kind, seeds in results.items():
        for name in seeds[0]["roughness"]:
            profiles = np.array([[_number(v) for v in one["roughness"][name]["all"]["profile"]] for one in seeds])
            label = name if len(results) == 1 else f"{kind}, {name}"
            error = profiles.std(0, ddof=1) if len(seeds) > 1 else None
            series[label] = np.arange(profiles.shape[1]), profiles.mean(0), error
            table |= {"place": np.arange(profiles.shape[1]), label: profiles.mean(0)}
    plots.write_csv(os.path.join(output, "roughness.csv"), table)
    plots.plot_lines(
        os.path.join(output, "roughness.png"),
        series,
        title="Seams: difference of neighboring pixels by their place in a column",
        x_label="place in the column, pixels from its left border (0: the border)",
        y_label="difference / that elsewhere",
        x_step=max(1, column_width // 8),
        reference=("columns cannot be seen", 1.0),
    )


def _column_width(results: MeasuresByKind) -> int:
    return next(iter(results.values()))[0]["column_width"]
