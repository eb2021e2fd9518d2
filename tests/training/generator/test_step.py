"""The generator's training step: which columns it trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqjax.generator import Generator
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
