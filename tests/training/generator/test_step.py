"""The generator's training step: which columns it trains, what its dropout draws from."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqjax.generator import Generator
from eqjax.training.config import check_config
from eqjax.training.generator import GeneratorStep, default_config


class _FourWeights(Generator):
    """In a generator's place: the loss of each of four columns is the square of its own weight."""

    def setup(self):
        self.weights = self.param("weights", lambda _: jnp.array([1.0, 2.0, 3.0, 4.0]))

    def column_losses(self, *_):
        return jnp.square(self.weights)

    def init_params(self, key):
        return self.init(key, method="column_losses")["params"]


@pytest.mark.parametrize(("columns", "loss", "moved"), [(None, 7.5, [0, 1, 2, 3]), ((3, 0), 8.5, [0, 3])])
def test_the_loss_of_some_columns_is_trained_alone(columns, loss, moved):
    config = default_config()
    config.loss_columns = columns
    step = GeneratorStep.from_config(config, _FourWeights(), lambda _, batch, __: (batch["latents"], batch["label"]))
    step = dataclasses.replace(step, optimizer=optax.sgd(0.1))
    state = step.init_state(jax.random.key(0))
    batch = {"latents": jnp.zeros((2, 4, 8)), "label": jnp.zeros(2, jnp.int32)}
    after, metrics = jax.jit(step)({}, state, batch, jax.random.key(0))
    assert float(metrics["loss"]) == loss and metrics["column_loss"].tolist() == [1, 4, 9, 16]
    assert np.flatnonzero(after.params["weights"] != state.params["weights"]).tolist() == moved


def test_steps_draw_the_noise_of_the_context_and_evaluation_needs_none():
    generator = Generator(
        width=8, depth=1, num_heads=2, latent_dim=4, num_classes=2, num_cond_tokens=1, flow_width=8, flow_depth=1,
        context_noise=0.34375,  # Of few digits in binary, and of no other meaning.
    )  # fmt: skip
    step = GeneratorStep.from_config(
        default_config(), generator, lambda _, batch, __: (batch["latents"], batch["label"])
    )
    params = jax.eval_shape(generator.init_params, jax.random.key(0))
    batch = {"latents": jnp.ones((4, 3, 4)), "label": jnp.zeros(4, jnp.int32)}
    key = jax.random.key(0)
    training, evaluation = (str(jax.make_jaxpr(f)(params, {}, batch, key)) for f in (step.loss, step.per_image_losses))
    assert "0.34375:f32" in training and "0.34375:f32" not in evaluation


@pytest.fixture(name="lowered", scope="module")
def _lowered():
    """Returns a function from a generator of random bits to the loss of a step with dropout, and its program."""
    generator = Generator(
        width=8, depth=1, num_heads=2, latent_dim=4, num_classes=2, num_cond_tokens=1, flow_width=8, flow_depth=1,
        dropout_rate=0.5, label_dropout_rate=0.0,
    )  # fmt: skip
    shapes = jax.eval_shape(generator.init_params, jax.random.key(0))
    # Initial parameters have gates of zero, behind which no loss depends on dropout.
    params = jax.tree.map(lambda leaf: 0.3 * jax.random.normal(jax.random.key(0), leaf.shape), shapes)
    batch = {"latents": jnp.ones((4, 3, 4)), "label": jnp.zeros(4, jnp.int32)}

    @functools.cache
    def lower(rng=None):
        config = default_config()
        if rng is not None:
            config.dropout_rng = rng
        step = GeneratorStep.from_config(config, generator, lambda _, batch, __: (batch["latents"], batch["label"]))
        loss = jax.jit(lambda key: step.loss(params, {}, batch, key)[0])
        return loss, loss.lower(jax.random.key(1)).as_text()

    return lower


def test_dropout_draws_from_threefry_unless_asked_otherwise(lowered):
    _, text = lowered()
    assert "rng_bit_generator" not in text and text == lowered("threefry2x32")[1]


def test_dropout_draws_from_the_generator_of_the_device_where_asked(lowered):
    (loss, text), (plain, _) = lowered("rbg"), lowered()
    assert "rng_bit_generator" in text and "rng_bit_generator" in lowered("unsafe_rbg")[1]
    assert text != lowered("unsafe_rbg")[1]
    first, same, other = (float(loss(jax.random.key(seed))) for seed in (1, 1, 2))
    assert first == same != other  # A function of the step's key still.
    assert first != float(plain(jax.random.key(1)))


def test_an_unknown_generator_of_bits_is_refused():
    config = default_config()
    config.dropout_rng = "philox"
    with pytest.raises(ValueError, match="dropout_rng='philox' must be one of .*threefry2x32.*rbg.*unsafe_rbg"):
        check_config(config, "generator")
