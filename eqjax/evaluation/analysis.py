"""The paper's analysis of a model in numbers, and of several side by side in a table and plots.

Source: Equivariant Image Modeling, arXiv 2503.18948, sections 1 and 4.3.
"""

import json
import os

import jax
import numpy as np

from eqjax.evaluation import equivariance, plots, report, tasks
from eqjax.io import atomic_write

MAX_SHIFT = 32


def tokenizer_measures(model, images, width):
    """PSNR, shift errors and footprints of a tokenizer as JSON values.

    Args:
      model: an `eqjax.Model`.
      images: uint8 [N, H, width + MAX_SHIFT, 3].
      width: of the crops, pixels.
    """
    found = equivariance.shift_errors(model, images, np.arange(1, MAX_SHIFT + 1), width)
    maps = equivariance.footprints(model, images[:, :, :width])
    column = model.tokenizer.column_width
    middle = found.errors[:, 1 : width // column // 2]  # Away from the borders, and with a partner inside.
    return {
        "psnr": found.psnr,
        "column_width": column,
        "shift_errors": found.errors.tolist(),
        "shift_error_column": float(middle[column - 1].mean()),
        "shift_error_half": float(middle[column // 2 - 1].mean()),
        "shift_error_unrelated": found.unrelated,
        "footprint": maps.sum(1).tolist(),
        "footprint_map": maps[len(maps) // 2].tolist(),
        "footprint_share": equivariance.footprint_shares(maps, column),
    }


def generator_measures(generator, params, batches, first_inner):
    """Losses and cosines of a generator's columns as JSON values.

    Args:
      generator, params, batches: as `tasks.column_losses`.
      first_inner: "…_inner" is over columns from this one on: those whose windows are full.
    """
    losses = tasks.column_losses(generator, params, batches, jax.random.key(0))
    conflict, ceiling = tasks.gradient_cosines(generator, params, batches, jax.random.key(1))
    return {
        "loss": losses.mean.tolist(),
        "loss_error": losses.error.tolist(),
        "cosines": conflict.mean.tolist(),
        "cosines_error": conflict.error.tolist(),
        "cosine": float(tasks.off_diagonal(conflict.mean)),
        "cosine_inner": float(tasks.off_diagonal(conflict.mean[first_inner:, first_inner:])),
        "cosine_ceiling": float(np.diag(ceiling.mean).mean()),
        "agreement": float(tasks.off_diagonal(tasks.agreement(ceiling.mean))),
        "agreement_inner": float(tasks.off_diagonal(tasks.agreement(ceiling.mean)[first_inner:, first_inner:])),
    }


def read_result(path, options):
    """One seed's result from a file, written under the same options.

    Raises:
      ValueError: it was written under others.
    """
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    if result["flags"] != options:
        raise ValueError(f"{path} was measured with {result['flags']}, now {options}: give another --output.")
    return result


# Of the table, in order; errors under shifts never stand without PSNR.
_TABLE = {
    "psnr": "PSNR, dB",
    "shift_error_column": "shift by a column",
    "shift_error_half": "by half a column",
    "shift_error_unrelated": "unrelated images",
    "footprint": "own pixels",
    "cosine": "cosine",
    "cosine_inner": "cosine, full windows",
    "cosine_ceiling": "ceiling",
    "agreement": "agreement",
    "agreement_inner": "agreement, full windows",
    "spread": "loss spread",
    "transfer": "transfer",
    "transfer_trained": "trained half",
}


def summary(result):
    """{name of `_TABLE`: number} of one seed; only what was measured, NaN where that gave no number."""
    found = {name: result[name] for name in _TABLE if isinstance(result.get(name, ""), float | None)}
    found = {name: np.nan if value is None else value for name, value in found.items()}  # In JSON there is no NaN.
    found["footprint"] = {int(reach): share for reach, share in result["footprint_share"].items()}[0]
    if "loss" in result:
        found["spread"] = float(np.std(result["loss"]) / np.mean(result["loss"]))
    return {name: found[name] for name in _TABLE if name in found}


def draw(output, results):
    """Writes results.json, table.md, and CSV and PNG per measure; gives the table.

    Args:
      output: folder.
      results: {kind: [one dict per seed]}, dicts of `tokenizer_measures` and `generator_measures`.
    """
    report.write_json(os.path.join(output, "results.json"), results)
    table = _table(results)
    with atomic_write(os.path.join(output, "table.md")) as temporary, open(temporary, "w") as file:
        file.write(table)
    _draw_shifts(output, results)
    _draw_footprints(output, results)
    if all("loss" in seeds[0] for seeds in results.values()):
        _draw_losses(output, results)
        _draw_cosines(output, results)
    return table


def _table(results):
    rows = {kind: [summary(result) for result in seeds] for kind, seeds in results.items()}
    names = [name for name in _TABLE if any(name in row[0] for row in rows.values())]
    lines = ["| | " + " | ".join(_TABLE[name] for name in names) + " |", "| --- " * (len(names) + 1) + "|"]
    for kind, seeds in rows.items():
        cells = [_mean_and_deviation([row[name] for row in seeds], name) for name in names]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean_and_deviation(values, name):
    if not np.isfinite(values).all():
        return "–"
    digits = 1 if name == "psnr" else 3
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def _styles(results):
    """Results of tokenizers alone: one kind per style, as both of its generators share it."""
    return {kind.split(",")[0]: seeds for kind, seeds in results.items()}


def _over_seeds(seeds, name):
    """Mean over seeds, and what its error bar is: of batches for one seed, of seeds for more."""
    values = np.array([result[name] for result in seeds], np.float64)
    if len(seeds) > 1:
        return values.mean(0), values.std(0, ddof=1)
    return values[0], np.array(seeds[0][f"{name}_error"]) if f"{name}_error" in seeds[0] else None


def _draw_shifts(output, results):
    series, table = {}, {}
    for style, seeds in _styles(results).items():
        errors, _ = _over_seeds(seeds, "shift_errors")  # [shifts, columns]
        psnr = np.mean([result["psnr"] for result in seeds])
        with_partner = np.nanmean(errors[:, 1:-1], axis=1) if errors.shape[1] > 2 else np.nanmean(errors, axis=1)
        shifts = np.arange(1, len(errors) + 1)
        series[f"{style} (PSNR {psnr:.1f} dB)"] = shifts, with_partner, None
        table |= {"shift": shifts} | {f"{style}, column {k}": errors[:, k] for k in range(errors.shape[1])}
    plots.write_csv(os.path.join(output, "shifts.csv"), table)
    texts = dict(x_label="shift, pixels", y_label="error over the latents' RMS")
    plots.lines(os.path.join(output, "shifts.png"), series, title="Latents of shifted images", **texts)


def _draw_footprints(output, results):
    panels, table = {}, {}
    for style, seeds in _styles(results).items():
        rows, _ = _over_seeds(seeds, "footprint")  # [columns, pixels]
        panels[style] = np.log10(rows + 1e-6)
        table |= {"pixel": np.arange(rows.shape[1])} | {f"{style}, column {k}": row for k, row in enumerate(rows)}
    plots.write_csv(os.path.join(output, "footprints.csv"), table)
    limits = min(panel.min() for panel in panels.values()), max(panel.max() for panel in panels.values())
    texts = dict(x_label="pixel", y_label="column that is replaced", limits=limits)
    plots.maps(os.path.join(output, "footprints.png"), panels, title="Share of the change, log10", **texts)


def _draw_losses(output, results):
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
    texts = dict(x_label="column", y_label="loss over the mean, all trained")
    plots.lines(os.path.join(output, "losses.png"), series, title="Loss per column", **texts)


def _draw_cosines(output, results):
    panels, table = {}, {}
    for kind, seeds in results.items():
        mean, error = _over_seeds(seeds, "cosines")
        panels[kind] = mean
        first, second = np.triu_indices(len(mean), 1)
        table |= {"column": first, "other": second, kind: mean[first, second]}
        table |= {f"{kind}, error": error[first, second]}
    plots.write_csv(os.path.join(output, "cosines.csv"), table)
    # The diagonal is 1; the scale ends at the largest of the others, which would all be dark beside it.
    largest = max(panel[~np.eye(len(panel), dtype=bool)].max(initial=0.0) for panel in panels.values())
    texts = dict(x_label="column", y_label="column", limits=(0, max(largest, 0.01)))
    plots.maps(os.path.join(output, "cosines.png"), panels, title="Cosine between gradients of columns", **texts)
