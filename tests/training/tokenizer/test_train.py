"""Stages 1 and 2 of tokenizer training, tiny and adversarial: what is trained, logged, resumed, refused."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import imagenet_tokenizer
from eqjax import convert, pretrained, sharding
from eqjax.tokenizer import ENCODER_PARTS
from eqjax.training import loop, tokenizer
from eqjax.training.config import check_config
from eqjax.training.tokenizer.build import make_objective
from eqjax.training.tokenizer.draws import ActiveTerms, RandomDraws
from eqjax.training.tokenizer.stage1 import load_stage1
from tests import frozen_network_files, published_checkpoints
from tests.random_params import random_params


def make_config(variant="tiny", **overrides):
    config = imagenet_tokenizer.get_config(variant)
    config.data.classes = ("brick", "coffee")
    config.update(log_every=1, checkpoint_every=30, image_every=None)
    config.update(overrides)
    return config


def metrics(workdir):
    """{name: {step: value}}."""
    out = {}
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        for name, value in line.items():
            out.setdefault(name, {})[line["step"]] = value
    return out


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b))


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Stage 1 (its discriminator on from step 20 of 40) and stage 2 after it: folders and final states."""
    root = tmp_path_factory.mktemp("stages")
    first = tokenizer.train_and_evaluate(make_config(), str(root / "stage1"))
    config = make_config("tiny,stage2", total_steps=25, stage1_weights=str(root / "stage1"), image_every=25)
    return root, first, tokenizer.train_and_evaluate(config, str(root / "stage2"))


@pytest.mark.slow
def test_discriminator_starts_and_does_not_ruin_reconstructions(stages):
    log = metrics(stages[0] / "stage1")
    # Steps are counted from 1 in logs; 20 updates are done before step 21.
    assert all((log["disc_active"][s], log["adaptive_weight"][s] > 0) == (float(s > 20), s > 20) for s in range(1, 41))
    assert log["disc_loss"][20] == log["disc_grad_norm"][20] == 0 < log["disc_grad_norm"][21]
    for name in ("nll_grad_norm_last_layer", "gen_grad_norm_last_layer", "logits_real", "logits_fake", "l1", "kl_loss"):
        assert np.isfinite(log[name][40]) and log[name][40] != 0, name
    before, after = (np.mean([log["psnr"][s] for s in steps]) for steps in (range(16, 21), range(36, 41)))
    assert after > before > log["psnr"][1] + 1


@pytest.mark.slow
def test_total_is_the_sum_of_its_terms(stages):
    log, config = metrics(stages[0] / "stage1"), make_config()
    for step in (10, 40):
        terms = {name: values[step] for name, values in log.items() if step in values}
        total = terms["nll_loss"] + config.objective.kl_weight * terms["kl_loss"]
        total += terms["adaptive_weight"] * terms["gen_loss"]
        assert terms["loss"] == pytest.approx(total, rel=1e-5)
        assert terms["nll_loss"] == pytest.approx(terms["l1"] * 32 * 32 * 3, rel=1e-5)


@pytest.mark.slow
def test_resumed_with_the_discriminator_on_equals_uninterrupted(stages, tmp_path):
    tokenizer.train_and_evaluate(make_config(total_steps=30), str(tmp_path))
    resumed = tokenizer.train_and_evaluate(make_config(), str(tmp_path))
    assert min(step for step in metrics(tmp_path)["loss"] if step > 30) == 31
    assert same(resumed, stages[1])


@pytest.mark.slow
def test_stage_2_trains_the_decoder_alone(stages):
    root, first, second = stages
    for name in ("encoder", "quant"):
        assert same(second.params[name], first.ema_params[name])
        assert same(second.ema_params[name], first.ema_params[name])
    for name in ("decoder", "post_quant"):
        assert not same(second.params[name], first.ema_params[name])
        assert not same(second.ema_params[name], second.params[name])
    moments = jax.tree_util.tree_flatten_with_path(second.opt_state)[0]
    assert not [path for path, _ in moments if "encoder" in jax.tree_util.keystr(path)]
    assert (root / "stage2" / "images" / "reconstructions_0000025.png").exists()
    exported = pretrained.load(root / "stage2" / "model.safetensors")
    assert same(exported.params["tokenizer"], second.ema_params)
    assert exported.latent_scale == pretrained.load(root / "stage1" / "model.safetensors").latent_scale


def flops_of(function, *shapes):
    cost: Any = jax.jit(function).lower(*shapes).cost_analysis()
    return cost["flops"]


