"""The row kernels compute what the flow head computes: emulated on the CPU, at sizes that are no powers of 2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.generator import FlowHead, Modulations, fused_rows
from eqjax.generator.flow_weights import Weights
from tests.generator.flow_velocities import LATENT, evaluate, head_params


@pytest.mark.parametrize(
    ("width", "states", "repeats"),
    [
        (48, 3, 2),
        pytest.param(960, 3, 2, marks=pytest.mark.slow),
        pytest.param(80, 1, 2, marks=pytest.mark.slow),
        pytest.param(32, 130, 2, marks=pytest.mark.slow),
        pytest.param(16, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_float32_is_that_of_the_flow_head(width, states, repeats):
    fused, plain, _ = evaluate("rows", width, states, repeats=repeats)
    assert fused.shape == (repeats * states, LATENT) and np.abs(plain).max() > 1
    assert np.abs(fused - plain).max() <= 1e-5


@pytest.mark.slow
def test_bfloat16_differs_by_rounding():
    fused, plain, exact = evaluate("rows", 96, 5, "bfloat16")
    rounding = np.abs(plain - exact).max()
    assert 1e-3 < rounding < 0.1
    assert np.abs(fused - exact).max() < 1.5 * rounding


@pytest.mark.slow
def test_the_norms_are_accurate_far_from_zero():
    """Plain sums of squares would lose all digits."""
    fused, plain, _ = evaluate("rows", 48, 3, depth=1, input_bias=1e3)
    assert np.abs(fused - plain).max() <= 1e-3  # A state of 1000 has seven digits.


@pytest.mark.parametrize("width", [16, 48, 960, 1280, 1536])
def test_pieces_make_a_row_of_powers_of_2(width):
    pieces = list(fused_rows._pieces(width))
    assert np.concatenate([np.arange(at.start, at.start + at.size) for at in pieces]).tolist() == list(range(width))
    assert all(at.size & (at.size - 1) == 0 and at.start % at.size == 0 for at in pieces)


def test_the_products_of_a_block_are_xlas_and_the_second_one_has_parts():
    params = jax.tree.map(jnp.asarray, head_params(FlowHead(64, 2, LATENT)))
    weights = Weights.from_params(params, "bfloat16")
    shapes = (1, 6, 2, 3, 64), (1, 6, 2, 64)
    modulations = Modulations(*(jnp.zeros(shape, "bfloat16") for shape in shapes))
    given = weights, jnp.zeros((3, LATENT), "bfloat16"), modulations, jnp.zeros(1, jnp.int32)
    text = str(jax.make_jaxpr(fused_rows.velocity)(*given))
    assert text.count("pallas_call[") == 3 and text.count("dot_general[") == 2 * 2 + 2
    assert text.count("f32[4,6,64] = dot_general[") == 2  # One number in bfloat16 for every sum would be less exact.
