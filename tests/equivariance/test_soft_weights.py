"""Soft weights: which symmetries keep theirs, and when they are set."""

import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.equivariance import SoftWeights


def test_symmetries_that_resist_lose_weight_and_the_best_keeps_its_own():
    weights = SoftWeights.init(3)
    for index, residual in ((0, 0.3), (1, 0.6), (2, 0.15)):
        weights = weights.update(index, residual)
    for power in (1, 2):
        np.testing.assert_allclose(weights.adjust(power=power).weights, np.array([0.5, 0.25, 1]) ** power, rtol=1e-6)


def test_weights_are_set_once_and_not_before_every_symmetry_has_a_reading():
    weights = SoftWeights.init(2).update(0, 0.1)
    assert not weights.adjust().adjusted
    weights = weights.update(1, 0.2)
    assert not weights.adjust(is_due=False).adjusted
    first = weights.adjust()
    again = first.update(0, 100.0).adjust()
    assert first.adjusted and (again.weights == first.weights).all() and again.residuals[0] > 1


def test_residuals_are_means_of_the_readings_of_each_symmetry():
    weights = SoftWeights.init(2)
    for residual in (1.0, 2.0, 6.0):
        weights = weights.update(jnp.int32(1), residual)
    assert weights.residuals.tolist() == [0, 3] and weights.counts.tolist() == [0, 3]
    for _ in range(200):  # Old readings fade.
        weights = weights.update(1, 8.0)
    assert float(weights.residuals[1]) == pytest.approx(8, abs=1e-2)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="count=0 must be"):
        SoftWeights.init(0)
    with pytest.raises(ValueError, match="power=-1 must be"):
        SoftWeights.init(1).adjust(power=-1)