def test_stage_2_does_not_differentiate_the_encoder():
    config = make_config("tiny,stage2", stage1_weights=None, freeze_encoder=False)
    config.objective.adversarial_weight = 0.0
    module = pretrained.build_module("tokenizer", dict(config.tokenizer))
    objective, _ = make_objective(config, module)
    images = jnp.zeros((2, 32, 32, 3))
    draws = RandomDraws.from_key(jax.random.key(0), module, images.shape)

    def flops(fixed_names):
        def run(params):
            fixed = {name: params[name] for name in fixed_names if name in params}
            trainable = {name: part for name, part in params.items() if name not in fixed}
            return objective.tokenizer_grads(trainable, fixed, None, {}, images, draws, ActiveTerms(False, False))[0]

        return flops_of(run, pretrained.abstract_params(module))

    def encode(params, images):
        posterior: Any = module.apply({"params": params}, images, method="encode")
        return posterior.mean

    shape = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    forward = flops_of(encode, pretrained.abstract_params(module), shape)
    # Backward costs about two forward passes; the first layer, here a large part, needs one of them alone.
    assert flops(()) - flops(ENCODER_PARTS) > 1.3 * forward


@pytest.mark.slow
def test_the_step_does_not_depend_on_the_devices(tmp_path, monkeypatch):
    """One step on 1 and on 4 devices: group statistics, augmentation, posterior, adaptive weight, power iterations."""
    frozen_network_files.narrow(monkeypatch)
    monkeypatch.setenv("EQJAX_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 500)
    frozen_network_files.write("dino", tmp_path)
    config = make_config(batch_size=8)
    config.objective.update(adversarial_start=0, adversarial_weight=0.5)
    config.discriminator.kind = "dino"
    trainer = tokenizer.TokenizerTrainer(config, "")
    init = jax.jit(trainer.init_state)(jax.random.key(0))
    batch = {"image": np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)}

    def run(count, shape):
        mesh = sharding.make_mesh(jax.devices()[:count], shape)
        state = jax.device_put(jax.device_get(init), sharding.state_shardings(init, mesh, trainer.rules))
        step = jax.tree_util.Partial(trainer.step, trainer.frozen)
        step = loop.compile_step(step, trainer.rules, mesh, state, jax.random.key(1))
        state, terms = step(state, sharding.shard_batch(batch, mesh))
        largest = max(jax.tree.leaves(state), key=lambda leaf: leaf.size)
        assert largest.size / largest.addressable_shards[0].data.size == (4 if "fsdp" in shape else 1)
        # First moments are gradients, up to a factor; a step of Adam would show their signs alone.
        moments = [optax.tree.get(tree, "mu") for tree in (state.opt_state, state.discriminator["opt_state"])]
        return jax.device_get((moments, state.discriminator["spectral"], terms))

    one, vectors, terms = run(1, "data:1")
    before = jax.device_get(init.discriminator["spectral"])
    assert np.abs(vectors["heads"]["conv"]["u"] - before["heads"]["conv"]["u"]).max() > 1e-3
    for shape in ("data:4", "fsdp:4"):
        four, more_vectors, more = run(4, shape)
        for name in terms:
            assert terms[name] == pytest.approx(more[name], rel=1e-4, abs=1e-6), (shape, name)
        for a, b in zip(jax.tree.leaves(vectors), jax.tree.leaves(more_vectors), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        for few, many in zip(one, four, strict=True):
            scale = max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(few))
            for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(few), jax.tree.leaves(many), strict=True):
                # Biases before a norm have a true gradient of 0: rounding, beside the largest.
                assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(a) + 1e-5 * scale, (shape, path)


@pytest.mark.slow
def test_microbatches_add_up():
    """Without noise and discriminator the gradient of two halves is that of the whole batch."""
    config = make_config(batch_size=8)
    config.tokenizer.posterior_std = 0.0
    config.objective.adversarial_weight = 0.0
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    norms = []
    for parts in (1, 2):
        config.accumulation_steps = parts
        trainer = tokenizer.TokenizerTrainer(config, "")
        state = jax.jit(trainer.init_state)(jax.random.key(0))
        _, terms = jax.jit(trainer.step)(trainer.frozen, state, {"image": images}, jax.random.key(1))
        norms.append([float(terms[name]) for name in ("grad_norm", "loss", "kl_loss")])
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)


@pytest.fixture(name="stage1")
def _stage1(tmp_path):
    """A weights file of stage 1, with random weights."""
    path, module = tmp_path / "stage1.safetensors", pretrained.build_module("tokenizer", dict(make_config().tokenizer))
    pretrained.save(path, pretrained.Weights({"tokenizer": module}, {"tokenizer": random_params(module)}, 1.0))
    return path


