"""Rearrangements by hand-written tables, attention by a plain implementation, the posterior by its moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.tokenizer import Posterior
from eqjax.tokenizer.attention import column_attention
from eqjax.tokenizer.encoder import from_columns, to_columns
from eqjax.tokenizer.layers import depth_to_space, space_to_depth


def test_space_to_depth_by_hand():
    # Two channels of a 2 × 4 image: tens are channel 1.
    channel = jnp.arange(8).reshape(2, 4)
    x = jnp.stack([channel, channel + 10], axis=-1)[None]
    out = space_to_depth(x, (2, 2))
    assert out.shape == (1, 1, 2, 8)
    assert out[0, 0].tolist() == [[0, 1, 4, 5, 10, 11, 14, 15], [2, 3, 6, 7, 12, 13, 16, 17]]
    out = space_to_depth(x, (2, 1))
    assert out[0, 0].tolist() == [[0, 4, 10, 14], [1, 5, 11, 15], [2, 6, 12, 16], [3, 7, 13, 17]]


@pytest.mark.parametrize("stride", [(2, 2), (2, 1)])
def test_depth_to_space_inverts(stride):
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    assert (depth_to_space(space_to_depth(x, stride), stride) == x).all()


def test_to_columns_by_hand():
    # Rows 0, 1; columns 0, 1; channels a = 0…, b = 10…: channel major, row minor.
    x = jnp.array([[[0, 10], [1, 11]], [[2, 12], [3, 13]]])[None]
    assert to_columns(x)[0].tolist() == [[0, 2, 10, 12], [1, 3, 11, 13]]
    assert (from_columns(to_columns(x), 2) == x).all()


def plain_attention(query, key, value, window):
    b, h, w, c = query.shape
    flat = [np.asarray(a, np.float64).reshape(b, h * w, c) for a in (query, key, value)]
    scores = flat[0] @ flat[1].transpose(0, 2, 1) / np.sqrt(c)
    column = np.tile(np.arange(w), h)
    if window is not None:
        scores[:, np.abs(column[:, None] - column[None, :]) > window] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ flat[2]).reshape(b, h, w, c)


@pytest.mark.parametrize("window", [None, 0, 2])
@pytest.mark.parametrize("max_block", [1000, 12, 3])  # One block; four columns, with a rest; one column.
def test_attention_in_blocks_equals_a_plain_implementation(window, max_block):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 3, 11, 8))
    out = column_attention(q, k, v, window=window, max_block=max_block)
    np.testing.assert_allclose(out, plain_attention(q, k, v, window), atol=2e-6)


def test_the_gradient_of_attention_does_not_depend_on_blocks():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 2, 7, 4))

    def loss(q, max_block):
        return jnp.sum(jnp.sin(column_attention(q, k, v, window=1, max_block=max_block)))

    whole, blocks = (jax.grad(loss)(q, n) for n in (1000, 4))
    np.testing.assert_allclose(whole, blocks, atol=1e-6)
    assert np.isfinite(np.asarray(blocks)).all()


def test_wide_attention_needs_no_square_matrix():
    h, w, c = 4, 2048, 8
    x = jax.ShapeDtypeStruct((1, h, w, c), jnp.float32)
    memory = jax.jit(column_attention).lower(x, x, x).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 0.5 * (h * w) ** 2 * 4  # The scores of all pairs.


def test_posterior_noise_is_per_image_and_bounded():
    posterior = Posterior(jnp.full((2000, 4, 8), 3.0), std=2.5)
    noise = np.asarray(posterior.sample(jax.random.key(0))) - 3.0
    level = noise.std(axis=(1, 2))
    # |N(0, 2.5 / 0.8)| clipped to 2.5: 42 % of the images have the bound itself.
    assert level.max() < 2.5 * 1.6
    assert abs(np.mean(noise**2) / 3.749 - 1) < 0.05  # E[min(|s|, 2.5)²] with s ~ N(0, 3.125).
    assert level.min() < 0.1
    assert (posterior.mode() == 3.0).all()
    np.testing.assert_allclose(posterior.kl(), 0.5 * 32 * 9.0)
