"""The fused kernels compute what the transformer's layers compute: emulated on the CPU, at sizes that tiles do not divide."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.generator import Generator, KVCache, fused_layers, fused_tiles
from eqjax.sampling.sampler import compute_params
from tests.random_params import random_params

LATENT = 16


def steps(generator, rows, columns, kernels, dtype="float32", depth=2, max_position=None, seed=0):
    """Returns contexts and caches after each of some columns, along the plain path or with the kernels."""
    generator = generator.clone(dtype=jnp.dtype(dtype))
    params = compute_params(generator, random_params(generator))
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(columns, rows, LATENT)).astype(np.float32)
    labels = rng.integers(0, 3, rows)

    def fused(params):
        weights = fused_layers.Weights.from_params(params["blocks"], generator.dtype)
        return functools.partial(
            fused_layers.decode_step, weights, cross_rope=generator.cross_rope, interpret=True
        )

    def run(params, latents, labels):
        apply: Any = functools.partial(generator.apply, {"params": params})
        condition = apply(labels, method="condition")
        layers = None if kernels == "plain" else fused(params)

        def step(carry, latent):
            column, cache = carry
            context, cache = apply(latent, column, cache, condition, max_position, layers, method="decode_step")
            return (column + 1, cache), (context, cache)

        start = jnp.int32(0), generator.init_cache(rows, 2 * columns)
        return jax.lax.scan(step, start, latents)[1]

    return jax.tree.map(np.asarray, jax.jit(run)(params, latents, labels))


def small(**fields):
    sizes = dict(width=32, depth=2, num_heads=2, num_cond_tokens=3, window_size=3, flow_width=16)
    return Generator(latent_dim=LATENT, num_classes=3, flow_depth=1, **{**sizes, **fields})


@pytest.mark.parametrize(
    ("fields", "rows", "columns"),
    [
        ({}, 3, 5),  # The window fills, and the oldest slot is overwritten twice.
        ({"width": 80, "num_heads": 1, "cross_rope": False, "num_cond_tokens": 5}, 1, 2),
        ({"window_size": None, "num_heads": 4}, 5, 3),
    ],
)
def test_float32_is_that_of_the_layers(fields, rows, columns):
    generator = small(**fields)
    contexts, caches = steps(generator, rows, columns, "fused")
    expected, expected_caches = steps(generator, rows, columns, "plain")
    assert np.abs(expected).max() > 1
    assert np.abs(contexts - expected).max() <= 1e-5
    for found, cache in zip(jax.tree.leaves(caches), jax.tree.leaves(expected_caches), strict=True):
        assert np.abs(found - cache).max() <= 1e-5