def test_stage_2_needs_a_stage_1_of_the_same_architecture(stage1):
    with pytest.raises(ValueError, match=r"freeze_encoder=True.*set stage1_weights"):
        tokenizer.TokenizerTrainer(make_config("tiny,stage2"), "")
    config = make_config("tiny,stage2", stage1_weights=str(stage1))
    config.tokenizer.update(channels=4)
    with pytest.raises(ValueError, match=r"(?s)not the one to be trained.*channels: stage 1 8, this run 4"):
        tokenizer.TokenizerTrainer(config, "")


def test_images_that_are_not_made_of_whole_columns_are_refused_before_anything_is_written(tmp_path):
    config = make_config()
    config.data.width = 30
    with pytest.raises(ValueError, match="data.height × data.width is 32 × 30: image width 30 .* column width"):
        tokenizer.train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_with_a_checkpoint_does_not_open_stage_1(tmp_path):
    config = make_config("tiny,stage2", stage1_weights=str(tmp_path / "gone.safetensors"))
    with pytest.raises(FileNotFoundError, match="no weights file at .*gone.safetensors"):
        tokenizer.TokenizerTrainer(config, str(tmp_path))
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert tokenizer.TokenizerTrainer(config, str(tmp_path)).inherited == {}


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("discriminator.kind", "oracle", ValueError, "discriminator.kind='oracle' must be one of"),
        ("discriminator.num_layers", 5, ValueError, "num_layers=5 needs images of at least 64 × 64"),
        ("objective.discriminator_loss", "wasserstein", ValueError, "'wasserstein' must be one of .*hinge"),
        ("objective.semantic_weight", 5.0, ValueError, "needs a tokenizer with a semantic head"),
        ("objective.perceptual_weight", 1.0, FileNotFoundError, "(?s)vgg16.*fetch.weights"),
    ],
)
def test_an_objective_that_cannot_be_built_is_refused(tmp_path, monkeypatch, field, value, error, message):
    monkeypatch.setenv("EQJAX_WEIGHTS", str(tmp_path))
    config = make_config()
    config.update_from_flattened_dict({field: value})

    def build():
        trainer = tokenizer.TokenizerTrainer(config, "")
        jax.eval_shape(trainer.init_state, jax.random.key(0))

    with pytest.raises(error, match=message):
        build()


def test_stage_2_takes_the_converted_published_tokenizer(monkeypatch):
    shapes = published_checkpoints.read_json("manifests.json.gz")["tokenizer"]
    structs = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    fields = convert.infer_tokenizer_config(structs)
    converted = pretrained.build_module("tokenizer", fields)
    weights = pretrained.Weights({"tokenizer": converted}, {}, 1.0)
    monkeypatch.setattr(pretrained, "load", lambda _: weights)
    config = imagenet_tokenizer.get_config("stage2")
    config.stage1_weights = "photos"  # Not read: see above.
    module = pretrained.build_module("tokenizer", dict(config.tokenizer))
    assert load_stage1(config, module) is weights
    config.tokenizer.semantic = {**dict(config.tokenizer.semantic), "channel_multipliers": (8, 10)}
    with pytest.raises(ValueError, match=r"semantic.widths: stage 1 \(768, 768\), this run \(640, 768\)"):
        load_stage1(config, pretrained.build_module("tokenizer", dict(config.tokenizer)))


def test_the_default_is_the_published_recipe():
    config = imagenet_tokenizer.get_config()
    config.data.root = "the user's"
    check_config(config, "tokenizer")
    terms, both = config.objective, (config.optimizer, config.discriminator_optimizer)
    assert (terms.kl_weight, terms.perceptual_weight, terms.semantic_weight) == (0.01, 1.0, 5.0)
    assert (terms.semantic_start, terms.adversarial_start, terms.adversarial_weight) == (20001, 5001, 0.5)
    assert (config.batch_size, config.discriminator.kind, terms.discriminator_loss) == (96, "dino", "hinge")
    assert all(
        (o.learning_rate, o.b1, o.b2, o.weight_decay, o.grad_clip_norm) == (1.92e-4, 0.5, 0.9, 0, None) for o in both
    )
    assert (both[0].schedule, both[0].warmup_steps, both[1].schedule, both[1].warmup_steps) == (
        "step",
        3000,
        "constant",
        0,
    )
    second = imagenet_tokenizer.get_config("stage2")
    assert second.freeze_encoder and second.objective.semantic_weight == 0
