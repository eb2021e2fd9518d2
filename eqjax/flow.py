"""Rectified flow between data and noise along straight lines, and how to integrate it.

    z_t = t · noise + (1 − t) · data,      velocity = dz_t/dt = noise − data,      t in [0, 1].

Time runs from data at t = 0 to noise at t = 1; sampling integrates from 1 down to 0.
Guidance moves the velocity away from the unconditional one: v = v_null + g · (v_class − v_null).

Source: Flow Straight and Fast, arXiv 2209.03003, section 2; classifier-free diffusion guidance,
arXiv 2207.12598, section 3; the schedule over columns: arXiv 2503.18948, section 3.3.
"""

import jax
import jax.numpy as jnp

SCHEDULES = ("linear", "constant")

# Training times are squeezed into [ε, 1]: at 0 there would be nothing to learn.
_EPSILON = 1e-5


def squeeze_time(uniform):
    """Uniform numbers in [0, 1) to training times in [1e-5, 1)."""
    return uniform * (1 - _EPSILON) + _EPSILON


def interpolate(data, noise, time):
    """z_t on the straight line: data and noise [..., D], time [...] → [..., D]."""
    time = time[..., None]
    return time * noise + (1 - time) * data


def velocity_target(data, noise):
    """The velocity of the straight line, noise − data: the same at every time."""
    return noise - data


def step_times(num_steps):
    """Times at which `euler` evaluates the velocity: 1, 1 − 1/N, …, 1/N; float32 [N]."""
    return jnp.arange(num_steps, 0, -1, dtype=jnp.float32) / num_steps


def euler(velocity, noise, per_step):
    """Integrates from t = 1 to t = 0 with Euler steps: z ← z − velocity(z, ·) / N.

    Args:
      velocity: function of (z, element of per_step) → [..., D].
      noise: z at t = 1, float32 [..., D].
      per_step: pytree whose leaves have a leading axis N, one element per time of `step_times`.

    Returns:
      z at t = 0, float32 [..., D].
    """
    num_steps = jax.tree.leaves(per_step)[0].shape[0]

    def step(z, element):
        return z - velocity(z, element).astype(jnp.float32) / num_steps, None

    return jax.lax.scan(step, noise.astype(jnp.float32), per_step)[0]


def guide(conditional, unconditional, scale):
    """v_null + g · (v_class − v_null)."""
    return unconditional + scale * (conditional - unconditional)


def guidance_scales(scale, schedule, num_columns):
    """Guidance per column, float32 [num_columns].

    Args:
      scale: g at the last column ("linear": 1 + (g − 1)(k + 1)/L at column k) or everywhere ("constant").
      schedule: "linear" or "constant".
      num_columns: L.

    Raises:
      ValueError: an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"guidance_schedule={schedule!r} is not one of {SCHEDULES}.")
    if schedule == "constant":
        return jnp.full(num_columns, scale, jnp.float32)
    return 1 + (scale - 1) * jnp.arange(1, num_columns + 1, dtype=jnp.float32) / num_columns
