"""Rectified flow by closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import flow


def test_straight_line():
    data, noise = jnp.array([[1.0, 2.0]]), jnp.array([[5.0, -2.0]])
    np.testing.assert_allclose(flow.interpolate(data, noise, jnp.array([0.25])), [[2.0, 1.0]])
    np.testing.assert_allclose(flow.interpolate(data, noise, jnp.array([0.0])), data)
    np.testing.assert_allclose(flow.interpolate(data, noise, jnp.array([1.0])), noise)
    np.testing.assert_allclose(flow.velocity_target(data, noise), [[4.0, -4.0]])


def test_times():
    np.testing.assert_allclose(flow.step_times(4), [1.0, 0.75, 0.5, 0.25])
    assert flow.squeeze_time(jnp.zeros(())) == np.float32(1e-5)
    assert flow.squeeze_time(jnp.ones(())) == 1.0


def test_euler_is_exact_for_a_constant_velocity():
    noise, velocity = jnp.array([[3.0, -1.0]]), jnp.array([[0.5, 2.0]])
    out = flow.euler(lambda z, t: velocity, noise, flow.step_times(7))
    np.testing.assert_allclose(out, noise - velocity, rtol=1e-6)


def test_euler_has_order_one():
    # dz/dt = z·t from t = 1 to 0: z(0) = z(1)·exp(−1/2).
    exact = np.exp(-0.5)
    errors = [
        abs(float(flow.euler(lambda z, t: z * t, jnp.ones(1), flow.step_times(n))[0]) - exact) for n in (20, 40, 80)
    ]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, 1.0, atol=0.1)


def test_euler_sees_each_time_once_in_order():
    # z counts steps, and each is told its time: sum over i of i · t_i.
    times = flow.step_times(3)  # 1, 2/3, 1/3
    out = flow.euler(lambda z, t: -3 * t * jnp.ones(1), jnp.zeros(1), times)
    np.testing.assert_allclose(out, 2.0, rtol=1e-6)
    out = flow.euler(lambda z, t: jnp.where(t > 0.9, -3.0, 0.0) + 0 * z, jnp.zeros(1), times)
    np.testing.assert_allclose(out, 1.0, rtol=1e-6)


def test_guidance():
    assert flow.guide(3.0, 1.0, 2.5) == 6.0
    assert flow.guide(3.0, 1.0, 0.0) == 1.0
    np.testing.assert_allclose(flow.guidance_scales(5.0, "linear", 4), [2.0, 3.0, 4.0, 5.0])
    np.testing.assert_allclose(flow.guidance_scales(5.0, "constant", 3), [5.0, 5.0, 5.0])
    with pytest.raises(ValueError, match="guidance_schedule='cosine' is not one of"):
        flow.guidance_scales(5.0, "cosine", 3)
