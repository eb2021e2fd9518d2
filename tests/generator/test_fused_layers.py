"""The fused kernels compute what the layers compute: emulated on the CPU, at sizes that tiles do not divide."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.generator import (
    Generator,
    KVCache,
    Modulations,
    flow_weights,
    fused_attention,
    fused_flow,
    fused_layers,
    fused_rows,
)
from tests.random_params import random_params

LATENT = 16


def small(**fields):
    """Returns a generator of two layers."""
    sizes: Any = dict(width=32, num_heads=2, num_cond_tokens=3, window_size=3)
    sizes |= fields
    return Generator(depth=2, latent_dim=LATENT, num_classes=3, flow_width=16, flow_depth=1, **sizes)


@functools.cache
def run(generator, rows, columns, kernels, dtype="float32", max_position=1):
    """Returns contexts and caches after each of some columns, "plain" or with "fused" kernels."""
    generator = generator.clone(dtype=jnp.dtype(dtype))
    params = random_params(generator)
    for name in ("self_qkv", "cross_query", "cross_key", "cross_value"):  # Scores of size 1.
        kernel = params["blocks"][name]["kernel"]
        params["blocks"][name]["kernel"] = kernel * np.sqrt(np.float32(kernel[:, 0].size / generator.head_dim))
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(columns, rows, LATENT)).astype(np.float32)
    labels = rng.integers(0, 3, rows)

    def feed(params, latents):
        apply: Any = functools.partial(generator.apply, {"params": params})
        condition = apply(labels, method="condition")
        weights = fused_layers.Weights.from_params(params["blocks"], generator.dtype)
        fused = functools.partial(fused_layers.decode_step, weights, cross_rope=generator.cross_rope, interpret=True)
        layers = fused if kernels == "fused" else None

        def step(carry, latent):
            column, cache = carry
            context, cache = apply(latent, column, cache, condition, max_position, layers, method="decode_step")
            return (column + 1, cache), (context, cache)

        return jax.lax.scan(step, (jnp.int32(0), generator.init_cache(rows, 8)), latents)[1]

    return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(jax.jit(feed)(params, latents))]


WIDE: Any = {"width": 960, "num_cond_tokens": 16, "window_size": 4}
CASES = [
    # The window fills, and its oldest columns are overwritten.
    ({}, 3, 5),
    # Heads of 80 channels, which are a tile of 128, and a query without a rotation.
    ({"width": 80, "num_heads": 1, "cross_rope": False, "num_cond_tokens": 5}, 1, 2),
    # More rows than a tile has; a cache that stays half empty.
    ({"width": 16, "num_heads": 1, "window_size": None}, 130, 2),
    pytest.param(
        {"width": 960, "num_heads": 15, "num_cond_tokens": 16, "window_size": 4}, 1, 6, marks=pytest.mark.slow
    ),
    pytest.param(
        {"width": 960, "num_heads": 12, "num_cond_tokens": 16, "window_size": 4}, 3, 6, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("fields", "rows", "columns"), CASES)
def test_float32_is_that_of_the_layers(fields, rows, columns):
    """Contexts, and the cache with every column; from the third on, rotations of the two attentions differ."""
    generator: Any = small(**fields)
    found, expected = (run(generator, rows, columns, kernels) for kernels in ("fused", "plain"))
    for here, there in zip(found, expected, strict=True):
        assert here.shape == there.shape and np.abs(there).max() > 1
        assert np.abs(here - there).max() <= 1e-5


@pytest.mark.slow
def test_bfloat16_differs_by_rounding():
    generator: Any = small()
    fused, plain, exact = (
        run(generator, 3, 5, *case) for case in (("fused", "bfloat16"), ("plain", "bfloat16"), ("plain",))
    )
    for here, there, truth in zip(fused, plain, exact, strict=True):
        rounding = np.sqrt(np.mean(np.square(there - truth)))
        assert 1e-4 < rounding < 0.1
        assert np.sqrt(np.mean(np.square(here - truth))) < 1.2 * rounding


def test_gelu_is_exact_to_float32():
    x = np.linspace(-12, 12, 4001).astype(np.float32)
    expected = jax.nn.gelu(x, approximate=False)
    assert np.abs(np.asarray(fused_layers._gelu(jnp.asarray(x))) - expected).max() <= 2e-6


def test_sizes_without_kernels():
    assert fused_layers.supports(1024, 16) and fused_layers.supports(1280, 16) and fused_layers.supports(960, 12)
    assert not fused_layers.supports(1032, 12)
    assert not fused_layers.supports(1024, 4)
    assert fused_attention.Head.of(80) == (80, 128) and fused_attention.Head.of(8) == (8, 16)


def test_every_supported_jax_lowers_the_kernels():
    """For a GPU, without one; emulation takes operations that Triton's arrays do not have."""
    generator: Any = small(width=80, num_heads=1).clone(flow_width=48, flow_depth=2)
    params = jax.tree.map(jnp.asarray, random_params(generator))
    shape = 2, 3, generator.window_size, 1, 80
    cache = KVCache(jnp.zeros(shape), jnp.zeros(shape))
    angles = jnp.ones((1, 40)), jnp.zeros((1, 40))

    def feed(params, x):
        layers = fused_layers.Weights.from_params(params["blocks"], "float32")
        given = cache, (cache.keys, cache.values), angles, angles, jnp.int32(1), jnp.ones(3, bool)
        head = flow_weights.Weights.from_params(params["flow_head"], "float32")
        modulations = Modulations(jnp.zeros((1, 3, 2, 3, 48)), jnp.zeros((1, 3, 2, 48)))
        given_head = head, x[:, 0, :LATENT], modulations, jnp.zeros(1, jnp.int32)
        velocities = fused_flow.velocity(*given_head), fused_rows.velocity(*given_head)
        return velocities, fused_layers.decode_step(layers, x, *given, cross_rope=True)

    lowered = jax.jit(feed).trace(params, jnp.ones((3, 1, 80))).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("xla.gpu.triton") == 6 + (2 * 2 + 2) + (2 + 1)
