"""Fine-tuning: a run that starts from another generator's weights, with its own classes."""

import dataclasses
import logging
import shutil

import jax
import numpy as np
import pytest

from configs import photos_generator, photos_tokenizer
from eqjax import pretrained
from eqjax.pretrained import Weights
from eqjax.training import generator as training
from eqjax.training.generator.initial_weights import load_initial_weights
from tests.random_params import random_params

CLASSES = ("brick", "coffee", "cat")


def module(name, config):
    return pretrained.build_module(name, dict(config[name]))


@pytest.fixture(name="weights", scope="module")
def _weights():
    """Returns random weights of a tiny tokenizer and of a generator of three classes."""
    tokenizer = module("tokenizer", photos_tokenizer.get_config("tiny"))
    generator = module("generator", photos_generator.get_config("tiny")).clone(num_classes=len(CLASSES))
    params = {"tokenizer": random_params(tokenizer), "generator": random_params(generator)}
    return Weights({"tokenizer": tokenizer, "generator": generator}, params, 0.5, CLASSES, "of the first run")


@pytest.fixture(name="load")
def _load(weights, tmp_path):
    """Returns a function that saves weights with changes, and loads what a run of some classes starts from."""

    def load(names, /, tokenizer=weights, fields=None, **changes):
        path = tmp_path / "generator.safetensors"
        pretrained.save(path, dataclasses.replace(weights, **changes))
        generator = weights.modules["generator"].clone(num_classes=len(names), **(fields or {}))
        return load_initial_weights(str(path), generator, names, tokenizer, "the tokenizer's file")

    return load


def test_classes_keep_their_embedding_by_name_and_new_ones_start_as_no_class(weights, load):
    before = weights.params["generator"]
    params, notes = load(("cat", "dog", "brick"))
    table = params["class_embedding"]
    np.testing.assert_array_equal(table[[0, 2]], before["class_embedding"][[2, 0]])
    np.testing.assert_array_equal(table[1], before["null_embedding"][0])
    rest = [{name: leaf for name, leaf in tree.items() if name != "class_embedding"} for tree in (params, before)]
    jax.tree.map(np.testing.assert_array_equal, *rest)
    assert notes == "of the first run"


def test_classes_without_names_keep_their_embedding_in_their_order_if_there_are_as_many(weights, load):
    before = weights.params["generator"]
    params, _ = load(("a", "b", "c"), class_names=None)
    np.testing.assert_array_equal(params["class_embedding"], before["class_embedding"])
    params, _ = load(("a", "b"), class_names=None)
    np.testing.assert_array_equal(params["class_embedding"], np.tile(before["null_embedding"], (2, 1)))


def test_fields_that_change_no_parameter_may_differ_and_others_may_not(load):
    load(("cat",), fields={"dropout_rate": 0.5, "remat": "full", "flow_batch_mult": 2})
    with pytest.raises(ValueError, match=r"initial_weights=\S+ is not the one to be trained:(?s:.)*window_size.*3.*5"):
        load(("cat",), fields={"window_size": 5})


def test_another_scale_of_latents_is_refused_and_a_file_without_a_generator(weights, load):
    with pytest.raises(ValueError, match=r"scaled by 0.5, and .*tokenizer_weights=the tokenizer's file .* by 0.7"):
        load(("cat",), tokenizer=dataclasses.replace(weights, latent_scale=0.7))
    alone = {"modules": {"tokenizer": weights.modules["tokenizer"]}, "class_names": None}
    with pytest.raises(ValueError, match="holds no generator; give initial_weights"):
        load(("cat",), params={"tokenizer": weights.params["tokenizer"]}, **alone)


def test_another_encoder_is_warned_of_and_a_rounded_one_is_the_same(weights, load, caplog):
    def changed(change):
        tokenizer = jax.tree.map(change, weights.params["tokenizer"])
        return dataclasses.replace(weights, params={**weights.params, "tokenizer": tokenizer})

    with caplog.at_level(logging.WARNING):
        load(("cat",), tokenizer=changed(lambda leaf: leaf.astype(np.float16).astype(np.float32)))
        assert not caplog.records
        load(("cat",), tokenizer=changed(lambda leaf: 1.1 * leaf))
    assert "another encoder than that of tokenizer_weights=the tokenizer's file" in caplog.text


def run_config(path, **fields):
    config = photos_generator.get_config("tiny")
    config.data.classes = ("coffee", "flower")
    config.generator.num_classes = 2
    config.update(tokenizer_weights=str(path), initial_weights=str(path), image_every=None, eval_every=None)
    config.update(fields)
    return config


def test_a_run_starts_from_the_weights_and_says_so_in_its_file(weights, tmp_path):
    first = tmp_path / "first.safetensors"
    pretrained.save(first, weights)
    training.train_and_evaluate(run_config(first, total_steps=0), str(tmp_path / "run"))
    found = pretrained.load(tmp_path / "run" / "model.safetensors")
    expected = weights.params["generator"]
    rows = np.stack([expected["class_embedding"][1], expected["null_embedding"][0]])
    jax.tree.map(np.testing.assert_array_equal, found.params["generator"], {**expected, "class_embedding": rows})
    assert "It started from:\nof the first run" in found.notes and found.class_names == ("coffee", "flower")


@pytest.fixture(name="begun")
def _begun(weights, tmp_path):
    """Returns a function that trains to a step in a workdir, the file it starts from, and a workdir with one step."""
    first, initial = tmp_path / "first.safetensors", tmp_path / "initial.safetensors"
    pretrained.save(first, weights)
    pretrained.save(initial, dataclasses.replace(weights, notes="of the initial run"))

    def run(workdir, steps):
        config = run_config(first, initial_weights=str(initial), total_steps=steps, checkpoint_every=1)
        return training.train_and_evaluate(config, str(workdir))

    run(tmp_path / "run", 1)
    return run, initial, tmp_path / "run"


def test_a_resumed_run_does_not_open_the_weights_that_it_started_from_and_a_fresh_one_does(begun, tmp_path):
    run, initial, workdir = begun
    initial.unlink()
    assert int(run(workdir, 2).step) == 2
    notes = pretrained.load(workdir / "model.safetensors").notes
    assert notes.startswith("generator after 2 steps;")
    assert notes.endswith("}\nIt started from:\nof the initial run\nof the first run")
    with pytest.raises(FileNotFoundError, match="no weights file at .*initial.safetensors"):
        run(tmp_path / "fresh", 1)
    assert not (tmp_path / "fresh").exists()


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_without_the_weights_that_it_started_from(begun, tmp_path):
    run, initial, workdir = begun
    expected = run(shutil.copytree(workdir, tmp_path / "with"), 2)
    initial.unlink()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run(workdir, 2)), jax.device_get(expected))
