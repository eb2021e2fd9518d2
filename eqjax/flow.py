"""Rectified flow between data and noise along straight lines, and how to integrate it.

    z_t = t · noise + (1 − t) · data,      velocity = dz_t/dt = noise − data,      t in [0, 1].

Time runs from data at t = 0 to noise at t = 1; sampling integrates from 1 down to 0 on a grid
1 = t_0 > t_1 > … > t_N = 0, with h_n = t_{n+1} − t_n < 0 and v_n the velocity at (z_n, t_n):

    euler             z_{n+1} = z_n + h_n v_n                                        order 1
    heun              p = z_n + h_n v_n,  z_{n+1} = z_n + h_n (v_n + v(p, t_{n+1})) / 2    order 2
    adams_bashforth   z_{n+1} = z_n + h_n ((1 + r/2) v_n − r/2 v_{n−1}),  r = h_n / h_{n−1}    order 2

Heun evaluates the velocity twice a step; the others once (Adams–Bashforth begins with an Euler step).

Guidance moves the velocity away from the unconditional one: v = v_null + g · (v_class − v_null).

Source: Flow Straight and Fast, arXiv 2209.03003, section 2; classifier-free diffusion guidance,
arXiv 2207.12598, section 3; the schedule over columns: arXiv 2503.18948, section 3.3; solvers: Hairer,
Nørsett, Wanner, Solving Ordinary Differential Equations I, sections II.1 and III.5; the shifted grid:
arXiv 2403.03206, section 5.3.2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from eqjax.typing import Scalar

SCHEDULES = ("linear", "constant")
SOLVERS = ("euler", "heun", "adams_bashforth")
TIME_GRIDS = ("uniform", "shifted", "cosine")

# Training times are squeezed into [ε, 1]: at 0 there would be nothing to learn.
_EPSILON = 1e-5
# Of the shifted grid: steps are 3 times smaller at the noise than they would be, and larger at the data.
_SHIFT = 3.0


class SolverTable(NamedTuple):
    """A solver on a grid, as one row per evaluation of the velocity; float32 [M] each.

    With v the velocity at x and `before` that of the evaluation before, an evaluation does
    x ← base + weight · v + previous_weight · before, and base ← x where `completes_step` is 1.

    Attributes:
      times: at which the velocity is evaluated, exactly these.
      weight, previous_weight, completes_step: as above.
    """

    times: np.ndarray
    weight: np.ndarray
    previous_weight: np.ndarray
    completes_step: np.ndarray


def to_training_time(uniform):
    """Uniform numbers in [0, 1) to training times in [1e-5, 1)."""
    return uniform * (1 - _EPSILON) + _EPSILON


def interpolate(data, noise, time):
    """z_t on the straight line: data and noise [..., D], time [...] → [..., D]."""
    time = time[..., None]
    return time * noise + (1 - time) * data


def velocity_target(data, noise):
    """The velocity of the straight line, noise − data: the same at every time."""
    return noise - data


def time_points(
    num_steps: int, time_grid: str | Sequence[Scalar] | np.ndarray = "uniform"
) -> Float[np.ndarray, "num_times"]:
    """The grid 1 = t_0 > … > t_N = 0, float64 [num_steps + 1].

    Args:
      num_steps: N ≥ 1.
      time_grid: "uniform"; "shifted", 3u / (1 + 2u), with small steps near the noise; "cosine",
        sin²(πu/2), with small steps at both ends; or the N + 1 times themselves.

    Raises:
      ValueError: an unknown name, no steps, or times that do not fall from 1 to 0.
    """
    if num_steps < 1:
        raise ValueError(f"num_flow_steps={num_steps} must be ≥ 1.")
    uniform = np.arange(num_steps, -1, -1) / num_steps
    if not isinstance(time_grid, str):
        times = np.asarray(time_grid, np.float64)
        if times.shape != (num_steps + 1,) or times[0] != 1 or times[-1] != 0 or not (np.diff(times) < 0).all():
            raise ValueError(
                f"time_grid must be one of {TIME_GRIDS}, or {num_steps + 1} times (num_flow_steps + 1) that fall "
                f"from 1 to 0, not {times.tolist() if times.size < 20 else times.shape}."
            )
        return times
    if time_grid == "uniform":
        return uniform
    if time_grid == "shifted":
        return _SHIFT * uniform / (1 + (_SHIFT - 1) * uniform)
    if time_grid == "cosine":
        times = np.sin(0.5 * np.pi * uniform) ** 2
        times[0] = 1.0
        return times
    raise ValueError(f"time_grid={time_grid!r} is not one of {TIME_GRIDS}, nor an array of times.")


def solver_table(
    solver: str, num_steps: int, time_grid: str | Sequence[Scalar] | np.ndarray = "uniform"
) -> SolverTable:
    """The `SolverTable` of a solver: N evaluations for N steps, with Heun 2N.

    Args:
      solver: "euler" (as published), "heun" or "adams_bashforth".
      num_steps, time_grid: as `time_points`.

    Raises:
      ValueError: an unknown solver; as `time_points`.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} is not one of {SOLVERS}.")
    points = time_points(num_steps, time_grid)
    times, h = points[:-1], np.diff(points)
    previous_weight, completes_step = np.zeros(num_steps), np.ones(num_steps)
    if solver == "heun":
        pairs = dict(
            times=(times, points[1:]),
            weight=(h, h / 2),
            previous_weight=(previous_weight, h / 2),
            completes_step=(1 - completes_step, completes_step),
        )
        rows = [np.stack(pairs[name], axis=1).reshape(-1) for name in SolverTable._fields]
    else:
        if solver == "adams_bashforth":
            previous_weight[1:] = -h[1:] * h[1:] / h[:-1] / 2
        rows = times, h - previous_weight, previous_weight, completes_step
    return SolverTable(*(np.asarray(row, np.float32) for row in rows))


