"""Steps computed at once: the tolerance is kept, rows stay independent, and there are never more sweeps than steps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqjax
from eqjax import flow, sample_latents
from eqjax.sampling import sampler
from eqjax.sampling.class_schedule import Blend
from eqjax.sampling.options import SamplingOptions
from eqjax.sampling.parallel_steps import integrate_parallel
from tests.golden_cases import relative_error
from tests.sampling.small_models import local_model

ROWS, SIZE, STEPS = 5, 6, 24
# Rows from gentle to stiff: factors of the field's derivative.
STIFFNESS = np.array([0.1, 0.5, 1.0, 3.0, 6.0], np.float32)
SOLVERS = [("euler", "uniform"), ("heun", "cosine"), ("adams_bashforth", "shifted")]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def solve(solver, grid, window, weights, noise, stiffness, tolerance):
    """Returns the sequential solution of a smooth field, the one of steps at once, and its sweeps."""
    table = flow.solver_table(solver, STEPS, grid)
    evaluations = len(table.times)
    prepared = jnp.stack(jnp.broadcast_arrays(jnp.asarray(table.times)[:, None], stiffness[None]), -1)  # [M, B, 2]

    def field(z, prepared):
        time, stiffness = prepared[..., :1], prepared[..., 1:]
        return jnp.tanh(stiffness * (z @ weights[0]) + 4 * time) @ weights[1] - z * stiffness / 4

    exact = flow.integrate(field, noise, table, prepare_from=prepared)
    return exact, *integrate_parallel(field, noise, table, prepared, min(window, evaluations), tolerance)


def problem(seed):
    """Returns random weights of a field, and noise."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(2, SIZE, SIZE))
    weights /= np.linalg.norm(weights, 2, axis=(1, 2), keepdims=True)
    return np.asarray(weights, np.float32), np.asarray(rng.normal(size=(ROWS, SIZE)), np.float32)


def largest_error(found, exact):
    """Returns the largest root mean square difference of a row."""
    return np.sqrt(np.square(np.asarray(found) - np.asarray(exact)).mean(-1)).max()


@pytest.mark.parametrize(("solver", "grid"), SOLVERS)
@pytest.mark.parametrize("window", [5, 48])
def test_the_tolerance_is_kept(solver, grid, window):
    """For random fields, with gentle and stiff ones in a batch."""
    counts = []
    for tolerance in (0.3, 0.1, 1e-2, 1e-3, 1e-4):
        for seed in range(8):
            exact, found, sweeps = solve(solver, grid, window, *problem(seed), STIFFNESS, np.float32(tolerance))
            assert largest_error(found, exact) <= tolerance
            counts.append(int(sweeps))
    evaluations = len(flow.solver_table(solver, STEPS, grid).times)
    assert 2 <= min(counts) < evaluations / 2 and max(counts) <= evaluations


@pytest.mark.parametrize(("solver", "grid"), SOLVERS)
def test_a_tolerance_below_rounding_gives_the_sequential_solution(solver, grid):
    for seed in range(4):
        exact, found, sweeps = solve(solver, grid, 5, *problem(seed), STIFFNESS, np.float32(1e-12))
        assert relative_error(found, exact) < 2e-6
        assert int(sweeps) <= len(flow.solver_table(solver, STEPS, grid).times)


def test_a_row_does_not_depend_on_the_others():
    weights, noise = problem(3)
    together = solve("euler", "uniform", 5, weights, noise, STIFFNESS, np.float32(1e-2))[1]
    order = np.array([4, 2, 0, 1, 3])
    moved = solve("euler", "uniform", 5, weights, noise[order], STIFFNESS[order], np.float32(1e-2))[1]
    gentle = solve("euler", "uniform", 5, weights, noise, np.where(STIFFNESS < 1, STIFFNESS, 0), np.float32(1e-2))[1]
    np.testing.assert_allclose(moved, np.asarray(together)[order], atol=1e-6)
    np.testing.assert_allclose(np.asarray(gentle)[:2], np.asarray(together)[:2], atol=1e-6)


def test_a_column_says_how_many_evaluations_waited_for_each_other():
    m = local_model()

    @jax.jit
    def column(inputs):
        made = sampler.make_sampler(inputs)
        state = sampler.init_state(made, Blend(0, 0.0), 2)
        return sampler.integrate_column(made, state.context, jnp.ones((2, 4)), 2.0)[1]

    for options, least, most in ((dict(), 16, 16), (dict(parallel_steps=16, parallel_tolerance=0.1), 2, 12)):
        given = SamplingOptions(num_flow_steps=16, guidance_scale=2.0, **options)
        inputs = sampler.SamplerInputs.create(
            m.require("generator"), m.generator_params, jnp.zeros((2, 1), jnp.int32), given
        )
        assert least <= int(column(inputs)) <= most


OPTIONS: dict[str, Any] = dict(
    num_columns=5, num_flow_steps=12, guidance_scale=3.0, solver="adams_bashforth", class_columns=(2, None)
)


def test_samples_are_those_of_steps_one_after_another():
    m, labels, key = local_model(), np.array([[0, 2], [1, 3]]), jax.random.key(1)
    exact = sample_latents(m.generator, m.generator_params, labels, key=key, **OPTIONS)
    options = dict(OPTIONS, parallel_steps=4, parallel_tolerance=1e-6)
    found = sample_latents(m.generator, m.generator_params, labels, key=key, **options)
    assert relative_error(found, exact) < 1e-5
    assert largest_error(found, exact) > 0


def test_a_panorama_is_the_whole_image_with_both_shortcuts():
    m = local_model()
    options: dict[str, Any] = dict(
        num_columns=20, num_flow_steps=12, guidance_scale=3.0, parallel_steps=4, modulation_times=6
    )
    whole = np.asarray(m.sample(0, seeds=[5], **options))[0].astype(int)
    strips = np.concatenate(list(eqjax.panorama(m, 0, seed=5, strip_columns=8, **options)), axis=1)
    assert np.abs(strips.astype(int) - whole).max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(parallel_steps=1), "parallel_steps=1 must be an integer ≥ 2, or None"),
        (dict(parallel_tolerance=0), "parallel_tolerance=0 must be a finite number > 0 and ≤ 1"),
        (dict(modulation_times=1), "modulation_times=1 must be an integer ≥ 2 and ≤ 64, or None"),
    ],
)
def test_values_out_of_range_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        SamplingOptions(**change)


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0, 7.0])
def test_the_tolerance_is_kept_by_the_shipped_model(guidance_scale):
    model = eqjax.load_pretrained("photos")
    generator, labels = model.require("generator"), np.arange(9)
    noise = np.random.default_rng(0).normal(size=(9, 1, generator.latent_dim)).astype(np.float32)
    options: dict[str, Any] = dict(num_columns=1, guidance_scale=guidance_scale, guidance_schedule="constant")
    exact = sample_latents(generator, model.generator_params, labels, noise=noise, **options)
    for tolerance in (1e-2, 1e-4):
        found = sample_latents(
            generator,
            model.generator_params,
            labels,
            noise=noise,
            parallel_steps=20,
            parallel_tolerance=tolerance,
            **options,
        )
        assert 0 < largest_error(found, exact) <= tolerance
