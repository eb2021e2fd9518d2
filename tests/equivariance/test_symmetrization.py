"""Averages over a group, soft shifts and their distance to true ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqjax.equivariance import (
    Action,
    Codec,
    ColumnGeometry,
    orbit_distance_loss,
    shift_flip_group,
    soft_shift,
    symmetrize,
)

STRIDE, WIDTH = 4, 32


def codec(boundary):
    """Returns a codec with random weights that commutes with nothing."""
    rng = np.random.default_rng(0)
    shapes = (2 * WIDTH * 3, 40), (40, 2 * WIDTH * 3)
    inward, outward = (jnp.asarray(rng.normal(size=shape) / 10, jnp.float32) for shape in shapes)
    return Codec(
        lambda x: jnp.tanh(x.reshape(len(x), -1) @ inward).reshape(len(x), 8, 5),
        lambda z: (z.reshape(len(z), -1) @ outward).reshape(len(z), 2, WIDTH, 3),
        ColumnGeometry(STRIDE, boundary=boundary),
    )


@pytest.fixture(scope="module", name="images")
def _images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 2, WIDTH, 3)), jnp.float32)


def test_the_mean_over_a_whole_group_is_equivariant(images):
    plain = codec("circular")
    averaged = symmetrize(plain, shift_flip_group(WIDTH, STRIDE, flips=True))
    encode, decode = jax.jit(averaged.encode), jax.jit(averaged.decode)
    latents = encode(images)
    np.testing.assert_allclose(encode(jnp.roll(images, 3 * STRIDE, 2)), jnp.roll(latents, 3, 1), atol=1e-5)
    np.testing.assert_allclose(encode(images[:, :, ::-1]), latents[:, ::-1], atol=1e-5)
    decoded = decode(latents)
    np.testing.assert_allclose(decode(jnp.roll(latents, 3, 1)), jnp.roll(decoded, 3 * STRIDE, 2), atol=1e-5)
    error = jnp.linalg.norm(plain.encode(images[:, :, ::-1]) - plain.encode(images)[:, ::-1])
    assert error > 0.3 * jnp.linalg.norm(plain.encode(images))


def test_the_mean_leaves_out_what_is_unknown(images):
    """In crops the elements that push a column out of the image have no part in its mean."""
    plain = codec("crop")
    elements = Action(jnp.array([0.0, STRIDE]), jnp.zeros(2, bool))
    latents = symmetrize(plain, elements).encode(images)
    moved = plain.encode(jnp.concatenate([images[:, :, :STRIDE][:, :, ::-1], images[:, :, :-STRIDE]], axis=2))
    direct = plain.encode(images)
    np.testing.assert_allclose(latents[:, -1], direct[:, -1], atol=1e-5)
    np.testing.assert_allclose(latents[:, :-1], (direct[:, :-1] + moved[:, 1:]) / 2, atol=1e-5)


def test_orbit_distance_is_zero_on_shifts_alone():
    shifts = jnp.eye(8)
    assert orbit_distance_loss(shifts) < 1e-6
    assert orbit_distance_loss(jnp.full((1, 8), 1 / 8)) > 0.5
    between = 0.5 * shifts[:1] + 0.5 * shifts[1:2]
    assert orbit_distance_loss(between) > 0.1
    with pytest.raises(ValueError, match=r"kernels have shape \(0, 8\)"):
        orbit_distance_loss(shifts[:0])


def test_a_soft_shift_by_a_true_one_is_a_shift():
    columns = jax.random.normal(jax.random.key(0), (2, 8, 3))
    kernels = jax.nn.one_hot(jnp.array([3, 5]), 8)
    moved = soft_shift(columns, kernels)
    np.testing.assert_allclose(moved[1], jnp.roll(columns[1], 5, 0), atol=1e-6)
    np.testing.assert_allclose(soft_shift(moved, kernels, back=True), columns, atol=1e-6)


@pytest.mark.slow
def test_minimizing_the_distance_gives_a_canonicalizer():
    """An equivariant network learns to predict true shifts, so that undoing them makes any function invariant."""
    columns = jax.random.normal(jax.random.key(0), (16, 8, 3))
    start = {"kernel": jax.random.normal(jax.random.key(1), (3, 3)), "scale": jnp.ones(())}

    def kernels(params, x):  # A circular convolution, so it commutes with shifts.
        score = sum(jnp.roll(jnp.tanh(x), k - 1, 1) @ params["kernel"][k] for k in range(3))
        return jax.nn.softmax(params["scale"] * score, axis=1)

    optimizer = optax.adam(0.1)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            loss, gradient = jax.value_and_grad(lambda p: orbit_distance_loss(kernels(p, columns)))(params)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, optimizer.init(params)), length=500)

    (params, _), losses = train(start)
    assert losses[-1] < 0.01 < losses[0]
    spectrum = jnp.abs(jnp.fft.fft(kernels(params, columns), axis=1))
    assert jnp.mean((spectrum > 0.95) & (spectrum < 1.05)) > 0.99

    def canonical(x):
        return soft_shift(x, kernels(params, x), back=True)

    np.testing.assert_allclose(canonical(jnp.roll(columns, 3, 1)), canonical(columns), atol=1e-3)


def test_elements_must_be_stacked(images):
    with pytest.raises(ValueError, match=r"leaves of shape \(\); a mean needs scale=1 and leaves \[G\]"):
        symmetrize(codec("crop"), Action(jnp.zeros(()), jnp.zeros((), bool)))
    with pytest.raises(ValueError, match="images 30 pixels wide do not divide"):
        symmetrize(codec("crop"), shift_flip_group(WIDTH, STRIDE)).encode(images[:, :, :30])
