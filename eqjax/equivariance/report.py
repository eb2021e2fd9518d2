"""A report on a codec, and on a generator of its latents: all measures as JSON values, a table, and plots.

Letters: B images, L columns.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any, TypeAlias

import jax
from jaxtyping import Float, Int
import numpy as np

from eqjax.equivariance.footprints import decoder_footprints, encoder_footprints, footprint_fractions, footprint_score
from eqjax.equivariance.geometry import Codec, ColumnGeometry
from eqjax.equivariance.groups import Group, flips, scales, shifts, warps
from eqjax.equivariance.index_shifts import context_columns, index_shift_errors, sampler_shift_errors
from eqjax.equivariance.latent_statistics import next_column_error, twonn_dimension
from eqjax.equivariance.orbit_plots import plot_orbit
from eqjax.equivariance.orbits import Orbit, encode, measure_orbit
from eqjax.equivariance.stereo import StereoPair, StereoReport, stereo_report
from eqjax.evaluation import plots
from eqjax.evaluation.results import json_values
from eqjax.generator import Generator
from eqjax.io import atomic_write, write_json
from eqjax.sampling.options import SamplingKeywords
from eqjax.tables import markdown_table
from eqjax.typing import AnyArray, Params

# Measures as JSON values, by name.
Measures: TypeAlias = dict[str, Any]

# Shifts of the index at which a generator is measured, in columns.
INDEX_SHIFTS = (1, 2, 4, 8, 16, 32, 64, 128)
# How the columns are sampled whose indices are shifted.
SAMPLING: SamplingKeywords = {"num_flow_steps": 16, "solver": "adams_bashforth", "time_grid": "cosine"}
# Columns that are sampled at every shift.
_SAMPLED = 4
# Images of which every pixel's gradients are taken.
_FOOTPRINT_IMAGES = 8


def default_groups(geometry: ColumnGeometry, columns: int) -> dict[str, Group]:
    """Returns the groups of a report, by name: those that fit images of so many columns.

    Args:
      geometry: how columns lie on the images.
      columns: width of the images in columns.

    Example:
      >>> list(default_groups(ColumnGeometry(16), 8)), list(default_groups(ColumnGeometry(16), 7))
      (['shift', 'flip', 'scale', 'warp'], ['shift', 'flip', 'warp'])
    """
    stride = geometry.stride
    reach = max(1, min(2, columns - 3)) * stride
    groups = {"shift": shifts(reach, step=max(1, stride // 4)), "flip": flips()}
    # With a margin of a column on both sides, something must remain.
    fitting = [scale for scale in ("1/2", "3/4") if (columns * scales(scale).scales[0]).denominator == 1]
    if columns >= 6 and fitting:
        groups["scale"] = scales(*fitting)
    return groups | {"warp": warps(columns * stride)}


def measure_codec(
    codec: Codec,
    images: Any,
    groups: Mapping[str, Group],
    *,
    num_images: int = 16,
    stereo: StereoPair | None = None,
) -> tuple[Measures, dict[str, Orbit], StereoReport | None]:
    """Measures orbits, footprints, statistics of latents and stereo of a codec.

    Args:
      codec: the codec.
      images: [B, H, W, 3] in [-1, 1], at least 2; all of them count in the statistics of latents.
      groups: groups by name, such as `default_groups`.
      num_images: number of images whose orbits are measured, the first ones.
      stereo: a rectified pair, or None.

    Returns:
      Measures as JSON values, the orbits by name, and the report on the pair.

    Raises:
      ValueError: the images do not fit the codec or a group.
    """
    latents = np.asarray(encode(codec, images))
    images = images[:num_images]
    orbits = {name: measure_orbit(codec, images, group) for name, group in groups.items()}
    stride = codec.geometry.stride
    decoded = decoder_footprints(codec, images)
    few = images[:_FOOTPRINT_IMAGES]
    encoded = encoder_footprints(codec, few)

    def score(group: Group, kind: str) -> float:
        return footprint_score(lambda x: encoder_footprints(codec, x), codec.geometry, few, group, kind=kind)

    one_column = shifts(stride, step=stride)
    measures: Measures = {
        "column_width": stride,
        "psnr": float(np.mean(next(iter(orbits.values())).psnr)),
        "orbits": {name: _orbit_values(orbit) for name, orbit in orbits.items()},
        "decoder_footprint": decoded.sum(1).tolist(),
        "decoder_footprint_fraction": footprint_fractions(decoded, stride),
        "encoder_footprint": encoded.mean(0).sum(1).tolist(),
        "encoder_footprint_fraction": footprint_fractions(encoded.mean(0), stride),
        "footprint_equivariance": score(one_column, "equivariance"),
        "footprint_invariance": score(one_column, "invariance"),
        "intrinsic_dimension": twonn_dimension(latents.reshape(-1, latents.shape[2])),
        "next_column_error": next_column_error(latents),
    }
    found = None if stereo is None else stereo_report(codec, stereo)
    if found is not None:
        measures["stereo"] = {
            "windows": len(found.aligned),
            "aligned": float(found.aligned.mean()),
            "unaligned": float(found.unaligned.mean()),
            "precision": found.precision,
            "chance": found.chance,
            "psnr": found.psnr,
        }
    return measures, orbits, found


def measure_generator(
    generator: Generator, params: Params, latents: Float[AnyArray, "B L D"], labels: Int[AnyArray, "B"], seed: int = 0
) -> Measures:
    """Measures how a generator and its sampler follow shifts of the index, as JSON values.

    Args:
      generator: the module.
      params: its parameters.
      latents: scaled latents.
      labels: their classes.
      seed: seed of the noise.
    """
    key = jax.random.key(seed)
    found = index_shift_errors(generator, params, latents, labels, INDEX_SHIFTS, key=key)
    measures: Measures = {
        "index_shifts": list(INDEX_SHIFTS),
        "context": found.context.mean(1).tolist(),
        "velocity": found.velocity.mean(1).tolist(),
    }
    if generator.window_size is not None:
        needed = context_columns(generator) + _SAMPLED
        repeated = np.asarray(latents)[:, np.arange(needed) % latents.shape[1]]
        sampled = sampler_shift_errors(generator, params, repeated, labels, INDEX_SHIFTS, key=key, **SAMPLING)
        measures["sampled"] = sampled.mean(1).tolist()
        measures["sampling"] = dict(SAMPLING)
    return measures


def write_report(
    folder: str | os.PathLike[str],
    measures: Measures,
    orbits: Mapping[str, Orbit],
    stereo: StereoReport | None = None,
    groups: Sequence[str] | None = None,
) -> str:
    """Writes results.json, table.md, and plots (PNG) with their data (CSV); returns the table.

    Args:
      folder: folder of the files.
      measures: those of `measure_codec`, with those of `measure_generator` as "generator" if there is one.
      orbits: orbits by name.
      stereo: report on the pair, or None.
      groups: name of every image's group, such as its class, for colors.

    Raises:
      ModuleNotFoundError: matplotlib is missing.
    """
    plots.check_installed()
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, "results.json"), json_values(measures))
    table = make_table(measures)
    with atomic_write(os.path.join(folder, "table.md")) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(table)
    for name, orbit in orbits.items():
        plot_orbit(folder, name, orbit, groups)
    _plot_footprints(folder, measures)
    if stereo is not None:
        _plot_stereo(folder, stereo)
    if "generator" in measures:
        _plot_generator(folder, measures["generator"])
    return table


def make_table(measures: Measures) -> str:
    """Formats the measures as two Markdown tables; every line of the codec has the PSNR of reconstructions."""
    psnr = f"{measures['psnr']:.1f}"
    header = ["transform", "encoder error", "decoder error", "consensus error", "PSNR of transformed latents, dB"]
    rows = [
        [name, *(f"{values[key]:.3f}" for key in ("encoder", "decoder", "consensus"))]
        + [f"{values['transformed_psnr']:.1f}", psnr]
        for name, values in measures["orbits"].items()
    ]
    tables = [markdown_table([*header, "PSNR of reconstructions, dB"], rows)]

    own = {kind: {int(k): v for k, v in measures[f"{kind}_footprint_fraction"].items()} for kind in _STAGES}
    lines = [
        [
            f"{kind} footprint in own pixels / ±1 / ±2 columns",
            " / ".join(f"{own[kind][k]:.2f}" for k in (0, 1, 2)),
            psnr,
        ]
        for kind in _STAGES
    ]
    for name, text in _LINES.items():
        lines.append([text, f"{measures[name]:.3f}", psnr])
    if stereo := measures.get("stereo"):
        quality = f"{stereo['psnr']:.1f}"
        lines += [
            [f"stereo, aligned / unaligned ({stereo['windows']} windows)",
             f"{stereo['aligned']:.3f} / {stereo['unaligned']:.3f}", quality],
            ["stereo, precision of retrieval / chance", f"{stereo['precision']:.2f} / {stereo['chance']:.2f}", quality],
        ]  # fmt: skip
    tables.append(markdown_table(["measure", "value", "PSNR of reconstructions, dB"], lines))
    if generator := measures.get("generator"):
        names = {key: text for key, text in _OUTPUTS.items() if key in generator}
        rows = [[text, *(f"{value:.2g}" for value in generator[key])] for key, text in names.items()]
        tables.append(markdown_table(["index shifted by columns", *map(str, generator["index_shifts"])], rows))
    return "\n\n".join(tables) + "\n"


_STAGES = ("decoder", "encoder")
_LINES = {
    "footprint_equivariance": "encoder footprints, cosine under a shift by a column: equivariance",
    "footprint_invariance": "the same: invariance",
    "intrinsic_dimension": "intrinsic dimension of columns (TwoNN)",
    "next_column_error": "next column, variance that a linear map leaves unexplained",
}
_OUTPUTS = {"context": "context", "velocity": "velocity", "sampled": "sampled columns"}


def _orbit_values(orbit: Orbit) -> Measures:
    return {
        **orbit.summary()._asdict(),
        "elements": orbit.labels,
        "encoder_errors": orbit.encoder_errors.tolist(),
        "decoder_errors": orbit.decoder_errors.tolist(),
        "consensus_errors": orbit.consensus_errors.tolist(),
        "transformed_psnrs": orbit.transformed_psnr.tolist(),
        "column_errors": orbit.column_errors.tolist(),
        "psnrs": orbit.psnr.tolist(),
    }


def _plot_footprints(folder: str | os.PathLike[str], measures: Measures) -> None:
    panels, table = {}, {}
    for kind in _STAGES:
        rows = np.array(measures[f"{kind}_footprint"])
        fraction = {int(k): v for k, v in measures[f"{kind}_footprint_fraction"].items()}[0]
        panels[f"{kind} ({fraction:.0%} in own pixels)"] = np.log10(rows + 1e-6)
        table |= {"pixel": np.arange(rows.shape[1])} | {f"{kind}, column {k}": row for k, row in enumerate(rows)}
    plots.write_csv(os.path.join(folder, "footprints.csv"), table)
    plots.plot_heatmaps(
        os.path.join(folder, "footprints.png"),
        panels,
        title=f"Footprints: pixels that a column controls, and depends on (PSNR {measures['psnr']:.1f} dB)",
        scale_label="fraction of the change, log10",
        x_label="pixel (lines: column borders)",
        y_label="column",
        x_step=measures["column_width"],
    )


def _plot_stereo(folder: str | os.PathLike[str], report: StereoReport) -> None:
    order = np.argsort(report.disparities, kind="stable")
    x = report.disparities[order]
    points = {
        "windows at the same place": [(x, report.unaligned[order])],
        "windows moved by the disparity": [(x, report.aligned[order])],
    }
    plots.plot_groups(
        os.path.join(folder, "stereo.png"),
        points,
        title=f"Latents of two views of one scene (PSNR of reconstructions {report.psnr:.1f} dB)",
        x_label="true disparity of the window, pixels",
        y_label="relative error",
        points=True,
    )
    table = {name: getattr(report, name) for name in ("tops", "lefts", "disparities", "aligned", "unaligned")}
    plots.write_csv(os.path.join(folder, "stereo.csv"), table)


def _plot_generator(folder: str | os.PathLike[str], measures: Measures) -> None:
    places, names = np.arange(len(measures["index_shifts"])), list(map(str, measures["index_shifts"]))
    found = {text: np.array(measures[key]) for key, text in _OUTPUTS.items() if key in measures}
    plots.plot_lines(
        os.path.join(folder, "index_shifts.png"),
        {text: (places, values, None) for text, values in found.items()},
        title="The generator: the same columns at shifted indices",
        x_label="shift of the index, columns",
        y_label="relative error",
        x_names=names,
    )
    plots.write_csv(os.path.join(folder, "index_shifts.csv"), {"shift": np.array(measures["index_shifts"])} | found)
