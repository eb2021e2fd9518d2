"""Flip-equivariant layers: exact, with half of the parameters; the autoencoder that is made of them learns."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqjax.equivariance import (
    FlipAutoencoder,
    FlipConv,
    FlipConvTranspose,
    FlipDense,
    flip_activation,
    flip_channels,
)


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


LAYERS = {
    "convolution": (FlipConv(6), nn.Conv(6, (3, 3)), (2, 4, 8, 4)),
    "columns": (FlipConv(6, (3,)), nn.Conv(6, (3,)), (2, 8, 4)),
    "patches": (FlipConv(6, (2, 4), (2, 4)), nn.Conv(6, (2, 4), (2, 4)), (2, 4, 8, 4)),
    "dense": (FlipDense(6), nn.Dense(6), (2, 8, 4)),
    "upsampling": (FlipConvTranspose(6), nn.ConvTranspose(6, (2, 2), (2, 2)), (2, 4, 8, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_commute_with_flips_at_half_the_parameters(name):
    layer, plain, shape = LAYERS[name]
    x = jax.random.normal(jax.random.key(0), shape)
    params = layer.init(jax.random.key(1), x)
    # Exactly half, with the bias: of six channels three are odd and have none.
    assert 2 * size(params) == size(jax.eval_shape(plain.init, jax.random.key(1), x))
    out: Any = layer.apply(params, x)
    assert out.shape == plain.apply(plain.init(jax.random.key(1), x), x).shape
    np.testing.assert_allclose(layer.apply(params, flip_channels(x)), flip_channels(out), atol=1e-5)
    assert jnp.abs(out[..., 3:]).max() > 0.1 and jnp.abs(out - flip_channels(out)).max() > 0.1


def test_silu_without_the_transform_would_not_commute():
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    np.testing.assert_allclose(flip_activation(flip_channels(x)), flip_channels(flip_activation(x)), atol=1e-6)
    assert jnp.abs(nn.silu(flip_channels(x)) - flip_channels(nn.silu(x))).max() > 0.1
    with pytest.raises(ValueError, match="x has 3 channels"):
        flip_activation(x[..., :3])


@pytest.mark.slow
def test_an_autoencoder_is_equivariant_and_learns():
    model = FlipAutoencoder(channels=8, levels=2, height=8, latent_dim=8)
    start = jax.jit(model.init_params)(jax.random.key(0))
    images = jnp.sin(jnp.arange(4.0)[:, None, None, None] + 0.4 * jnp.arange(32.0)[None, None, :, None])
    images = images * jnp.ones((1, 8, 1, 3))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            loss = lambda p: jnp.mean(jnp.square(jnp.asarray(model.apply({"params": p}, images)) - images))  # noqa: E731
            value, gradient = jax.value_and_grad(loss)(params)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=60)

    (params, _), losses = train(start)
    assert losses[-1] < 0.3 * losses[0]

    def run(x: Any, method: str) -> Any:
        return model.apply({"params": params}, x, method=method)

    latents = run(images, "encode")
    flipped = run(images[:, :, ::-1], "encode")
    assert jnp.linalg.norm(flipped - flip_channels(latents)) < 1e-5 * jnp.linalg.norm(latents)
    decoded = run(latents, "decode")
    other = run(flip_channels(latents), "decode")
    assert jnp.linalg.norm(other - decoded[:, :, ::-1]) < 1e-5 * jnp.linalg.norm(decoded)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="stride=\\(2, 2\\) must be that of patches: kernel=\\(3, 3\\)"):
        FlipConv(6, (3, 3), (2, 2)).init(jax.random.key(0), jnp.zeros((1, 4, 8, 4)))
    with pytest.raises(ValueError, match="channels=7 and latent_dim=32 must be even"):
        FlipAutoencoder(channels=7).init_params(jax.random.key(0))
