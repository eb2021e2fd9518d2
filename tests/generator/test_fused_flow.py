"""The fused kernels compute what the flow head computes: emulated on the CPU, at sizes that tiles do not divide."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.generator import FlowHead, Modulations, fused_flow, fused_tiles

EVALUATIONS, INDEX, LATENT = 3, 1, 16


def head_params(head, seed=0):
    """Returns parameters all of which matter: none is zero."""
    shapes = jax.eval_shape(head.init, jax.random.key(0), np.zeros((1, LATENT)), np.zeros(1), np.zeros((1, 8)))
    rng = np.random.default_rng(seed)

    def draw(leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        return values / np.sqrt(np.float32(leaf.shape[0])) if leaf.ndim > 1 else 0.5 + 0.1 * values

    return jax.tree.map(draw, shapes["params"])


def evaluate(width, states, dtype="float32", depth=2, repeats=2):
    """Returns the velocity of the kernels, and that of the flow head in the dtype and in float32."""
    params = head_params(FlowHead(width, depth, LATENT))
    rng = np.random.default_rng(1)
    rows = repeats * states
    z = rng.normal(size=(states, LATENT)).astype(np.float32)
    modulations: Any = (
        0.3 * rng.normal(size=(EVALUATIONS, rows, depth, 3, width)).astype(np.float32),
        0.3 * rng.normal(size=(EVALUATIONS, rows, 2, width)).astype(np.float32),
    )

    def fused(params, z, modulations):
        weights = fused_flow.Weights.from_params(params, dtype)
        z, *modulations = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (z, *modulations))
        index = jnp.full(1, INDEX, jnp.int32)
        return fused_flow.velocity(weights, z, Modulations(*modulations), index, interpret=True)

    def plain(params, z, modulations, dtype):
        head = FlowHead(width, depth, LATENT, jnp.dtype(dtype))
        x: Any = head.apply({"params": params}, z, method="embed")
        here = Modulations(*(jnp.asarray(leaf[INDEX], dtype) for leaf in modulations))
        return head.apply({"params": params}, jnp.concatenate([x] * repeats), here, method="denoise")

    plain = jax.jit(plain, static_argnums=3)
    given = params, z, modulations
    return (np.asarray(a) for a in (jax.jit(fused)(*given), plain(*given, dtype), plain(*given, "float32")))


@pytest.mark.parametrize(("width", "states", "repeats"), [(960, 3, 2), (80, 1, 2), (32, 130, 2), (48, 5, 1)])
def test_float32_is_that_of_the_flow_head(width, states, repeats):
    fused, plain, _ = evaluate(width, states, repeats=repeats)
    assert fused.shape == (repeats * states, LATENT) and np.abs(plain).max() > 1
    assert np.abs(fused - plain).max() <= 1e-5


def test_bfloat16_differs_by_rounding():
    fused, plain, exact = evaluate(96, 5, "bfloat16")
    rounding = np.abs(plain - exact).max()
    assert 1e-3 < rounding < 0.1
    assert np.abs(fused - exact).max() < 1.5 * rounding


def test_the_norms_of_parts_are_accurate_far_from_zero(monkeypatch):
    """Plain sums of squares would lose all digits."""
    params = head_params(FlowHead(64, 1, LATENT))
    params["input_proj"]["bias"] = params["input_proj"]["bias"] + np.float32(1e3)
    monkeypatch.setattr("tests.generator.test_fused_flow.head_params", lambda _: params)
    fused, plain, _ = evaluate(64, 3, depth=1)
    assert np.abs(fused - plain).max() <= 1e-3  # A state of 1000 has seven digits.


@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_divide_columns_and_fit_the_smallest_gpus(itemsize):
    cases = itertools.product((224, 960, 1024, 1280, 1536), (1, 2, 6, 32, 128, 260, 1024), (True, False), (True, False))
    for width, rows, is_modulated, is_last in cases:
        columns, row_bytes = 256 if is_last else width, itemsize + (4 + itemsize if is_modulated else 0)
        tile = fused_tiles.choose_tile(rows, width, columns, itemsize, row_bytes)
        assert columns % tile.columns == 0 and width % tile.depth == 0 and min(tile) >= 16
        assert all(size & (size - 1) == 0 for size in tile)  # Powers of 2: all that Triton has.
        assert 3 * tile.depth * (tile.rows * row_bytes + tile.columns * itemsize) <= 99 * 1024


def test_sizes_without_kernels():
    assert fused_flow.supports(960, 256, "bfloat16") and fused_flow.supports(1280, 256, "float32")
    assert not fused_flow.supports(24, 256, "float32")
    assert not fused_flow.supports(960, 8, "float32")
    assert not fused_flow.supports(960, 256, "float64")
