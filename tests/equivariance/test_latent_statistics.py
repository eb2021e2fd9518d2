"""Statistics of latents, of distributions whose values are known."""

import numpy as np
import pytest

from eqjax.equivariance import gaussian_flow_loss, next_column_error, twonn_dimension

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("dimension", [1, 3, 6])
def test_dimension_of_curved_surfaces(dimension):
    points = RANDOM.uniform(-1, 1, (2500, dimension))
    surface = np.concatenate([points, np.square(points), np.sin(points)], axis=1)
    assert twonn_dimension(surface) == pytest.approx(dimension, rel=0.12)


def test_repeated_points_do_not_count():
    points = RANDOM.normal(size=(500, 3))
    assert twonn_dimension(np.concatenate([points, points])) == pytest.approx(twonn_dimension(points))


def test_unexplained_variance_of_known_processes():
    noise = RANDOM.normal(size=(400, 9, 4))
    assert next_column_error(noise) == pytest.approx(1, abs=0.05)
    walk = noise.copy()
    for k in range(1, 9):  # A stationary process: correlation 0.8 from column to column.
        walk[:, k] = 0.8 * walk[:, k - 1] + 0.6 * noise[:, k]
    assert next_column_error(walk, window=2) == pytest.approx(0.36, abs=0.03)


def test_the_loss_of_a_gaussian_is_that_of_its_best_velocity():
    """Columns with correlated channels; the best velocity at every time is linear, found by least squares."""
    mixing = np.array([[2.0, 0, 0], [1.0, 0.5, 0], [0, 0.3, 0.1]])
    latents = RANDOM.normal(size=(5000, 8, 3)) @ mixing.T
    data, noise = latents.reshape(-1, 3), RANDOM.normal(size=(40000, 3))
    losses = []
    for time in (np.arange(40) + 0.5) / 40:
        state, velocity = time * noise + (1 - time) * data, noise - data
        best = np.linalg.lstsq(state, velocity, rcond=None)[0]
        losses.append(np.square(velocity - state @ best).mean())
    assert gaussian_flow_loss(latents + 3) == pytest.approx(np.mean(losses), rel=0.02)  # The mean is known.


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="hold 1 columns; a covariance needs 2 or more"):
        gaussian_flow_loss(np.zeros((1, 1, 2)))
    with pytest.raises(ValueError, match="latents="):
        gaussian_flow_loss(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="at least 10 different points; there are 1"):
        twonn_dimension(np.zeros((50, 2)))
    with pytest.raises(TypeError, match="points="):
        twonn_dimension(np.zeros((50, 2), int))
    with pytest.raises(ValueError, match="4 images of 3 columns; .* window=3 needs at least 2 images of 4 columns"):
        next_column_error(np.zeros((4, 3, 2)))
    with pytest.raises(ValueError, match="1 images"):
        next_column_error(np.zeros((1, 8, 2)))
    with pytest.raises(ValueError, match="ridge=0 must be"):
        next_column_error(np.zeros((4, 8, 2)), ridge=0)
    with pytest.raises(ValueError, match="latents="):
        next_column_error(np.zeros((0, 8, 2)))
