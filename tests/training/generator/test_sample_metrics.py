"""FID of samples while a generator trains: what is refused, several processes, which weights stay.

How a run as a whole keeps its best is seen in test_runs.
"""

import dataclasses

import numpy as np
import pytest

from eqjax.evaluation import StatisticsError, statistics
from eqjax.training import generator
from tests import subprocesses
from tests.training import sample_metrics_run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return sample_metrics_run.write_tokenizer(folder / "tokenizer.safetensors"), sample_metrics_run.write_reference(
        folder / "reference.npz"
    )


@pytest.mark.slow
def test_two_processes_measure_the_same_fid_as_one(inputs, tmp_path):
    codes, outputs = subprocesses.run_processes(
        "tests.training.sample_metrics_run", tmp_path / "run", *inputs, count=2, devices=2
    )
    assert codes == [0, 0], outputs
    fid = sample_metrics_run.logged(tmp_path / "run", "fid")
    assert list(fid) == [2, 4] and list(sample_metrics_run.logged(tmp_path / "run", "eval_loss")) == [2, 4]
    assert fid[4] == pytest.approx(
        sample_metrics_run.measure(tmp_path / "run" / "model.safetensors", inputs[1]), rel=1e-5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(every=3), "metrics.every=3 must be a multiple of eval_every=2"),
        (dict(reference=""), "set metrics.reference: a statistics file"),
        (dict(reference="nowhere.npz"), "nowhere.npz"),
        (dict(sampling={"num_flow_steps": 0}), "num_flow_steps=0 must be an integer ≥ 1"),
        (dict(sampling={"guidance_scale": -1.0}), "guidance_scale=-1.0 must be a finite number ≥ 0"),
        (dict(num_images=1), "num_images=1 must be an integer ≥ 2"),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused_at_once(inputs, tmp_path, change, message):
    config = sample_metrics_run.make_config(*inputs)
    config.metrics.update(change)
    with sample_metrics_run.tiny_inception(), pytest.raises((ValueError, OSError), match=message):
        generator.train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mean=np.zeros(2048), covariance=np.eye(2048)), "of 2048 pool features, this network gives 5"),
        (dict(protocol={"image_size": [256, 256]}), r"image_size: reference \[256, 256\], here \[16, 16\]"),
    ],
)
def test_a_reference_of_another_kind_is_refused_at_once(inputs, tmp_path, change, message):
    other = tmp_path / "other.npz"
    statistics.save(other, dataclasses.replace(statistics.load(inputs[1]), features=None, **change))
    with sample_metrics_run.tiny_inception(), pytest.raises(StatisticsError, match=message):
        generator.train_and_evaluate(sample_metrics_run.make_config(inputs[0], other), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_columns_that_do_not_exist_are_refused_at_once(inputs, tmp_path):
    config = sample_metrics_run.make_config(*inputs)
    config.loss_columns = (2, 4)
    with pytest.raises(ValueError, match=r"columns=\[2, 4\] must be one or more indices from 0 … 3"):
        generator.train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
