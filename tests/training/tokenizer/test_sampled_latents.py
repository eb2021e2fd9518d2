"""A generator's samples beside reconstructions, in front of the discriminator of stage 2."""

import dataclasses
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import photos_tokenizer
from eqjax import Generator, pretrained, sample_latents
from eqjax.tokenizer import losses
from eqjax.tokenizer.augment import diff_augment
from eqjax.training import tokenizer
from eqjax.training.config import resolve
from eqjax.training.tokenizer import sampled_latents
from eqjax.training.tokenizer.draws import ActiveTerms, RandomDraws
from eqjax.training.tokenizer.sampled_latents import (
    draw_sampled_latents,
    load_sampled_generator,
)
from eqjax.training.tokenizer.step import TokenizerStep
from tests.random_params import random_params

SCALE = 0.5


def make_config(folder, **sampled):
    config = photos_tokenizer.get_config("tiny,stage2")
    config.stage1_weights = str(folder / "stage1.safetensors")
    config.objective.update(adversarial_weight=0.5, adversarial_start=0, seam_weight=0.0)
    config.discriminator.update(kind="patch", channels=8, num_layers=2, norm="spectral")
    config.sampled.update(generator_weights=str(folder / "generator.safetensors"), num_images=70)
    config.sampled.sampling.update(num_flow_steps=2, guidance_scale=1.0)
    config.sampled.update(sampled)
    return resolve(config)


def go_on():
    """Nobody asks the run to stop."""


