"""Both trainers, end to end and tiny: learning, resuming bit for bit, the files of a run, what is refused."""

import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import photos_generator, photos_tokenizer
from eqjax import checksums, load_pretrained, pretrained
from eqjax.checkpoints import ConfigMismatchError
from eqjax.training import generator, tokenizer
from tests.training import sample_metrics_run


def tokenizer_config(steps):
    config = photos_tokenizer.get_config("tiny")
    config.data.classes = ("brick", "coffee")
    config.total_steps = steps
    config.checkpoint_every = 20
    config.log_every = 1
    # Muon, which the configuration names, takes twice the time to compile.
    config.optimizer.update(name="adamw", grad_clip_norm=None)
    config.optimizer.update(schedule="constant", warmup_steps=0.0, learning_rate=2e-3)
    return config


def generator_config(tokenizer_weights, steps):
    config = photos_generator.get_config("tiny")
    config.data.classes = ("brick", "coffee")
    config.generator.num_classes = 2
    config.tokenizer_weights = str(tokenizer_weights)
    config.total_steps = steps
    config.checkpoint_every = 20
    config.log_every = 1
    config.optimizer.update(schedule="constant", warmup_steps=0.0, learning_rate=5e-3)
    return config


def metrics(workdir, name="loss"):
    lines = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def bits(state):
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of 40 steps of each trainer."""
    root = tmp_path_factory.mktemp("runs")
    states: dict[str, Any] = {"tokenizer": tokenizer.train_and_evaluate(tokenizer_config(40), str(root / "tokenizer"))}
    config = generator_config(root / "tokenizer", 40)
    reference = sample_metrics_run.write_reference(root / "reference.npz")
    config.metrics.update(every=20, num_images=sample_metrics_run.COUNT, reference=str(reference))
    config.metrics.sampling.update(sample_metrics_run.SAMPLING)
    config.keep_checkpoints, config.keep_best = 1, "fid:max"
    with sample_metrics_run.tiny_inception():
        states["generator"] = generator.train_and_evaluate(config, str(root / "generator"))
    return root, states


def test_tokenizer_learns(runs):
    losses = metrics(runs[0] / "tokenizer", "l1")
    assert list(losses) == list(range(1, 41))
    assert np.mean([losses[s] for s in range(31, 41)]) < 0.7 * np.mean([losses[s] for s in range(1, 6)])


def test_generator_learns(runs):
    losses = metrics(runs[0] / "generator")
    assert np.mean([losses[s] for s in range(31, 41)]) < 0.5 * np.mean([losses[s] for s in range(1, 6)])


def test_a_run_writes_logs_images_checkpoints_and_weights(runs):
    root, states = runs
    for trainer, image in (("tokenizer", "reconstructions"), ("generator", "samples")):
        names = {str(p.relative_to(root / trainer)) for p in (root / trainer).rglob("*")}
        assert {"metrics.jsonl", "model.safetensors", "config.json", f"images/{image}_0000040.png"} <= names
        assert "checkpoints/40" in names
        assert any("events.out.tfevents" in name for name in names)
    assert metrics(root / "tokenizer", "eval_psnr")[40] > 5
    assert metrics(root / "generator", "eval_loss")[40] > 0
    model = load_pretrained(root / "generator")
    assert model.class_names == ("brick", "coffee")
    assert model.sample("coffee", num_columns=3, num_flow_steps=2).shape == (1, 16, 12, 3)
    kept = jax.tree.map(lambda a, b: (a == b).all(), model.generator_params, states["generator"].ema_params)
    assert jax.tree.all(kept)


def test_the_exported_latent_scale_gives_unit_latents(runs):
    weights = pretrained.load(runs[0] / "tokenizer" / "model.safetensors")
    config = tokenizer_config(40)
    from eqjax.data import make_iterator

    with make_iterator(config.data, batch_size=64, seed=5) as data:
        images = next(data)["image"] / np.float32(127.5) - 1
    posterior = weights.modules["tokenizer"].apply({"params": weights.params["tokenizer"]}, images, method="encode")
    scaled = posterior.sample(jax.random.key(0)) * weights.latent_scale
    assert abs(float(jnp.sqrt(jnp.mean(scaled**2))) - 1) < 0.15


def test_the_best_weights_by_fid_are_kept(runs):
    root = runs[0]
    fid = sample_metrics_run.logged(root / "generator", "fid")
    best, intact = checksums.verify(json.loads((root / "generator" / "best.json").read_text()))
    assert intact and list(fid) == [20, 40]
    assert best == {"step": max(fid, key=lambda step: fid[step]), "fid": max(fid.values())}
    again = sample_metrics_run.measure(root / "generator" / "best.safetensors", root / "reference.npz")
    assert best["fid"] == pytest.approx(again, rel=1e-5)
    kept = {int(p.name) for p in (root / "generator" / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {best["step"], 40} and not (root / "generator" / "evaluation").exists()


@pytest.mark.slow
def test_an_interrupted_tokenizer_equals_an_uninterrupted_one(runs, tmp_path):
    """The folder is left as by a kill after the checkpoint of step 20."""
    root, states = runs
    workdir = shutil.copytree(root / "tokenizer", tmp_path / "tokenizer")
    shutil.rmtree(workdir / "checkpoints" / "40")
    for name in ("metrics.jsonl", "model.safetensors"):
        (workdir / name).unlink()
    resumed = tokenizer.train_and_evaluate(tokenizer_config(40), str(workdir))
    assert list(metrics(workdir)) == list(range(21, 41))
    assert bits(resumed) == bits(states["tokenizer"])


@pytest.mark.slow
def test_a_generator_in_two_runs_equals_an_uninterrupted_one(runs, tmp_path):
    root, states = runs
    generator.train_and_evaluate(generator_config(root / "tokenizer", 20), str(tmp_path))
    resumed = generator.train_and_evaluate(generator_config(root / "tokenizer", 40), str(tmp_path))
    assert list(metrics(tmp_path)) == list(range(1, 41))
    assert bits(resumed) == bits(states["generator"])


def test_another_model_in_the_same_workdir_is_refused(runs):
    root, _ = runs
    config = generator_config(root / "tokenizer", 60)
    config.generator.depth = 1
    with pytest.raises(ConfigMismatchError, match="generator.depth: checkpoint 2, this run 1"):
        generator.train_and_evaluate(config, str(root / "generator"))


def test_fields_that_are_unknown_or_missing_are_refused(tmp_path):
    config = tokenizer_config(1)
    with config.unlocked():
        config.learning_rte = 1.0
    with pytest.raises(ValueError, match="a tokenizer's configuration has no field learning_rte"):
        tokenizer.train_and_evaluate(config, str(tmp_path))
    config = tokenizer_config(1)
    with config.unlocked():
        del config.objective.kl_weight
    with pytest.raises(ValueError, match="lacks objective.kl_weight: Weight of the KL term"):
        tokenizer.train_and_evaluate(config, str(tmp_path))


def test_unknown_fields_of_the_module_are_refused(tmp_path):
    config = tokenizer_config(1)
    with config.tokenizer.unlocked():
        config.tokenizer.chanels = 3
    with pytest.raises(ValueError, match="no field tokenizer.chanels; did you mean 'channels'"):
        tokenizer.train_and_evaluate(config, str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("generator.latent_dim", 9, "generator.latent_dim=9 does not fit the tokenizer of .* needs 8"),
        ("generator.num_classes", 5, "num_classes=5, but the data has 2 classes"),
        ("data.height", 32, "data.height=32 does not fit .* needs 16"),
        ("data.width", 30, "data.width=30 is not a multiple of 4, the width of a column of the tokenizer of"),
        ("loss_columns", (0, 9), r"loss_columns=\(0, 9\) does not fit the images: .* from 0 … 3"),
        ("tokenizer_weights", "", "set tokenizer_weights"),
    ],
)
def test_a_generator_that_does_not_fit_is_refused(runs, tmp_path, field, value, message):
    config = generator_config(runs[0] / "tokenizer", 1)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        generator.train_and_evaluate(config, str(tmp_path))


def test_a_batch_that_does_not_divide_among_the_devices_is_refused(tmp_path):
    config = tokenizer_config(1)
    config.batch_size = 6
    with pytest.raises(ValueError, match="batch of 6 does not divide among 4 devices"):
        tokenizer.train_and_evaluate(config, str(tmp_path))
