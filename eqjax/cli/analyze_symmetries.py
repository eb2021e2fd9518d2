"""The analysis of which symmetries images have; it needs no model."""

import itertools
import os
from typing import Any

from absl import flags, logging
from ml_collections import config_flags
import numpy as np

from eqjax import data
from eqjax.cli.analyze_images import BATCH_SIZE
from eqjax.equivariance import ColumnGeometry, Group, Overlap, measure_overlap
from eqjax.equivariance.report import default_groups
from eqjax.evaluation import plots
from eqjax.evaluation.protocol import device_entries
from eqjax.evaluation.results import json_values
from eqjax.io import atomic_write, write_json
from eqjax.progress import ProgressLogger
from eqjax.tables import markdown_table
from eqjax.typing import Config

# Pixels per column, as tokenizers have by default.
_STRIDE = 16


def analyze_symmetries(args: flags.FlagValues) -> None:
    """Measures which symmetries the images of --data have, and writes the report.

    Raises:
      ValueError: the data hold no images, or their width does not fit.
    """
    config = args.data.copy_and_resolve_references()
    if config.source == "latents":
        raise ValueError("--data.source=latents holds no images; give the data source that the cache was made from.")
    if "width" not in config_flags.get_override_values(args["data"]):
        config.width = args.num_columns * _STRIDE
    geometry = ColumnGeometry(_STRIDE, config.height, args.boundary, args.interpolation)
    columns = geometry.num_columns(config.width)
    groups, found = default_groups(geometry, columns), {}
    progress = ProgressLogger("symmetries", len(groups))
    for name, group in groups.items():
        found[name] = _measure(config, geometry, group, args.critic_steps, args.num_batches)
        progress.update(1)
    table = _write(args.output, config, found, args.critic_steps)
    logging.info("Wrote %s:\n%s", os.path.abspath(args.output), table)


def _measure(config: Config, geometry: ColumnGeometry, group: Group, steps: int, num_batches: int) -> Overlap:
    options: dict[str, Any] = {"batch_size": BATCH_SIZE, "process_index": 0, "process_count": 1}
    with (
        data.make_iterator(config, seed=0, **options) as batches,
        data.make_iterator(config, seed=1, train=False, **options) as held_out,
    ):
        seen = (batch["image"] for batch in batches)
        others = (batch["image"] for batch in itertools.islice(held_out, num_batches))
        return measure_overlap(geometry, group, seen, others, steps=steps)


def _write(folder: str, config: Config, found: dict[str, Overlap], steps: int) -> str:
    """Writes results.json, table.md and overlaps.png with its data (CSV); returns the table."""
    os.makedirs(folder, exist_ok=True)
    entries = {name: {"auc": one.auc, "overlap": one.fraction, "images": one.num_images} for name, one in found.items()}
    about = {"source": config.root or config.source, "flip": config.flip, "critic_steps": steps, **device_entries()}
    write_json(os.path.join(folder, "results.json"), json_values({**about, "symmetries": entries}))
    header = ["transform", "area under the critic's ROC curve", "overlap", "held-out images"]
    rows = [[name, f"{one.auc:.3f}", f"{one.fraction:.2f}", one.num_images] for name, one in found.items()]
    table = markdown_table(header, rows)
    with atomic_write(os.path.join(folder, "table.md")) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(f"{table}\n")
    fractions = np.array([one.fraction for one in found.values()])
    plots.write_csv(os.path.join(folder, "overlaps.csv"), {"transform": np.array(list(found)), "overlap": fractions})
    plots.plot_groups(
        os.path.join(folder, "overlaps.png"),
        {"overlap": [(np.arange(len(found)), fractions)]},
        title="How many transformed images could be images of the data",
        x_label="transform",
        y_label="overlap",
        points=True,
        x_names=list(found),
    )
    return table
