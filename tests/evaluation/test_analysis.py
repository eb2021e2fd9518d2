"""The analysis: its table, plots and their data, from made-up results."""

import csv
import json
import os
from typing import Any

import numpy as np
from PIL import Image
import pytest

from eqjax.evaluation import analysis
from eqjax.evaluation.results import json_values
from eqjax.io import write_json

COLUMNS, PIXELS = 4, 32


def result(seed, scale):
    rng = np.random.default_rng(seed)
    cosines = np.full((COLUMNS, COLUMNS), 0.2 * scale) + (1 - 0.2 * scale) * np.eye(COLUMNS)
    return {
        "psnr": 20.0 + scale,
        "shift_errors": (scale * rng.uniform(size=(32, COLUMNS))).tolist(),
        "shift_error_column": 0.25 * scale,
        "shift_error_half": 0.5,
        "shift_error_unrelated": 1.4,
        "footprint": rng.uniform(size=(COLUMNS, PIXELS)).tolist(),
        "footprint_fraction": {"0": 0.75, "1": 0.9},
        "loss": [1.0, 2.0, 3.0, 2.0],
        "loss_stderr": [0.1] * COLUMNS,
        "transfer_loss": [1.0, 2.0, 6.0, 4.0],
        "transfer_loss_stderr": [0.1] * COLUMNS,
        "cosines": cosines.tolist(),
        "cosines_stderr": np.full((COLUMNS, COLUMNS), 0.01).tolist(),
        "cosine": 0.2 * scale,
        "cosine_inner": 0.2 * scale,
        "cosine_ceiling": 0.6,
        "transfer": 2.0,
        "transfer_trained": 1.0,
    }


def cells(line):
    """Returns the cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_plots_and_their_data(tmp_path):
    results = {
        "published, window 3": [result(0, 1), result(1, 1.2)],
        "strict, window 3": [result(2, 2), result(3, 2)],
    }
    analysis.write_report(tmp_path, results)
    header, _, published, strict = (cells(line) for line in (tmp_path / "table.md").read_text().splitlines())
    assert header[:3] == ["", "PSNR, dB", "shift by a column"]
    assert published[:4] == ["published, window 3", "21.1 ± 0.1", "0.275 ± 0.035", "0.500 ± 0.000"]
    assert published[4:6] == ["1.400 ± 0.000", "0.750 ± 0.000"]
    assert strict[:3] == ["strict, window 3", "22.0 ± 0.0", "0.500 ± 0.000"]
    assert strict[-2:] == ["2.000 ± 0.000", "1.000 ± 0.000"]
    num_rows, tables = {"shifts": 32, "footprints": PIXELS, "losses": COLUMNS, "cosines": 6}, {}
    for name in num_rows:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 5  # Not blank.
        with open(tmp_path / f"{name}.csv", encoding="utf-8") as file:
            tables[name] = list(csv.DictReader(file))
    assert {name: len(table) for name, table in tables.items()} == num_rows
    assert {row["strict, window 3"] for row in tables["cosines"]} == {"0.4"}
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_a_tokenizer_alone_has_no_plots_of_losses(tmp_path):
    some = {name: value for name, value in result(0, 1).items() if "loss" not in name and "cosine" not in name}
    analysis.write_report(tmp_path, {"model": [some]})
    assert sorted(os.listdir(tmp_path)) == [
        "footprints.csv",
        "footprints.png",
        "results.json",
        "shifts.csv",
        "shifts.png",
        "table.md",
    ]


def test_nan_is_null_in_json_and_a_dash_in_the_table(tmp_path):
    def reject(name):
        raise AssertionError(f"{name} is not JSON")

    some: dict[str, Any] = result(0, 1) | {"corrected_cosine": float("nan")}
    some["shift_errors"][3][2] = float("nan")
    analysis.write_report(tmp_path, {"model": [some]})
    written = json.loads((tmp_path / "results.json").read_text(), parse_constant=reject)["model"][0]
    assert written["corrected_cosine"] is None and written["shift_errors"][3][2] is None
    table = (tmp_path / "table.md").read_text()
    assert "–" in cells(table.splitlines()[2]) and "nan" not in table
    write_json(tmp_path / "r.json", json_values(some | {"flags": {}}))
    read = analysis.read_measures(tmp_path / "r.json", {})
    assert analysis.make_table({"model": [read, read]}).count("–") == 1  # As a comparison reads it back.


def test_measures_of_other_flags_are_rejected(tmp_path):
    write_json(tmp_path / "r.json", {"flags": {"num_columns": 8}, "psnr": 1.0})
    assert analysis.read_measures(tmp_path / "r.json", {"num_columns": 8})["psnr"] == 1.0
    with pytest.raises(ValueError, match="give another --output"):
        analysis.read_measures(tmp_path / "r.json", {"num_columns": 6})
