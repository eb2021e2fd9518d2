"""Closed forms of the cost of sampling, against a published figure and the compiler's count."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from eqjax import Generator
from eqjax.perf import benchmark_models, sampling_cost
from eqjax.published import GENERATOR_SIZES


def test_an_image_of_the_large_size_takes_the_published_flops_but_for_work_done_once():
    """With guidance and 100 steps about 727 GFLOP, 15 of which are computed once here."""
    costs = sampling_cost.sampling_cost(
        Generator(**GENERATOR_SIZES["L"]), batch_size=1, num_columns=16, num_evaluations=100
    )
    context = 16 * 99 * 2 * 2 * 1024 * 1280  # Projected per column, not per step.
    times = 16 * 100 * 2 * (256 + 1280) * 1280  # Embedded for one row, not for both.
    total = sum(cost.flops for cost in costs.values()) + context + times
    assert total / 1e9 == pytest.approx(727, abs=2)


def test_flow_head_flops_agree_with_the_compiler():
    generator = Generator(
        width=64, depth=1, num_heads=2, latent_dim=32, num_classes=3, num_cond_tokens=2, flow_width=64, flow_depth=3
    )
    params = benchmark_models.random_params(generator)
    contexts, z = jnp.ones((6, 64)), jnp.ones((6, 32))

    def velocity(z):
        return generator.apply({"params": params}, z, jnp.ones(6), contexts, method="velocity")

    analysis: Any = jax.jit(velocity).lower(z).compile().cost_analysis()
    counted = analysis["flops"]
    time_embedding = 5 * 2 * (256 * 64 + 64 * 64)  # The sampler embeds one time, the compiler counts six rows.
    costs = sampling_cost.sampling_cost(generator, batch_size=6, num_columns=1, num_evaluations=1, guided=False)
    # The compiler also counts norms and sums.
    assert counted - time_embedding == pytest.approx(costs["flow head"].flops, rel=0.15)


def test_guidance_doubles_the_rows_of_the_transformer():
    generator = Generator(**GENERATOR_SIZES["S"])
    shape = dict(batch_size=1, num_columns=4, num_evaluations=2)
    guided, plain = (
        sampling_cost.sampling_cost(generator, **shape, guided=guided)["transformer"] for guided in (True, False)
    )
    assert guided.flops == 2 * plain.flops and plain.bytes < guided.bytes < 2 * plain.bytes


def test_floor_is_the_longer_of_computing_and_reading():
    cost = sampling_cost.Cost(flops=6.0, bytes=4.0)
    assert cost.seconds(flops_per_second=1.0, bytes_per_second=1.0) == 6.0
    assert cost.seconds(flops_per_second=3.0, bytes_per_second=1.0) == 4.0
