"""Columns as tasks: losses, gradients and transfer, on cases whose answer is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import Generator
from eqjax.evaluation import tasks
from eqjax.generator import mean_loss
from tests.evaluation import tiny_models

COLUMNS = 4


@pytest.fixture(scope="module")
def generator():
    return Generator(
        width=16,
        depth=1,
        num_heads=2,
        latent_dim=3,
        num_classes=2,
        num_cond_tokens=2,
        window_size=2,
        max_rope_shift=2,
        flow_width=16,
        flow_depth=1,
        dropout_rate=0.0,
        label_dropout_rate=0.0,
    )


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(6, COLUMNS, 3)).astype("f4"), rng.integers(0, 2, 6)) for _ in range(3)]


def test_the_loss_is_the_mean_of_the_columns(generator, batches):
    params, (latents, labels) = tiny_models.random_params(generator, 0), batches[0]
    rng = np.random.default_rng(1)
    given = dict(time=rng.uniform(size=96).astype("f4"), noise=rng.normal(size=(96, 3)).astype("f4"), rope_shift=1)

    @jax.jit
    def both(latents):
        return [
            generator.apply({"params": params}, latents, labels, deterministic=True, method=method, **given)
            for method in ("loss", "column_losses")
        ]

    loss, losses = both(latents)
    assert losses.shape == (COLUMNS,)
    assert float(loss) == pytest.approx(float(losses.mean()), rel=1e-6)
    # Column 3 is seen by no other one's loss.
    changed = both(latents + np.array([0, 0, 0, 1.0], "f4")[:, None])[1]
    np.testing.assert_allclose(changed[:3], losses[:3], rtol=1e-6)
    assert abs(changed[3] - losses[3]) > 1e-3


def test_the_mean_over_some_columns():
    losses = np.array([1.0, 2.0, 4.0, 7.0], "f4")
    assert mean_loss(losses) == 3.5 and mean_loss(losses, (3, 1)) == 4.5 and mean_loss(losses, [0]) == 1


def test_losses_and_cosines_of_batches(generator, batches):
    params = tiny_models.random_params(generator, 0)
    losses = tasks.column_losses(generator, params, batches, jax.random.key(0))
    assert losses.mean.shape == losses.stderr.shape == (COLUMNS,) and (losses.stderr > 0).all()
    conflict, ceiling = tasks.gradient_cosines(generator, params, batches, jax.random.key(0))
    np.testing.assert_allclose(np.diag(conflict.mean), 1, rtol=1e-5)
    np.testing.assert_allclose(conflict.mean, conflict.mean.T, atol=1e-6)
    assert ceiling.mean.shape == (COLUMNS, COLUMNS) and (np.diag(ceiling.mean) < 0.999).all()
    # One pair by hand.
    key = jax.random.fold_in(jax.random.key(0), 0)

    @jax.jit
    def gradient(k):
        grads = jax.grad(lambda p: tasks._losses(generator, p, *batches[0], key)[k])(params)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])

    a, b = gradient(1), gradient(3)
    first, _ = tasks.gradient_cosines(generator, params, [batches[0]] * 2, jax.random.key(0))
    by_hand = a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)
    assert tasks._directions(generator, params, *batches[0], key)[1] @ (b / jnp.linalg.norm(b)) == pytest.approx(
        float(by_hand), abs=1e-5
    )
    assert first.mean.shape == (COLUMNS, COLUMNS)
    with pytest.raises(ValueError, match="at least 2 of them, not 1"):
        tasks.gradient_cosines(generator, params, batches[:1], jax.random.key(0))


def test_noise_corrected_cosines_are_free_of_the_noise_of_batches():
    """Two tasks at 60°, their gradients seen through noise several times as long."""
    rng, size = np.random.default_rng(0), 4000
    true = np.zeros((3, size))
    true[0, 0] = true[1, 1] = true[2, 2] = 3.0
    true[1] = 0.5 * true[0] + np.sqrt(0.75) * true[1]
    rows = true + rng.normal(size=(400, 3, size)) * np.array([0.1, 0.15, 0.2])[:, None]
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    between = np.mean([a @ b.T for a, b in itertools.pairwise(rows)], axis=0)
    assert between[0, 1] < 0.1
    np.testing.assert_allclose(tasks.noise_corrected_cosines(between), [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]], atol=0.03)
    assert np.isnan(tasks.noise_corrected_cosines(np.array([[-0.1, 0], [0, 0.4]]))[0]).all()


def test_mean_of_the_off_diagonal():
    assert tasks.off_diagonal_mean(np.array([[1.0, 0.2], [0.4, 1.0]])) == pytest.approx(0.3)


@pytest.mark.slow
def test_only_the_columns_asked_for_are_trained(generator):
    """Columns 0 and 1 hold one vector, 2 and 3 its negative: who trains on the left alone is wrong on the right."""
    side = np.array([1.0, 1.0, -1.0, -1.0], "f4")[:, None]
    latents = np.broadcast_to(2 * side * np.ones(3, "f4"), (8, COLUMNS, 3))
    labels = np.zeros(8, int)
    key, batches = jax.random.key(0), [(latents, labels)]
    params = tasks.train(generator, latents, labels, steps=60, batch_size=8, learning_rate=1e-2, columns=[0, 1])
    losses = tasks.column_losses(generator, params, batches, key).mean
    assert losses[2:].mean() > 3 * losses[:2].mean(), losses
    fresh = tasks.column_losses(generator, tiny_models.random_params(generator, 0), batches, key).mean
    assert losses[:2].mean() < 0.5 * fresh[:2].mean(), (losses, fresh)


@pytest.mark.parametrize("columns", [[], [4], [-1]])
def test_columns_that_do_not_exist_are_rejected(generator, columns):
    with pytest.raises(ValueError, match=r"must be one or more indices from 0 … 3"):
        tasks.train(generator, np.zeros((2, COLUMNS, 3)), np.zeros(2, int), steps=1, columns=columns)