def draw(config, module):
    return draw_sampled_latents(config, module, load_sampled_generator(config, module), go_on)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The weights of a tokenizer, and of two generators, one of them of other latents."""
    root = tmp_path_factory.mktemp("weights")
    module: Any = pretrained.build_module("tokenizer", dict(photos_tokenizer.get_config("tiny").tokenizer))
    weights = pretrained.Weights({"tokenizer": module}, {"tokenizer": random_params(module)}, latent_scale=SCALE)
    pretrained.save(root / "stage1.safetensors", weights)
    for name, dim in (("generator", module.embed_dim), ("other", module.embed_dim + 8)):
        generator = Generator(
            width=16, depth=1, num_heads=2, latent_dim=dim, flow_width=8, flow_depth=1, num_classes=3, window_size=2
        )
        weights = pretrained.Weights(
            {"generator": generator}, {"generator": random_params(generator)}, latent_scale=SCALE
        )
        pretrained.save(root / f"{name}.safetensors", weights)
    return root


@pytest.fixture(scope="module")
def made(folder):
    """(step, frozen arrays, state) with samples."""
    config = make_config(folder)
    module: Any = pretrained.build_module("tokenizer", dict(config.tokenizer))
    frozen: dict[str, Any]
    step, frozen = TokenizerStep.from_config(config, module)
    frozen["sampled"] = draw(config, module)
    return step, frozen, step.init_state(jax.random.key(0), config.data.height, config.data.width)


def test_samples_are_unscaled_latents_of_all_classes_and_the_same_every_time(folder, made):
    step, frozen, _ = made
    config = make_config(folder)
    columns = config.data.width // step.objective.tokenizer.column_width
    assert frozen["sampled"].shape == (70, columns, config.tokenizer.embed_dim)
    assert np.array_equal(draw(config, step.objective.tokenizer), frozen["sampled"])
    generator = pretrained.load(folder / "generator.safetensors")
    # The second batch of 64 begins with class 64 % 3.
    expected = sample_latents(
        generator.modules["generator"],
        generator.params["generator"],
        np.arange(64, 128) % 3,
        num_columns=columns,
        key=jax.random.fold_in(jax.random.key(config.seed), 64),
        **config.sampled.sampling,
    )
    assert np.allclose(frozen["sampled"][64:], np.asarray(expected)[:6] / SCALE, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_discriminator_and_the_decoder_see_samples_beside_reconstructions(made):
    step, frozen, state = made
    objective = step.objective
    images = jax.random.uniform(jax.random.key(3), (2, *step_shape(made)), minval=-1.0)
    draws = RandomDraws.from_key(jax.random.key(4), objective.tokenizer, images.shape, frozen["sampled"])
    assert draws.sampled is not None and draws.sampled.shape[0] == 2 and draws.fake_uniforms.shape[0] == 4

    @jax.jit
    def run(params, variables, images, draws):
        def logits(images, uniforms, variables):
            return objective.discriminator({}, variables, diff_augment(images, uniforms), None)

        def adversarial(params):
            first = objective.reconstruct(params, images, draws.posterior_noise).images
            second: Any = objective.tokenizer.apply({"params": params}, draws.sampled, method="decode")
            both = jnp.concatenate([first, second.images])
            fake, _ = logits(both, draws.fake_uniforms, variables)
            return -fake.mean(), both

        trainable, fixed = step.split(params)
        grads, terms, _ = objective.tokenizer_grads(
            trainable, fixed, variables, {}, images, draws, ActiveTerms(False, True)
        )
        (expected, both), to_expected = jax.value_and_grad(adversarial, has_aux=True)(params)
        _, found, _ = objective.discriminator_grads(variables, {}, images, both, draws)
        # The fakes' pass starts from the vectors after that of the images.
        real, spectral = logits(images, draws.real_uniforms, variables)
        after, _ = logits(both, draws.fake_uniforms, {**variables, "spectral": spectral})
        to_nll = jax.grad(reconstruction)(params)
        kernels = last_kernel(to_nll) + terms["adaptive_weight"] * last_kernel(to_expected), last_kernel(grads)
        return (terms["gen_loss"], expected), (found["disc_loss"], losses.hinge_loss(real, after)), kernels

    def reconstruction(params):
        first = objective.reconstruct(params, images, draws.posterior_noise).images
        return jnp.mean(jnp.abs(images - first)) * images[0].size

    def last_kernel(tree):
        return objective.tokenizer.last_layer(tree)["kernel"]

    variables = {name: state.discriminator[name] for name in ("params", "spectral")}
    *pairs, (expected, kernel) = run(state.params, variables, images, draws)
    for found, value in pairs:
        assert float(found) == pytest.approx(float(value), rel=1e-3)
    assert np.allclose(kernel, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def step_shape(made):
    step, frozen, _ = made
    width = frozen["sampled"].shape[1] * step.objective.tokenizer.column_width
    return step.objective.tokenizer.resolution, width, 3


@pytest.mark.slow
def test_the_discriminator_is_updated_on_samples_too(made):
    step, frozen, state = made
    images = jax.random.uniform(jax.random.key(3), (2, *step_shape(made)), minval=-1.0)

    @jax.jit
    def run(pool, state):
        spectral = state.discriminator["spectral"]
        _, terms = step.update_discriminator(
            {"sampled": pool}, state, state.params, spectral, images, jax.random.key(1)
        )
        return terms["logits_real"], terms["logits_fake"]

    (real, fake), (same, other) = run(frozen["sampled"], state), run(frozen["sampled"] + 1, state)
    assert real == same and abs(float(fake - other)) > 1e-3 * abs(float(fake))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(freeze_encoder=False), "set freeze_encoder=True and stage1_weights"),
        (lambda c: c.objective.update(adversarial_weight=0.0), "set objective.adversarial_weight above 0"),
        (lambda c: c.objective.equivariance.update(implicit_probability=0.5), "implicit_probability.*set it to 0"),
        (lambda c: c.sampled.update(generator_weights=c.stage1_weights), "holds no generator"),
        (
            lambda c: c.sampled.update(generator_weights=c.stage1_weights.replace("stage1", "other")),
            "samples columns of .* values, and this tokenizer has",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(folder, tmp_path, change, message):
    config = make_config(folder)
    change(config)
    with pytest.raises(ValueError, match=message):
        tokenizer.train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.fixture(name="start")
def _start(folder, made, tmp_path, monkeypatch):
    """Returns a function that begins or resumes a run with samples of a copied generator, and the calls that drew."""
    calls = []
    shutil.copy(folder / "generator.safetensors", tmp_path)

    def fake(*args):
        calls.append(args)
        return np.full((2, 3), len(calls), np.float32)[None]

    monkeypatch.setattr(sampled_latents, "draw_sampled_latents", fake)

    def start(is_resumed, **options):
        config = make_config(folder, **{"generator_weights": str(tmp_path / "generator.safetensors"), **options})
        module = made[0].objective.tokenizer
        obtain = sampled_latents.obtain_sampled_latents
        return obtain(config, module, str(tmp_path), is_resumed, None, go_on)[0, 0, 0]

    return start, calls


def test_a_resumed_run_takes_the_samples_of_its_start_without_the_generator(start, tmp_path, caplog):
    start, calls = start
    assert start(False) == 1 and len(calls) == 1
    (tmp_path / "generator.safetensors").unlink()
    assert start(True) == 1 and len(calls) == 1 and not caplog.records


def test_a_fresh_run_takes_samples_of_the_same_generator_and_options_alone(start, tmp_path):
    start, calls = start
    assert (start(False), start(False)) == (1, 1)
    assert start(False, num_images=71) == 2
    path = tmp_path / "generator.safetensors"
    weights = pretrained.load(path)
    pretrained.save(path, dataclasses.replace(weights, latent_scale=2 * SCALE))
    assert (start(True, num_images=71), start(False, num_images=71), len(calls)) == (2, 3, 3)


def test_a_resumed_run_of_other_options_draws_anew_and_says_so(start, tmp_path, caplog):
    start, _ = start
    start(False)
    moved = shutil.move(tmp_path / "generator.safetensors", tmp_path / "moved.safetensors")
    assert start(True, generator_weights=str(moved)) == 1 and not caplog.records
    assert start(True, generator_weights=str(moved), num_images=71) == 2
    assert "draws its samples anew" in caplog.text and "num_images: drawn with 70, now 71" in caplog.text


def change_a_value(path):
    with np.load(path) as file:
        arrays = dict(file)
    arrays["latents"][0, 0, 1] += 1
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot be read as sampled latents"),
        (lambda path: path.unlink(), "is missing"),
        (change_a_value, "is damaged, as its checksum differs"),
        (lambda path: np.savez(path, latents=np.ones((1, 2, 3), np.float32)), r"lacks \['about'\]"),
    ],
)
def test_lost_and_damaged_samples_are_drawn_again(start, tmp_path, caplog, damage, message):
    start, _ = start
    start(False)
    damage(tmp_path / sampled_latents.FILE_NAME)
    assert start(True) == 2
    assert re.search(f"draws its samples anew.*{message}", caplog.text)
    assert start(True) == 2  # They are whole again.


def test_a_run_that_is_asked_to_stop_stops_drawing(folder, made):
    config, module = make_config(folder), made[0].objective.tokenizer

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_sampled_latents(config, module, load_sampled_generator(config, module), stop)


@pytest.mark.slow
def test_a_run_with_samples_resumes_bit_for_bit_without_the_files_that_it_started_from(folder, tmp_path, monkeypatch):
    files = shutil.copytree(folder, tmp_path / "files")
    drawn = []
    monkeypatch.setattr(
        sampled_latents, "draw_sampled_latents", lambda *args: drawn.append(1) or draw_sampled_latents(*args)
    )

    def run(workdir, steps):
        config = make_config(files)
        config.update(total_steps=steps, checkpoint_every=2, eval_every=None, image_every=None, log_every=1)
        return tokenizer.train_and_evaluate(config, str(tmp_path / workdir))

    whole = run("whole", 4)
    run("cut", 2)
    assert len(drawn) == 2
    shutil.rmtree(files)
    resumed = run("cut", 4)
    assert len(drawn) == 2
    assert jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), whole, resumed))
    scales = [pretrained.load(tmp_path / name / "model.safetensors").latent_scale for name in ("whole", "cut")]
    assert scales == [SCALE, SCALE]
