"""A generator's samples beside reconstructions, in front of the discriminator of stage 2."""

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
from eqjax.training.tokenizer.draws import ActiveTerms, RandomDraws
from eqjax.training.tokenizer.sampled_latents import draw_sampled_latents
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
    frozen["sampled"] = draw_sampled_latents(config, module)
    return step, frozen, step.init_state(jax.random.key(0), config.data.height, config.data.width)


def test_samples_are_unscaled_latents_of_all_classes_and_the_same_every_time(folder, made):
    step, frozen, _ = made
    config = make_config(folder)
    columns = config.data.width // step.objective.tokenizer.column_width
    assert frozen["sampled"].shape == (70, columns, config.tokenizer.embed_dim)
    again: Any = draw_sampled_latents(config, step.objective.tokenizer)
    assert np.array_equal(again, frozen["sampled"])
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
def test_what_does_not_fit_is_refused_before_anything_is_sampled(folder, made, change, message):
    config = make_config(folder)
    change(config)
    with pytest.raises(ValueError, match=message):
        draw_sampled_latents(config, made[0].objective.tokenizer)


@pytest.mark.slow
def test_a_run_with_samples_resumes_bit_for_bit(folder, tmp_path):
    def run(workdir, steps):
        config = make_config(folder)
        config.update(total_steps=steps, checkpoint_every=2, eval_every=None, image_every=None, log_every=1)
        return tokenizer.train_and_evaluate(config, str(workdir))

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "cut", 2)
    resumed = run(tmp_path / "cut", 4)
    assert jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), whole, resumed))
