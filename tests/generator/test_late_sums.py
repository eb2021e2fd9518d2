"""The flow head arranged for compilers of GPUs computes what the flow head computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.generator import FlowHead, Modulations, late_sums
from eqjax.generator.flow_weights import Weights, num_parts, partial_products
from tests.generator.flow_velocities import LATENT, evaluate, head_params


@pytest.mark.parametrize(
    ("width", "states", "repeats"),
    [
        (48, 3, 2),
        (27, 1, 2),
        (32, 1, 1),
        pytest.param(960, 3, 2, marks=pytest.mark.slow),
        pytest.param(32, 130, 2, marks=pytest.mark.slow),
    ],
)
def test_float32_is_that_of_the_flow_head(width, states, repeats):
    """Also a width that no part divides, a state that all rows share, and a single row."""
    found, plain, _ = evaluate("sums", width, states, repeats=repeats)
    assert found.shape == (repeats * states, LATENT) and np.abs(plain).max() > 1
    assert np.abs(found - plain).max() <= 1e-5


@pytest.mark.slow
def test_bfloat16_differs_by_rounding():
    found, plain, exact = evaluate("sums", 96, 5, "bfloat16")
    rounding = np.abs(plain - exact).max()
    assert 1e-3 < rounding < 0.1
    assert np.abs(found - exact).max() < 1.5 * rounding


@pytest.mark.slow
def test_the_norms_are_accurate_far_from_zero():
    found, plain, _ = evaluate("sums", 48, 3, depth=1, input_bias=1e3)
    assert np.abs(found - plain).max() <= 1e-3  # A state of 1000 has seven digits.


def test_products_are_split_so_that_xla_splits_them_no_further():
    """Also where the multiprocessors have work enough; into parts that tensor cores can multiply."""
    assert num_parts(512, 1280, 1280) == num_parts(4096, 960, 960) == 2
    assert num_parts(2, 1280, 1280) == 8 and num_parts(2, 32, 1280) == 2
    left, kernel = np.arange(6, dtype=np.float32).reshape(2, 3).repeat(32, axis=1), np.ones((96, 16), np.float32)
    assert num_parts(512, 81, 1280) == 1  # No tensor core multiplies a part of such a layer.
    found, _ = partial_products(jnp.asarray(left), (jnp.asarray(kernel), jnp.zeros(16)))
    assert found.shape == (2, 2, 16)
    np.testing.assert_allclose(np.asarray(jnp.sum(found, axis=0)), left @ kernel)


def test_products_have_parts_and_barriers_keep_states_apart():
    """What the budgets of compiled programs depend on: the GPU compiler is seldom at hand."""
    depth = 2
    params = jax.tree.map(jnp.asarray, head_params(FlowHead(64, depth, LATENT)))
    weights = Weights.from_params(params, "bfloat16")
    modulations = Modulations(jnp.zeros((6, depth, 3, 64), "bfloat16"), jnp.zeros((6, 2, 64), "bfloat16"))
    given = weights, late_sums.join_biases(weights), jnp.zeros((3, LATENT), "bfloat16"), modulations
    text = str(jax.make_jaxpr(late_sums.velocity)(*given))
    assert text.count("f32[4,6,64] = dot_general[") == 2 * depth and text.count("dot_general[") == 2 * depth + 2
    assert text.count("optimization_barrier") == 2 + 3 * depth
    assert text.count("bitcast_convert_type[") == 1  # Kernels that read the biases as floats would not be joined.
