"""The report of a comparison: the analysis of every kind of model, and what generalizes, with standard errors."""

from collections.abc import Mapping, Sequence
import os

import numpy as np

from eqjax.evaluation import analysis
from eqjax.evaluation.tasks import mean_and_stderr
from eqjax.io import atomic_write
from eqjax.tables import markdown_table

# Rows of tokenizers, and of kinds: {measure: (its name, digits)}.
_TOKENIZERS = {
    "psnr_held_out": ("PSNR of held-out crops, dB", 2),
    "frechet_reconstructed": ("Fréchet, reconstructed", 1),
    "moved_reconstruction_column": ("moved by a column: reconstruction", 3),
    "moved_reconstruction_within": ("moved within a column: reconstruction", 3),
    "shift_error_column": ("by a column: latents", 3),
    "shift_error_half": ("by half a column: latents", 3),
    "orbit_flip": ("flip: latents", 3),
    "orbit_scale": ("scale 1/2: latents", 3),
    "orbit_warp": ("warps: latents", 3),
    "gaussian_flow_loss": ("entropy proxy", 3),
    "next_column": ("next column, unexplained", 3),
}
_GENERATORS = {
    "held_out_ratio": ("held-out loss / proxy", 3),
    "held_out_ratio_inner": ("full windows", 3),
    "frechet_sampled": ("Fréchet, sampled", 1),
    "frechet_sampled_beyond": ("Fréchet, beyond the length", 1),
    "recognized_sampled": ("recognized", 3),
    "recognized_sampled_beyond": ("recognized, beyond", 3),
    "transfer": ("unseen columns: loss", 3),
    "length_ratio": ("twice the length: loss", 3),
    "far_ratio": ("far index: loss", 3),
}


def write_report(output: str | os.PathLike[str], results: analysis.MeasuresByKind) -> str:
    """Writes the files of `analysis.write_report` and generalization.md, and returns both tables.

    Args:
      output: folder of the files.
      results: measures of every seed, by the kind of model: "tokenizer, generator".
    """
    table = make_tables(results)
    path = os.path.join(output, "generalization.md")
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(table)
    return f"{analysis.write_report(output, results)}\n{table}"


def make_tables(results: analysis.MeasuresByKind) -> str:
    """Formats means and standard errors over seeds as Markdown tables: of tokenizers, of kinds, and of differences.

    The last table has the differences of every kind to the first, seed by seed, which share images and random numbers.

    Args:
      results: measures of every seed, by the kind of model.
    """
    tokenizers = {kind.split(",")[0]: seeds for kind, seeds in results.items()}
    tables = [_table("tokenizer", tokenizers, _TOKENIZERS), _table("tokenizer, generator", results, _GENERATORS)]
    if len(results) > 1:
        first = next(iter(results))
        tables += [_table(f"minus {first}", _differences(results, _GENERATORS), _GENERATORS)]
    seeds = len(next(iter(results.values())))
    note = f"Mean ± standard error over {seeds} seeds." if seeds > 1 else "One seed."
    return "\n\n".join([*tables, note]) + "\n"


def _differences(
    results: analysis.MeasuresByKind, columns: Mapping[str, tuple[str, int]]
) -> dict[str, list[analysis.Measures]]:
    """Returns the measures of every kind but the first, minus those of the first with the same seed."""
    first, *others = results
    pairs = {kind: zip(results[kind], results[first], strict=True) for kind in others}
    return {
        kind: [{name: a[name] - b[name] for name in columns if name in a and name in b} for a, b in both]
        for kind, both in pairs.items()
    }


def _table(title: str, rows: Mapping[str, Sequence[analysis.Measures]], columns: Mapping[str, tuple[str, int]]) -> str:
    header = [title, *(name for name, _ in columns.values())]
    cells = [
        [kind, *(_cell([one.get(name) for one in seeds], digits) for name, (_, digits) in columns.items())]
        for kind, seeds in rows.items()
    ]
    return markdown_table(header, cells)


def _cell(values: Sequence[float | None], digits: int) -> str:
    """Returns a mean with its standard error; "–" if a seed has no value."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    if len(known) < len(values):
        return "–"
    found = mean_and_stderr(np.array(known)[:, None])
    error = f" ± {found.stderr[0]:.{digits}f}" if len(known) > 1 else ""
    return f"{found.mean[0]:.{digits}f}{error}"
