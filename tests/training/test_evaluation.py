"""Evaluation during training: opened at the start, shared among processes, fillers left out."""

import jax
import numpy as np
import pytest

from configs import photos_generator, photos_tokenizer
from eqjax import sharding
from eqjax.training import generator, loop, tokenizer
from eqjax.training.state import TrainState
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


def test_what_is_wrong_is_said_at_the_start(config, tmp_path):
    mesh, wrong = sharding.make_mesh(), []
    for module, fields in ((generator, config), (tokenizer, photos_tokenizer.get_config("tiny"))):
        fields.eval_images = 0
        wrong.append((module, fields, "num_images=0 must be at least 1"))
        fields = fields.copy_and_resolve_references()
        fields.eval_images, fields.data.holdout_fraction = 8, 0.0
        wrong.append((module, fields, "holdout_fraction=0 leaves nothing to evaluate on"))
    for module, fields, message in wrong:
        with pytest.raises(ValueError, match=message):
            module.make_stage(fields).open_evaluation(mesh)


def test_every_process_reads_its_share(monkeypatch):
    """As the training batches, whose share the mesh decides."""
    monkeypatch.setattr(sharding, "batch_shard", lambda mesh: (1, 2))
    config, asked = photos_tokenizer.get_config("tiny"), {}
    (first, *_), mesh = loop.held_out(config, sharding.make_mesh()), sharding.make_mesh()
    assert len(first["image"]) == config.batch_size // 2
    batches = tokenizer.make_stage(config).open_evaluation(mesh)
    np.testing.assert_array_equal(batches[0]["image"], first["image"])

    def make_iterator(data, **options):
        asked.update(options)
        raise StopIteration

    monkeypatch.setattr(tokenizer, "make_iterator", make_iterator)
    with pytest.raises(StopIteration):
        tokenizer.measure_latent_scale(None, None, config, mesh)
    assert (asked["process_index"], asked["process_count"]) == (1, 2)


def test_fillers_do_not_count(config, monkeypatch):
    rows = np.random.default_rng(0).standard_normal((8, 4, 8)).astype(np.float32)
    batches = [{"latents": rows, "label": np.arange(8, dtype=np.int32), "mask": np.arange(8) < 5}]
    monkeypatch.setattr(loop, "held_out", lambda config, mesh: batches)
    monkeypatch.setattr(generator, "LatentEncoder", lambda *_: lambda _, batch, key: (batch["latents"], batch["label"]))
    stage = generator.make_stage(config)
    params = random_params(generator.pretrained.build_module("generator", dict(config.generator)))
    state = jax.device_put(
        TrainState(np.int32(1), params, params, ()), sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    )
    before = stage.evaluate(state)
    batches[0]["latents"] = np.where(batches[0]["mask"][:, None, None], rows, 3 - rows)
    assert stage.evaluate(state)["eval_loss"] == before["eval_loss"] > 0
    batches[0]["mask"] = np.arange(8) < 6
    assert stage.evaluate(state)["eval_loss"] != before["eval_loss"]
