"""From a model to a table: metrics, their protocol, sweeps, and the evaluation of a model in training."""

import dataclasses
import json
import os

import numpy as np
import pytest

from eqjax.evaluation import Extractor, GenerationEvaluator, GenerationOptions, StatisticsError, results
from tests.evaluation import tiny_models

OPTIONS = GenerationOptions(num_columns=4, num_flow_steps=2)
COUNT = 12


@pytest.fixture(scope="module")
def extractor():
    return Extractor(tiny_models.network(), per_device_batch_size=2)


@pytest.fixture(scope="module")
def reference(extractor):
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    return extractor.collect(iter([images]), 20, num_stored_features=20).statistics


@pytest.fixture(scope="module")
def evaluate(extractor, reference):
    """Evaluates the tiny model in a folder."""

    def run(guidance_scale, folder, **changes):
        keywords = {"reference": reference, "reference_name": "noise.npz", **changes}
        options = dataclasses.replace(OPTIONS, guidance_scale=guidance_scale)
        model = tiny_models.model()
        evaluator = GenerationEvaluator(
            model, options, COUNT, extractor=extractor, per_device_batch_size=2, num_stored_features=COUNT, **keywords
        )
        return evaluator.evaluate(model, folder)

    return run


@pytest.fixture(scope="module")
def sweep(evaluate, tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    return root, [evaluate(scale, root / str(scale)) for scale in (2.0, 3.0)]


def test_a_sweep_with_its_protocol(sweep):
    root, rows = sweep
    text = results.save(root, rows)
    assert json.loads((root / "results.json").read_text()) == rows
    assert (root / "table.md").read_text() == text
    header, _, first, second, _, protocol = text.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, first, second)]
    assert cells[0] == ["guidance_scale", "fid", "sfid", "inception_score", "kid", "precision", "recall"]
    assert cells[1][0] == "2.0" and cells[2][0] == "3.0" and cells[1][1:] != cells[2][1:]
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


def test_a_reference_without_features_logs_which_metrics_are_missing(evaluate, reference, sweep, caplog):
    without = dataclasses.replace(reference, features=None)
    root, (first, _) = sweep
    with caplog.at_level("INFO"):
        again = evaluate(2.0, root / "2.0", reference=without, reference_name="")
    assert "No KID, precision and recall: the reference holds no features" in caplog.text
    assert set(first["metrics"]) - set(again["metrics"]) >= {"kid", "precision", "recall"}


def test_another_protocol_is_rejected_before_anything_is_written(extractor, reference):
    other = dataclasses.replace(reference, protocol={**reference.protocol, "network": "other"})
    with pytest.raises(StatisticsError, match="network: reference 'other', here 'tiny'"):
        GenerationEvaluator(tiny_models.model(), OPTIONS, 4, extractor=extractor, reference=other)


@pytest.mark.parametrize(("num_images", "message"), [(0, "num_images=0 must be at least 1"), (1, "needs at least 2")])
def test_too_few_images_are_rejected(extractor, num_images, message):
    with pytest.raises(ValueError, match=message):
        GenerationEvaluator(tiny_models.model(), OPTIONS, num_images, extractor=extractor)


def test_evaluating_a_step_of_training_leaves_no_images(extractor, reference, sweep, tmp_path):
    model, options = tiny_models.model(), dataclasses.replace(OPTIONS, guidance_scale=2.0)
    evaluator = GenerationEvaluator(
        model,
        options,
        COUNT,
        extractor=extractor,
        reference=reference,
        per_device_batch_size=2,
        num_stored_features=COUNT,
    )
    assert evaluator.evaluate_step(3, model, workdir=tmp_path) == pytest.approx(sweep[1][0]["metrics"])
    assert os.listdir(tmp_path) == []