def integrate(velocity, noise, table, prepare=lambda times: times, chunk=None):
    """Integrates from t = 1 to t = 0.

    Args:
      velocity: function of (z, element) → [..., D].
      noise: z at t = 1, float32 [..., D].
      table: a `SolverTable` of M evaluations.
      prepare: function of times [n] → pytree whose leaves have a leading axis n, whose elements
        `velocity` is given: what depends on time and not on z, for many times at once.
      chunk: times that `prepare` is given at once, to bound its memory; None: all M. The numbers
        do not depend on it.

    Returns:
      z at t = 0, float32 [..., D].
    """

    def evaluate(carry, row):
        x, base, before = carry
        element, table = row
        v = velocity(x, element).astype(jnp.float32)
        x = base + table.weight * v + table.previous_weight * before
        return (x, jnp.where(table.completes_step > 0, x, base), v), None

    def run(carry, table):
        return jax.lax.scan(evaluate, carry, (prepare(table.times), table))[0], None

    noise = noise.astype(jnp.float32)
    carry = noise, noise, jnp.zeros_like(noise)
    table = jax.tree.map(jnp.asarray, table)
    evaluations = table.times.shape[0]
    parts = -(-evaluations // (chunk or evaluations))
    if parts == 1:
        return run(carry, table)[0][0]
    size = -(-evaluations // parts)
    # Rows of zeros at the end leave x where it landed.
    padded = jax.tree.map(lambda a: jnp.pad(a, (0, parts * size - evaluations)).reshape(parts, size), table)
    return jax.lax.scan(run, carry, padded)[0][1]


def classifier_free_guidance(conditional, unconditional, scale):
    """v_null + g · (v_class − v_null)."""
    return unconditional + scale * (conditional - unconditional)


def guidance_scales(scale, schedule, num_columns):
    """Guidance per column, float32 [num_columns].

    Args:
      scale: g at the last column ("linear": 1 + (g − 1)(k + 1)/L at column k) or everywhere
        ("constant"); or g of every column, [num_columns], whatever the schedule.
      schedule: "linear" or "constant".
      num_columns: L.

    Raises:
      ValueError: an unknown schedule; another number of columns.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"guidance_schedule={schedule!r} is not one of {SCHEDULES}.")
    scale = jnp.asarray(scale, jnp.float32)
    if scale.ndim:
        if scale.shape != (num_columns,):
            raise ValueError(f"guidance_scale has shape {scale.shape}; expected a number, or [{num_columns}].")
        return scale
    if schedule == "constant":
        return jnp.full(num_columns, scale, jnp.float32)
    return 1 + (scale - 1) * jnp.arange(1, num_columns + 1, dtype=jnp.float32) / num_columns
