"""Encoding: the noise in the latent scale, and calls of one size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import sharding
from eqjax.latent_cache.encode import LatentEncoder, MeanEncoder, noise_mean_square
from eqjax.tokenizer.posterior import Posterior


def test_noise_mean_square_is_that_of_draws():
    noise = Posterior(jnp.zeros((20000, 4, 4)), 2.5).sample(jax.random.key(0))
    assert noise_mean_square(2.5) == pytest.approx(float(jnp.mean(noise**2)), rel=0.02)


def test_images_and_their_means_become_the_same_latents(weights):
    tokenizer, params, key = weights.modules["tokenizer"], weights.params["tokenizer"], jax.random.key(0)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), np.uint8)
    batch = {"image": images, "label": np.arange(4, dtype=np.int32)}
    encode = LatentEncoder(tokenizer, 0.4)
    latents, labels = jax.jit(encode)(params, batch, key)
    (means,) = MeanEncoder(weights, np.dtype(np.float32), 4)(images)
    cached, _ = encode({}, {"latents": means, "label": batch["label"]}, key)
    np.testing.assert_allclose(latents, cached, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(labels, batch["label"])


def test_last_call_is_filled_to_the_same_size(weights, monkeypatch):
    one_device = sharding.make_mesh(jax.local_devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda _: one_device)
    parts = MeanEncoder(weights, np.dtype(np.float16), 3)(np.zeros((4, 16, 24, 3), np.uint8))
    assert [(part.shape, part.dtype) for part in parts] == [((3, 6, 8), np.float16)] * 2


def test_call_is_a_multiple_of_the_devices(weights):
    assert MeanEncoder(weights, np.dtype(np.float16), 3).batch_size == 4
