"""Utilization: FLOPs of a run's steps over the peak of its devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import sharding
from eqjax.perf import chips
from eqjax.training.utilization import Utilization
from tests.training import toy_trainer

STATE = np.ones((3, 5), np.float32)


class ProductTrainer(toy_trainer.ToyTrainer):
    """A step is the product of a batch [B, 3] and the state [3, 5]."""

    def plain_step(self, frozen, state, batch, key):
        del frozen, key
        return state, {"sum": jnp.sum(batch["x"] @ state)}


@pytest.fixture(name="utilization")
def _utilization():
    return Utilization(ProductTrainer(toy_trainer.config()), sharding.make_mesh(jax.devices()[:1]))


def test_steps_are_related_to_the_peak_of_the_devices(utilization, monkeypatch):
    monkeypatch.setattr(chips, "peak_flops", lambda _: 1000.0)
    small, large = ({"x": np.ones((rows, 3), np.float32)} for rows in (2, 4))
    assert utilization.take(1.0) is None and not utilization.has_seen(small)
    utilization.add(STATE, small)
    assert utilization.has_seen(small) and not utilization.has_seen({**small, "y": small["x"]})
    assert utilization.take(10.0) == pytest.approx(10 * 2 * 2 * 3 * 5 / 1000)
    assert utilization.take(10.0) is None  # No step since.
    utilization.add(STATE, small)
    utilization.add(STATE, {**large, "y": small["x"]})  # Another program.
    assert utilization.take(10.0) == pytest.approx(10 * (2 + 4) / 2 * 2 * 3 * 5 / 1000)


def test_it_is_unknown_without_a_peak(utilization, monkeypatch):
    monkeypatch.setattr(chips, "peak_flops", lambda _: None)
    utilization.add(STATE, {"x": np.ones((2, 3), np.float32)})
    assert utilization.take(10.0) is None
