"""Rectified flow and its solvers by closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import flow
from eqjax.module_fields import SOLVERS, TIME_GRIDS


def test_interpolation_and_velocity_are_those_of_the_straight_line():
    data, noise = jnp.array([[1.0, 2.0]]), jnp.array([[5.0, -2.0]])
    np.testing.assert_allclose(flow.interpolate(data, noise, jnp.array([0.25])), [[2.0, 1.0]])
    np.testing.assert_allclose(flow.interpolate(data, noise, jnp.array([0.0])), data)
    np.testing.assert_allclose(flow.interpolate(data, noise, jnp.array([1.0])), noise)
    np.testing.assert_allclose(flow.velocity_target(data, noise), [[4.0, -4.0]])


def test_time_grids_by_hand():
    np.testing.assert_allclose(flow.time_points(4), [1.0, 0.75, 0.5, 0.25, 0.0])
    np.testing.assert_allclose(flow.time_points(2, "shifted"), [1.0, 0.75, 0.0])
    np.testing.assert_allclose(flow.time_points(3, "cosine"), [1.0, 0.75, 0.25, 0.0])
    np.testing.assert_array_equal(flow.time_points(2, [1, 0.3, 0]), [1, 0.3, 0])
    assert flow.to_training_time(jnp.zeros(())) == np.float32(1e-5)
    assert flow.to_training_time(jnp.ones(())) == 1.0


def test_tables_equal_those_by_hand():
    h = -0.5
    expected = {
        "euler": ([1, 0.5], [h, h], [0, 0], [1, 1]),
        "heun": ([1, 0.5, 0.5, 0], [h, h / 2, h, h / 2], [0, h / 2, 0, h / 2], [0, 1, 0, 1]),
        "adams_bashforth": ([1, 0.5], [h, 1.5 * h], [0, -0.5 * h], [1, 1]),
    }
    assert set(expected) == set(SOLVERS)
    for solver, rows in expected.items():
        for have, want in zip(flow.solver_table(solver, 2), rows, strict=True):
            np.testing.assert_allclose(have, want, err_msg=solver)
    uneven = flow.solver_table("adams_bashforth", 2, [1, 0.8, 0])
    np.testing.assert_allclose(uneven.weight, [-0.2, -0.8 * 3], rtol=1e-6)  # r = 4
    np.testing.assert_allclose(uneven.previous_weight, [0, 0.8 * 2], rtol=1e-6)


def solve(field, solver, steps, time_grid="uniform", chunk_size=None):
    table = flow.solver_table(solver, steps, time_grid)
    return jax.jit(lambda z: flow.integrate(field, z, table, chunk_size=chunk_size))(jnp.ones(1))


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_is_exact_for_a_constant_velocity(solver):
    for time_grid in TIME_GRIDS:
        np.testing.assert_allclose(solve(lambda z, _: 0 * z + 0.3, solver, 7, time_grid), [0.7], atol=2e-6)


@pytest.mark.parametrize("time_grid", TIME_GRIDS)
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("adams_bashforth", 2)])
def test_order_of_convergence(solver, order, time_grid):
    # dz/dt = z · exp(t): z(0) = exp(1 − e). The slope of log error over log N is the order.
    exact, steps = np.exp(1 - np.e), [8, 16, 32]
    errors = [abs(float(solve(lambda z, t: z * jnp.exp(t), solver, n, time_grid)[0]) - exact) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.25, (slope, errors)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_chunk_size_does_not_change_the_result(solver):
    field = lambda z, t: z * jnp.cos(3 * t)  # noqa: E731
    whole = solve(field, solver, 7)
    for chunk_size in (1, 3, 5, 100):
        np.testing.assert_allclose(solve(field, solver, 7, chunk_size=chunk_size), whole, rtol=1e-6)


def test_each_time_is_prepared_once_in_order():
    out = []
    table = flow.solver_table("euler", 3)
    flow.integrate(lambda z, _: 0 * z, jnp.zeros(1), table, prepare=lambda times: out.append(times) or times)
    np.testing.assert_allclose(out[0], [1, 2 / 3, 1 / 3], rtol=1e-6)
    # The velocity of a step is that of its own time: only the first step moves.
    z = flow.integrate(lambda z, t: jnp.where(t > 0.9, -3.0, 0.0) + 0 * z, jnp.zeros(1), table)
    np.testing.assert_allclose(z, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(solver="rk4"), r"solver='rk4' must be one of 'euler', 'heun', 'adams_bashforth'"),
        (dict(num_steps=0), "num_flow_steps=0 must be an integer ≥ 1"),
        (dict(num_steps=-3), "num_flow_steps=-3 must be an integer ≥ 1"),
        (dict(time_grid="log"), r"time_grid='log' must be one of 'uniform', 'shifted', 'cosine'"),
        (dict(time_grid=[1, 0.5, 0]), "5 times .* that fall from 1 to 0"),
        (dict(time_grid=[1, 0.5, 0.6, 0.1, 0]), "that fall from 1 to 0"),
        (dict(time_grid=[1, 0.5, 0.4, 0.1, 0.05]), "that fall from 1 to 0"),
    ],
)
def test_a_bad_solver_or_grid_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        flow.solver_table(**{"solver": "euler", "num_steps": 4, **change})


def test_guidance_by_hand():
    assert flow.classifier_free_guidance(3.0, 1.0, 2.5) == 6.0
    assert flow.classifier_free_guidance(3.0, 1.0, 0.0) == 1.0
    np.testing.assert_allclose(flow.guidance_scales(5.0, "linear", 4), [2.0, 3.0, 4.0, 5.0])
    np.testing.assert_allclose(flow.guidance_scales(5.0, "constant", 3), [5.0, 5.0, 5.0])
    np.testing.assert_allclose(flow.guidance_scales([1.0, 7.0], "linear", 2), [1.0, 7.0])
    with pytest.raises(ValueError, match="guidance_schedule='cosine' must be one of"):
        flow.guidance_scales(5.0, "cosine", 3)
    with pytest.raises(ValueError, match=r"guidance_scale has shape \(2,\); expected a number, or \[3\]"):
        flow.guidance_scales([1.0, 7.0], "linear", 3)


def test_what_is_prepared_may_come_from_other_rows_than_the_times_in_chunks_too():
    table, rows = flow.solver_table("euler", 7), np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
    noise = np.ones((2, 3), np.float32)
    expected = noise + np.einsum("n,nij->ij", table.weight, 2 * rows)
    for chunk_size in (None, 3):
        found = flow.integrate(lambda _, v: v, noise, table, lambda rows: 2 * rows, chunk_size, prepare_from=rows)
        np.testing.assert_allclose(found, expected, atol=1e-6)
