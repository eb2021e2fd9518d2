"""Evaluation during training: opened at the start, split among processes, fillers left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import photos_generator, photos_tokenizer
from eqjax import Tokenizer, pretrained, sharding
from eqjax.training import generator, tokenizer
from eqjax.training.state import TrainState
from eqjax.training.tokenizer import train as tokenizer_train
from tests.random_params import random_params
from tests.training import sample_metrics_run


@pytest.fixture(name="weights", scope="module")
def _weights(tmp_path_factory):
    return sample_metrics_run.write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.safetensors")


@pytest.fixture(name="config")
def _config(weights):
    config = photos_generator.get_config("tiny")
    config.tokenizer_weights = str(weights)
    return config


def trainers(config):
    """The trainers of a generator's configuration and of a tokenizer's, without their workdirs."""
    yield config, lambda fields: generator.GeneratorTrainer(fields, "")
    yield photos_tokenizer.get_config("tiny"), lambda fields: tokenizer.TokenizerTrainer(fields, "")


def test_held_out_data_that_do_not_exist_are_refused_when_they_are_opened(config):
    for fields, make_trainer in trainers(config):
        fields.eval_images = 0
        with pytest.raises(ValueError, match="num_images=0 must be an integer ≥ 1"):
            make_trainer(fields).evaluation_batches(sharding.make_mesh())
        fields.eval_images, fields.data.holdout_fraction = 8, 0.0
        with pytest.raises(ValueError, match="holdout_fraction=0 leaves nothing to evaluate on"):
            make_trainer(fields).evaluation_batches(sharding.make_mesh())


def test_every_process_reads_its_shard(config, monkeypatch):
    """The mesh determines the shard, as for the training batches."""
    mesh, asked = sharding.make_mesh(), {}
    whole = [make(fields).evaluation_batches(mesh)[0]["label"] for fields, make in trainers(config)]
    monkeypatch.setattr(sharding, "batch_shard", lambda _: (1, 2))
    for (fields, make), labels in zip(trainers(config), whole, strict=True):
        np.testing.assert_array_equal(make(fields).evaluation_batches(mesh)[0]["label"], labels[1::2])

    def make_iterator(_, **options):
        asked.update(options)
        raise StopIteration

    module = Tokenizer()
    monkeypatch.setattr(tokenizer_train, "make_iterator", make_iterator)
    with pytest.raises(StopIteration):
        tokenizer_train.measure_latent_scale(module, {}, photos_tokenizer.get_config("tiny"), mesh)
    assert (asked["process_index"], asked["process_count"]) == (1, 2)


def test_fillers_do_not_count(config, monkeypatch):
    rows = np.random.default_rng(0).standard_normal((8, 4, 8)).astype(np.float32)
    batches = [{"latents": rows, "label": np.arange(8, dtype=np.int32), "mask": np.arange(8) < 5}]
    trainer = generator.GeneratorTrainer(config, "")
    monkeypatch.setattr(trainer, "evaluation_batches", lambda _: batches)
    params = random_params(pretrained.build_module("generator", dict(config.generator)))
    state = jax.device_put(
        TrainState(jnp.int32(1), params, params, ()), sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    )
    before = trainer.evaluate(state)
    batches[0]["latents"] = np.where(batches[0]["mask"][:, None, None], rows, 3 - rows)
    assert trainer.evaluate(state)["eval_loss"] == before["eval_loss"] > 0
    batches[0]["mask"] = np.arange(8) < 6
    assert trainer.evaluate(state)["eval_loss"] != before["eval_loss"]
