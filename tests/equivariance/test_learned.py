"""The learned canonicalizer: exact whatever its score; gradients and the prior change what it chooses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqjax.equivariance import LearnedCanonicalizer, ScoreNetwork, prior_loss, shift_flip_group, straight_through

WIDTH = 16


@pytest.fixture(scope="module", name="images")
def _images():
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 8, WIDTH, 3)), jnp.float32)


@pytest.fixture(scope="module", name="network")
def _network(images):
    network = ScoreNetwork(4, 2)
    params = jax.jit(network.init)(jax.random.key(0), images)
    return lambda params, x: network.apply(params, x), params


def test_canonical_images_do_not_change_with_the_image_under_the_group(images, network):
    apply, params = network
    canonicalizer = LearnedCanonicalizer(shift_flip_group(WIDTH, 4, flips=True), lambda x: apply(params, x))
    canonical = jax.jit(canonicalizer.canonical_images)
    expected = canonical(images)
    for shift in (0, 4, 12):
        for turned in (images, images[:, :, ::-1]):
            np.testing.assert_array_equal(canonical(jnp.roll(turned, shift, 2)), expected)
    element = canonicalizer.element(images)
    assert set(np.asarray(element.shift).tolist()) <= {0.0, 4.0, 8.0, 12.0}


@pytest.mark.slow
def test_scores_train_through_the_choice(images, network):
    """The task prefers images that are bright on the left; the network learns to bring them there."""
    apply, start = network
    group = shift_flip_group(WIDTH, 4)
    weight = jnp.linspace(1.0, -1.0, WIDTH)
    images = images + 2.0 * jnp.asarray(np.arange(WIDTH) < 4, jnp.float32)[None, None, :, None]
    images = jnp.stack([jnp.roll(x, 4 * k, axis=1) for k, x in enumerate(images)])

    def task(params):
        canonical = LearnedCanonicalizer(group, lambda x: apply(params, x)).canonical_images(images)
        return -jnp.mean(canonical.mean((1, 3)) @ weight)

    optimizer = optax.adam(3e-2)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            loss, gradient = jax.value_and_grad(task)(params)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, optimizer.init(params)), length=60)

    (params, _), losses = train(start)
    chosen = LearnedCanonicalizer(group, lambda x: apply(params, x)).element(images)
    assert chosen.shift.tolist() == [0.0, 4.0, 8.0, 12.0]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_prior_prefers_the_identity(images, network):
    apply, params = network
    group = shift_flip_group(WIDTH, 4)

    def loss(params):
        return prior_loss(LearnedCanonicalizer(group, lambda x: apply(params, x)).logits(images))

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    better = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    assert loss(better) < value
    assert prior_loss(jnp.array([[9.0, 0.0]])) < prior_loss(jnp.array([[0.0, 9.0]]))


def test_straight_through_has_the_value_of_the_choice_and_the_gradient_of_the_softmax():
    logits = jnp.array([[0.3, 1.0, -2.0]])
    assert straight_through(logits, 2.0).tolist() == [[0.0, 1.0, 0.0]]
    for k in range(3):
        ours = jax.grad(lambda a, k=k: straight_through(a, 2.0)[0, k])(logits)
        np.testing.assert_allclose(ours, jax.grad(lambda a, k=k: jax.nn.softmax(2.0 * a)[0, k])(logits), atol=1e-6)


def test_wrong_input_is_named(images):
    with pytest.raises(ValueError, match="step=3 does not divide width=16"):
        shift_flip_group(16, 3)
    with pytest.raises(ValueError, match=r"score returned shape \(4, 8\) for 4 images"):
        LearnedCanonicalizer(shift_flip_group(WIDTH, 4), lambda x: x[:, :, 0, 0]).element(images)
    with pytest.raises(ValueError, match="beta=0 must be"):
        LearnedCanonicalizer(shift_flip_group(WIDTH, 4), len, beta=0)
    with pytest.raises(ValueError, match=r"shape \(0, 8, 16, 3\)"):
        LearnedCanonicalizer(shift_flip_group(WIDTH, 4), lambda x: x[:, 0, 0, 0]).element(images[:0])
