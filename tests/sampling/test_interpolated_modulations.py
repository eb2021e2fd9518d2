"""Modulations at a few Chebyshev times: exact for polynomials, close in samples, and nothing changes without them."""

from typing import Any

import jax
import numpy as np
import pytest

from eqjax import flow, sample_latents
from eqjax.module_fields import SOLVERS, TIME_GRIDS
from eqjax.sampling import sampler
from eqjax.sampling.interpolated_modulations import interpolation
from eqjax.sampling.options import SamplingOptions
from eqjax.sampling.shortcuts import Shortcuts
from tests.golden_cases import relative_error
from tests.sampling.small_models import local_model


@pytest.mark.parametrize("grid", TIME_GRIDS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_nodes", [2, 3, 8, 16])
def test_polynomials_below_the_number_of_nodes_are_exact(solver, grid, num_nodes):
    times = flow.solver_table(solver, 20, grid).times
    nodes, matrix = interpolation(np.asarray(times), num_nodes)
    assert nodes.min() >= np.min(times) and nodes.max() <= 1 and (np.diff(nodes) > 0).all()
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    for degree in range(num_nodes):
        np.testing.assert_allclose(matrix @ nodes**degree, times**degree, atol=2e-6)


def test_a_smooth_function_is_met_better_by_more_nodes():
    times = np.asarray(flow.solver_table("euler", 100).times)
    errors = []
    for num_nodes in (4, 8, 12):
        nodes, matrix = interpolation(times, num_nodes)
        errors.append(np.abs(matrix @ np.sin(4 * nodes) - np.sin(4 * times)).max())
    assert errors[0] > 100 * errors[1] and errors[1] > 20 * errors[2] and errors[2] < 1e-6


@pytest.mark.parametrize(
    ("options", "evaluations"),
    [(dict(num_flow_steps=12), 12), (dict(num_flow_steps=6, solver="heun"), 12), (dict(num_flow_steps=2), 2)],
)
def test_as_many_times_as_evaluations_are_refused(options, evaluations):
    message = f"modulation_times=12 saves nothing: the solver evaluates the flow head {evaluations} times per column"
    with pytest.raises(ValueError, match=message):
        SamplingOptions(modulation_times=12, **options)
    assert SamplingOptions(modulation_times=11, num_flow_steps=12).modulation_times == 11


def sample(**options: Any) -> np.ndarray:
    m = local_model()
    options = {"num_flow_steps": 16, "guidance_scale": 2.0, **options}
    key = jax.random.key(3)
    return np.asarray(sample_latents(m.generator, m.generator_params, [0, 2], num_columns=4, key=key, **options))


@pytest.mark.slow  # Whatever comes after it compiles again.
def test_samples_are_met_better_by_more_times_in_chunks_too(monkeypatch):
    exact = sample()
    coarse, fine = (relative_error(sample(modulation_times=k), exact) for k in (3, 8))
    assert coarse > 10 * fine and fine < 1e-5
    jax.clear_caches()
    monkeypatch.setattr(sampler, "MODULATION_BYTES", 4 * 5 * 8 * 4 * 3)  # Three evaluations at once.
    assert relative_error(sample(modulation_times=8), exact) < 1e-5
    jax.clear_caches()


def test_without_shortcuts_the_program_is_that_of_the_plain_solver(monkeypatch):
    """The text of the program, which decides all bits."""
    m = local_model()
    inputs = sampler.SamplerInputs.create(
        m.require("generator"), m.generator_params, np.zeros((2, 1), np.int32), OPTIONS
    )
    assert inputs.shortcuts == Shortcuts(None, None, None)

    def program() -> str:
        def column(inputs, context, noise):
            return sampler.sample_column(sampler.make_sampler(inputs), context, noise, 2.0)

        context, noise = np.zeros((4, 16), np.float32), np.zeros((2, 4), np.float32)
        return jax.jit(column).lower(inputs, context, noise).as_text()

    with_hooks = program()

    def plain(shortcuts, velocity, noise, table, modulations, chunk_size, dtype):
        del shortcuts
        return flow.integrate(velocity, noise, table, modulations, chunk_size, dtype=dtype), 0

    monkeypatch.setattr(sampler, "integrate", plain)
    assert program() == with_hooks


OPTIONS = SamplingOptions(guidance_scale=2.0, num_flow_steps=3)
