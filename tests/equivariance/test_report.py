"""The report: figures with content, and a table in which no error stands without PSNR."""

import json

import numpy as np
from PIL import Image
import pytest

from eqjax.equivariance import ColumnGeometry, StereoPair, flips, shifts
from eqjax.equivariance.report import default_groups, make_table, measure_codec, write_report
from tests.equivariance.toy_codecs import columns_codec, photograph_rows

GENERATOR = {"index_shifts": [1, 2], "context": [0.01, 0.25], "velocity": [0.02, 0.5]}


@pytest.fixture(name="found", scope="module")
def _found():
    scene = (127.5 * (photograph_rows(1, 46)[0] + 1)).astype(np.uint8)
    pair = StereoPair(scene[:, :40], scene[:, 6:], np.full((16, 40), 6.0, np.float32))
    groups = {"shift": shifts(4, step=2), "flip": flips()}
    measures, orbits, stereo = measure_codec(columns_codec(), photograph_rows(6, 32), groups, num_images=3, stereo=pair)
    return measures | {"generator": GENERATOR}, orbits, stereo


def test_figures_and_their_data_are_written(found, tmp_path):
    measures, orbits, stereo = found
    table = write_report(tmp_path, measures, orbits, stereo, ["ape", "bee", "ape"])
    names = {f"{name}_{kind}" for name in orbits for kind in ("mean", "images", "scatter", "columns")}
    images = {path.stem: path for path in tmp_path.glob("*.png")}
    assert set(images) == names | {"footprints", "stereo", "index_shifts"}
    for name, path in images.items():
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5, f"{name} is blank"
    assert table == (tmp_path / "table.md").read_text(encoding="utf-8") == make_table(measures)
    read = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    np.testing.assert_allclose(read["orbits"]["shift"]["encoder_errors"], orbits["shift"].encoder_errors)
    header = (tmp_path / "shift_images.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == 'element,"image 0, ape","image 1, bee","image 2, ape"'


def test_every_line_about_the_codec_has_psnr(found):
    measures = found[0]
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in make_table(measures).splitlines()]
    table = {line[0]: line[1:] for line in lines if len(line) > 1}
    psnr = f"{measures['psnr']:.1f}"
    assert table["transform"][-1] == table["measure"][-1] == "PSNR of reconstructions, dB"
    assert table["shift"][-1] == table["flip"][-1] == psnr and float(table["flip"][0]) < 1e-3 < float(table["shift"][0])
    assert table["decoder footprint in own pixels / ±1 / ±2 columns"] == ["1.00 / 1.00 / 1.00", psnr]
    assert table["stereo, aligned / unaligned (5 windows)"][-1] == f"{measures['stereo']['psnr']:.1f}"
    assert table["context"] == ["0.01", "0.25"] and "sampled columns" not in table


def test_groups_fit_the_width():
    for columns in range(4, 13):
        for name, group in default_groups(ColumnGeometry(16), columns).items():
            for action in group.grid(3):
                assert (columns * action.scale).denominator == 1, name
                assert abs(action.shift) <= 16 * (columns - 3)
    assert "scale" in default_groups(ColumnGeometry(16), 6)
