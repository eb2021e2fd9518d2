"""The analysis: its table, plots and their data, from made-up results."""

import csv
import json
import os
from typing import Any

import numpy as np
from PIL import Image
import pytest

from eqjax.evaluation import analysis, plots
from eqjax.evaluation.results import json_values
from eqjax.io import write_json

COLUMNS, PIXELS = 4, 32


def result(seed, scale):
    rng = np.random.default_rng(seed)
    cosines = np.full((COLUMNS, COLUMNS), 0.2 * scale) + (1 - 0.2 * scale) * np.eye(COLUMNS)
    return {
        "psnr": 20.0 + scale,
        "column_width": PIXELS // COLUMNS,
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
    assert header[:3] == ["", "PSNR of training crops, dB", "shift by a column"]
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
    write_json(tmp_path / "r.json", json_values(some | {"comparison": {}}))
    read = analysis.read_measures(tmp_path / "r.json", {})
    assert analysis.make_table({"model": [read, read]}).count("–") == 1  # As a comparison reads it back.


def test_measures_of_other_fields_are_rejected(tmp_path):
    write_json(tmp_path / "r.json", {"comparison": {"num_columns": 8, "levels": (1, 1)}, "psnr": 1.0})
    assert analysis.read_measures(tmp_path / "r.json", {"num_columns": 8, "levels": (1, 1)})["psnr"] == 1.0
    with pytest.raises(ValueError, match="give another --output, or the same fields.\n  num_columns: file 8, now 6"):
        analysis.read_measures(tmp_path / "r.json", {"num_columns": 6, "levels": (1, 1)})


def test_a_kind_may_lack_measures_of_latents(tmp_path):
    """Those of anchored columns have no errors under shifts."""
    some = {name: value for name, value in result(1, 1).items() if "shift" not in name and "footprint" not in name}
    table = analysis.write_report(tmp_path, {"strict, window 3": [result(0, 1)], "anchored strict, window 3": [some]})
    assert cells(table.splitlines()[3])[1:4] == ["21.0", "–", "–"]
    with open(tmp_path / "shifts.csv", encoding="utf-8") as file:
        assert not [name for name in next(csv.reader(file)) if "anchored" in name]
    with open(tmp_path / "losses.csv", encoding="utf-8") as file:
        assert [name for name in next(csv.reader(file)) if "anchored" in name]


def test_roughness_is_listed_by_class_for_one_model_and_by_kind_for_several(tmp_path):
    ramp = np.arange(16.0)
    real = np.broadcast_to(ramp[None, None, :, None], (6, 4, 16, 3)).astype(np.uint8)
    seams = (real + 2 * (np.arange(16) // 8)[None, None, :, None]).astype(np.uint8)  # 3 at the border, 1 elsewhere.
    labels = np.array([0, 0, 0, 1, 1, 1])
    found = analysis.roughness_measures({"real": real, "sampled": seams}, labels, ("ape", "bee", "cow"), 8)
    assert list(found["roughness"]["sampled"]) == ["all", "ape", "bee"]  # No image shows a cow.
    one = result(0, 1) | found
    table = analysis.write_report(tmp_path, {"model": [one]})
    lines = [cells(line) for line in table.splitlines() if line.startswith("|")][3:]
    assert lines[0] == [
        "roughness", "at borders, real", "at borders, sampled", "at middles, real", "at middles, sampled",
    ]  # fmt: skip
    assert lines[2] == ["all", "1.00", "3.00", "1.00", "1.00"] and [line[0] for line in lines[2:]] == [
        "all",
        "ape",
        "bee",
    ]
    with open(tmp_path / "roughness.csv", encoding="utf-8") as file:
        assert [row["sampled"] for row in csv.DictReader(file)] == ["3.0", *["1.0"] * 7]
    assert (tmp_path / "roughness.png").exists()
    written = json.loads((tmp_path / "results.json").read_text())["model"][0]
    both = analysis.make_roughness_table({"strict": [written], "published": [written, written]})
    assert [cells(line)[0] for line in both.splitlines()[2:4]] == ["strict", "published"] and "3.00 ± 0.00" in both


def test_many_classes_or_narrow_columns_have_no_rows_of_their_own():
    images, names = np.zeros((2, 4, 16, 3), np.uint8), [str(n) for n in range(analysis.MAX_CLASSES + 1)]
    found = analysis.roughness_measures({"real": images}, np.array([0, 1]), names, 8)
    assert list(found["roughness"]["real"]) == ["all"]
    assert analysis.roughness_measures({"real": images}, np.array([0, 1]), names, 2) == {}


def test_conflict_between_columns_is_seen(tmp_path, monkeypatch):
    """Opposite signs have opposite colors, 0 is white, and a column's cosine with itself does not set the scale."""
    drawn = {}
    monkeypatch.setattr(
        analysis.plots, "plot_heatmaps", lambda path, panels, **kwargs: drawn.update({str(path): (panels, kwargs)})
    )
    some = result(0, 1)
    some["cosines"] = [[1, -0.02, 0.01, 0], [-0.02, 1, 0, 0], [0.01, 0, 1, 0], [0, 0, 0, 1]]
    analysis.write_report(tmp_path, {"model": [some]})
    panels, kwargs = drawn[str(tmp_path / "cosines.png")]
    assert kwargs["diverging"] and np.isnan(np.diag(panels["model"])).all() and panels["model"][0, 1] == -0.02
    assert plots._limits(list(panels.values()), diverging=True) == (-0.02, 0.02)


def test_heat_maps_show_signs_in_colors(tmp_path):
    plots.plot_heatmaps(
        tmp_path / "map.png", {"one": np.array([[0.5, -0.5], [0.0, np.nan]])}, title="", scale_label="", diverging=True
    )
    with Image.open(tmp_path / "map.png") as image:
        colors = {color for _, color in image.convert("RGB").getcolors(10**6) or ()}
    assert {(103, 0, 31), (5, 48, 97)} <= colors  # The ends of the scale: dark red and dark blue.
