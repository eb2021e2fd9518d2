"""From a model to a table: the whole protocol, sweeps, the best weights, and the statistics command."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from eqjax import pretrained
from eqjax.evaluation import Extractor, Settings, StatisticsError, image_sets, report, statistics
from tests.evaluation import tiny_models
from tests.evaluation.test_generation import ROOT

SETTINGS = Settings(num_columns=4, num_flow_steps=2)
COUNT = 12


@pytest.fixture(scope="module")
def extractor():
    return Extractor(tiny_models.network(), rows_per_device=2)


@pytest.fixture(scope="module")
def reference(extractor):
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    return extractor.collect(iter([images]), 20, keep=20).statistics


@pytest.fixture(scope="module")
def results(extractor, reference, tmp_path_factory):
    options = dict(extractor=extractor, reference=reference, reference_name="noise.npz", rows_per_device=2, keep=COUNT)
    root = tmp_path_factory.mktemp("sweep")
    sweep = [(g, dataclasses.replace(SETTINGS, guidance_scale=g)) for g in (2.0, 3.0)]
    return root, [report.evaluate_generation(tiny_models.model(), s, COUNT, root / str(g), **options) for g, s in sweep]


def test_a_sweep_with_its_protocol(results):
    root, rows = results
    text = report.save(root, rows)
    assert json.loads((root / "results.json").read_text()) == rows
    assert (root / "table.md").read_text() == text
    header, _, first, second, _, protocol = text.splitlines()
    assert header == "| guidance_scale | fid | sfid | inception_score | kid | precision | recall |"
    assert first.startswith("| 2.0 | ") and second.startswith("| 3.0 | ") and first != second
    for part in (
        "count: 12",
        "seed: 0",
        "num_flow_steps: 2",
        "solver: euler",
        "guidance_schedule: linear",
        "network: tiny",
        "resize: none",
        "rounding: 8 bit",
        "image_size: [16, 16]",
        "reference: noise.npz",
        "reference_count: 20",
        "weights: ",
    ):
        assert part in protocol


def row(fid=None, **protocol):
    return {"metrics": {} if fid is None else {"fid": fid}, "protocol": {"weights": "a", "jax": "1", **protocol}}


def test_rows_of_earlier_calls_stay(tmp_path):
    report.save(tmp_path, [row(9.0, guidance_scale=1.0), row(8.0, guidance_scale=2.0), row(guidance_scale=5.0)])
    text = report.save(tmp_path, [row(7.0, guidance_scale=4.0), row(8.5, guidance_scale=2.0, jax="2")])
    rows = report.earlier(tmp_path)
    assert [(r["protocol"]["guidance_scale"], r["metrics"]["fid"]) for r in rows] == [
        (1.0, 9.0),
        (4.0, 7.0),
        (2.0, 8.5),
    ]
    assert text == (tmp_path / "table.md").read_text() and "| 1 | 4.0 | 7.0000 |" in text
    report.save(tmp_path, [row(float("inf"), guidance_scale=4.0)])
    assert report.earlier(tmp_path)[-1]["metrics"] == {"fid": None}
    assert "| 1 | 4.0 | – |" in (tmp_path / "table.md").read_text()
    # Rows of another kind, that do not have all of the protocol.
    text = report.save(tmp_path / "kinds", [row(1.0, source="x")])
    text = report.save(tmp_path / "kinds", [row(2.0, guidance_scale=2.0, max_position=None)])
    assert "| x |  | 1.0000 |" in text and "|  | 2.0 | 2.0000 |" in text and "None" not in text


def test_a_reference_without_features_says_what_is_missing(extractor, reference, results, caplog):
    without = dataclasses.replace(reference, features=None)
    root, (first, _) = results
    settings = dataclasses.replace(SETTINGS, guidance_scale=2.0)
    with caplog.at_level("INFO"):
        again = report.evaluate_generation(
            tiny_models.model(), settings, COUNT, root / "2.0", extractor=extractor, reference=without, keep=COUNT
        )
    assert "No KID, precision and recall: the reference holds no features" in caplog.text
    assert set(first["metrics"]) - set(again["metrics"]) >= {"kid", "precision", "recall"}


def test_another_protocol_is_refused_before_anything_is_drawn(extractor, reference, tmp_path):
    other = dataclasses.replace(reference, protocol={**reference.protocol, "network": "other"})
    with pytest.raises(StatisticsError, match="network: reference 'other', here 'tiny'"):
        report.evaluate_generation(tiny_models.model(), SETTINGS, 4, tmp_path, extractor=extractor, reference=other)
    assert os.listdir(tmp_path) == []


def test_periodic_evaluation_leaves_nothing_behind(extractor, reference, results, tmp_path):
    settings = dataclasses.replace(SETTINGS, guidance_scale=2.0)
    evaluate = report.periodic_evaluation(
        settings, COUNT, tmp_path, extractor=extractor, reference=reference, rows_per_device=2, keep=COUNT
    )
    assert evaluate(3, tiny_models.model()) == pytest.approx(results[1][0]["metrics"])
    assert os.listdir(tmp_path) == []


def test_statistics_of_an_npz_of_images(tmp_path, extractor, reference):
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images)
    source = image_sets.from_path(tmp_path / "images.npz")
    report.write_statistics(tmp_path / "s.npz", extractor, source, keep=50)
    written = statistics.load(tmp_path / "s.npz")
    np.testing.assert_allclose(written.covariance, reference.covariance, rtol=1e-6)
    assert written.count == 20 and written.protocol == reference.protocol and written.features.shape == (20, 5)


def command(*arguments):
    full = [sys.executable, "-m", "eqjax", *arguments]
    return subprocess.run(full, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_commands(tmp_path):
    model = tiny_models.model()
    modules = {"tokenizer": model.tokenizer, "generator": model.generator}
    params = {"tokenizer": model.tokenizer_params, "generator": model.generator_params}
    pretrained.save(tmp_path / "m.safetensors", pretrained.Weights(modules, params, 1.0))
    options = [f"--weights={tmp_path / 'm.safetensors'}", "--num_flow_steps=2", "--batch_per_device=2"]
    options += ["--num_images=6", f"--output={tmp_path / 'out'}"]
    done = command("evaluate", "generation", *options, "--network=none", "--guidance=1,2", "--npz")
    assert done.returncode == 0, done.stderr
    assert "images: 6/6" in done.stderr and "left" in done.stderr
    with np.load(tmp_path / "out" / "guidance_2" / "samples.npz") as file:
        assert file["arr_0"].shape == (6, 16, 16, 3) and sorted(file["arr_1"]) == [0, 0, 1, 1, 2, 2]
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 2
    done = command("evaluate", "generation", *options, f"--nets_folder={tmp_path}")
    assert done.returncode == 1 and "pt_inception-2015-12-05" in done.stderr and "Traceback" not in done.stderr
