"""Rectified flow along straight lines, solvers that integrate it, and classifier-free guidance.

    z_t = t · noise + (1 − t) · data,      velocity = dz_t/dt = noise − data,      t in [0, 1].

Time runs from data at t = 0 to noise at t = 1; sampling integrates from 1 down to 0 on a grid
1 = t_0 > t_1 > … > t_N = 0, with h_n = t_{n+1} − t_n < 0 and v_n the velocity at (z_n, t_n):

    euler             z_{n+1} = z_n + h_n v_n                                        order 1
    heun              p = z_n + h_n v_n,  z_{n+1} = z_n + h_n (v_n + v(p, t_{n+1})) / 2    order 2
    adams_bashforth   z_{n+1} = z_n + h_n ((1 + r/2) v_n − r/2 v_{n−1}),  r = h_n / h_{n−1}    order 2

Heun evaluates the velocity twice per step, the others once (Adams–Bashforth begins with an Euler step).

Classifier-free guidance extrapolates from the unconditional velocity: v = v_null + g · (v_class − v_null).

Letters: N steps, M evaluations of the velocity, L columns, D latent size.

Source: Flow Straight and Fast, arXiv 2209.03003, section 2; classifier-free diffusion guidance,
arXiv 2207.12598, section 3; the schedule over columns: arXiv 2503.18948, section 3.3; solvers: Hairer,
Nørsett, Wanner, Solving Ordinary Differential Equations I, sections II.1 and III.5; the shifted grid:
arXiv 2403.03206, section 5.3.2.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float
import numpy as np

from eqjax.messages import show
from eqjax.module_fields import SAMPLING
from eqjax.tracing import is_tracing
from eqjax.typing import AnyArray, Scalar, Tree

# A grid by its name, or its times.
TimeGrid: TypeAlias = str | Sequence[Scalar] | np.ndarray

# Training times are mapped into [ε, 1): at 0 there is no noise left to remove.
_EPSILON = 1e-5
# Shift of the "shifted" grid: its steps are up to 3 times smaller near the noise, and larger near the data.
_SHIFT = 3.0


class SolverTable(NamedTuple):
    """A solver on a time grid: one row per evaluation of the velocity, float32.

    An evaluation computes the velocity v at (x, time) and updates
    x ← step_start + weight · v + previous_weight · v_previous, with v_previous the velocity of the evaluation
    before. Where `completes_step` is 1, step_start ← x follows; where it is 0, `previous_weight` is 0.

    Attributes:
      times: times of the evaluations.
      weight: weights of the velocity.
      previous_weight: weights of the previous velocity.
      completes_step: 1 where an evaluation ends a step, else 0.
    """

    times: Float[AnyArray, "M"]
    weight: Float[AnyArray, "M"]
    previous_weight: Float[AnyArray, "M"]
    completes_step: Float[AnyArray, "M"]


def to_training_time(uniforms: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
    """Maps uniforms in [0, 1) to training times in [1e-5, 1)."""
    return uniforms * (1 - _EPSILON) + _EPSILON


def interpolate(
    data: Float[AnyArray, "*#batch D"], noise: Float[AnyArray, "*#batch D"], time: Float[AnyArray, "*#batch"]
) -> Float[AnyArray, "..."]:
    """Returns z_t = t · noise + (1 − t) · data, [..., D]."""
    time = time[..., None]
    return time * noise + (1 - time) * data


def velocity_target(data: Float[AnyArray, "*#batch D"], noise: Float[AnyArray, "*#batch D"]) -> Float[AnyArray, "..."]:
    """Returns the velocity of the straight line, noise − data; it is the same at every time."""
    return noise - data


def time_points(num_steps: int, time_grid: TimeGrid = "uniform") -> Float[np.ndarray, "num_times"]:
    """Returns the grid 1 = t_0 > … > t_N = 0, float64 [N + 1].

    Args:
      num_steps: N ≥ 1.
      time_grid: "uniform"; "shifted", 3u / (1 + 2u), with small steps near the noise; "cosine",
        sin²(πu/2), with small steps at both ends; or N + 1 times that fall from 1 to 0.

    Raises:
      ValueError: the name is unknown, there are no steps, or the times do not fall from 1 to 0.

    Example:
      >>> time_points(2, "shifted").tolist()
      [1.0, 0.75, 0.0]
    """
    num_steps = SAMPLING["num_flow_steps"].rule.check("num_flow_steps", num_steps)
    time_grid = SAMPLING["time_grid"].rule.check("time_grid", time_grid)
    if not isinstance(time_grid, str):
        times = np.asarray(time_grid, np.float64)
        if times.shape != (num_steps + 1,) or times[0] != 1 or times[-1] != 0 or not (np.diff(times) < 0).all():
            raise ValueError(
                f"time_grid={show(time_grid)} must have {num_steps + 1} times (num_flow_steps + 1) that fall from 1 "
                "to 0."
            )
        return times
    uniform = np.arange(num_steps, -1, -1) / num_steps
    if time_grid == "uniform":
        return uniform
    if time_grid == "shifted":
        return _SHIFT * uniform / (1 + (_SHIFT - 1) * uniform)
    times = np.sin(0.5 * np.pi * uniform) ** 2  # cosine
    times[0] = 1.0
    return times


def solver_table(solver: str, num_steps: int, time_grid: TimeGrid = "uniform") -> SolverTable:
    """Returns the table of a solver: M = N evaluations for N steps, with Heun 2N.

    Args:
      solver: "euler" (as published), "heun" or "adams_bashforth".
      num_steps: N ≥ 1.
      time_grid: the name of a grid, or N + 1 times, see `time_points`.

    Raises:
      ValueError: the solver or the grid is unknown, or there are no steps.

    Example:
      >>> solver_table("heun", 1).times.tolist()
      [1.0, 0.0]
    """
    SAMPLING["solver"].rule.check("solver", solver)
    points = time_points(num_steps, time_grid)
    times, h = points[:-1], np.diff(points)
    previous_weight, completes_step = np.zeros(num_steps), np.ones(num_steps)
    if solver == "heun":
        table = SolverTable(
            times=_alternate(times, points[1:]),
            weight=_alternate(h, h / 2),
            previous_weight=_alternate(previous_weight, h / 2),
            completes_step=_alternate(1 - completes_step, completes_step),
        )
    else:
        if solver == "adams_bashforth":
            previous_weight[1:] = -h[1:] * h[1:] / h[:-1] / 2
        table = SolverTable(times, h - previous_weight, previous_weight, completes_step)
    return SolverTable(*(np.asarray(row, np.float32) for row in table))


def _alternate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Interleaves two arrays: first[0], second[0], first[1], second[1] and so on."""
    return np.stack([first, second], axis=1).reshape(-1)


def integrate(
    velocity: Callable[[jax.Array, Tree], jax.Array],
    noise: Float[AnyArray, "*batch D"],
    table: SolverTable,
    prepare: Callable[[Any], Tree] = lambda times: times,
    chunk_size: int | None = None,
    prepare_from: Tree | None = None,
    dtype: DTypeLike = jnp.float32,
    *,
    in_place: bool = False,
) -> Float[jax.Array, "*batch D"]:
    """Integrates the flow from t = 1 to t = 0; states are summed in float32.

    Args:
      velocity: function of (z, prepared) → [..., D].
      noise: z at t = 1.
      table: a `SolverTable` of M evaluations.
      prepare: function of times [n] → pytree of leaves [n, …]. It computes the terms that do not depend on z, for
        many times at once; `velocity` receives one element of it.
      chunk_size: times per call of `prepare`, at most, to bound its memory; None: all M. It does not change the
        result.
      prepare_from: leaves [M, …] of which `prepare` receives n rows instead of the times; None: the times.
      dtype: of the states that `velocity` receives.
      in_place: gives `velocity` (all that `prepare` returned, index [1]) in the place of one element of it, so that it
        can read that where it is.

    Returns:
      z at t = 0, float32.
    """

    # Between evaluations there are the state and the part of the next state that is known before the next velocity.
    def evaluate(carry, row):
        z, known = carry
        prepared, (_, weight, next_weight, completes_step) = row
        v = velocity(z, prepared).astype(jnp.float32)
        x = known + weight * v
        return (x.astype(dtype), jnp.where(completes_step > 0, x, known) + next_weight * v), None

    def integrate_chunk(carry, rows):
        table, given = rows
        prepared = prepare(table.times if given is None else given)
        if not in_place:
            return jax.lax.scan(evaluate, carry, (prepared, table))[0], None

        # The index is carried: GPUs copy a row of a table outside of their command buffers.
        def step(carry, row):
            index, states = carry
            return (index + 1, evaluate(states, ((prepared, index), row))[0]), None

        return jax.lax.scan(step, (jnp.zeros(1, jnp.int32), carry), table)[0][1], None

    noise = jnp.asarray(noise, jnp.float32)
    carry = noise.astype(dtype), noise
    table = jax.tree.map(jnp.asarray, table)
    # Each evaluation adds what its velocity contributes to the next state too.
    table = table._replace(previous_weight=jnp.append(table.previous_weight[1:], jnp.zeros_like(table.weight[:1])))
    rows = table, jax.tree.map(jnp.asarray, prepare_from)
    evaluations = table.times.shape[0]
    num_chunks = -(-evaluations // (chunk_size or evaluations))
    if num_chunks == 1:
        return integrate_chunk(carry, rows)[0][1]
    size = -(-evaluations // num_chunks)

    def pad(a):
        widths = [(0, num_chunks * size - evaluations)] + [(0, 0)] * (a.ndim - 1)
        return jnp.pad(a, widths).reshape(num_chunks, size, *a.shape[1:])

    # Rows of zeros pad the last chunk; they change nothing.
    padded = jax.tree.map(pad, rows)
    return jax.lax.scan(integrate_chunk, carry, padded)[0][1]


def classifier_free_guidance(
    conditional: Float[AnyArray, "..."] | float, unconditional: Float[AnyArray, "..."] | float, scale: Scalar
) -> Float[AnyArray, "..."] | float:
    """Returns v_null + g · (v_class − v_null), for the scale g."""
    return unconditional + scale * (conditional - unconditional)


def guidance_scales(scale: Scalar | Sequence[Scalar], schedule: str, num_columns: int) -> Float[AnyArray, "L"]:
    """Returns the guidance scale of every column, float32; on the host, unless JAX traces.

    Args:
      scale: g at the last column ("linear": 1 + (g − 1)(k + 1)/L at column k) or everywhere
        ("constant"); or the scale of every column, [L], whatever the schedule.
      schedule: "linear" or "constant".
      num_columns: L.

    Raises:
      ValueError: the schedule is unknown, or there are scales for another number of columns.

    Example:
      >>> guidance_scales(5.0, "linear", 4).tolist()
      [2.0, 3.0, 4.0, 5.0]
    """
    SAMPLING["guidance_schedule"].rule.check("guidance_schedule", schedule)
    # JAX would compile programs for every number of columns.
    xp = jnp if is_tracing(scale) else np
    scales = xp.asarray(scale, xp.float32)
    if scales.ndim:
        if scales.shape != (num_columns,):
            raise ValueError(f"guidance_scale has shape {scales.shape}; expected a number, or [{num_columns}].")
        return scales
    if schedule == "constant":
        return xp.full(num_columns, scales, xp.float32)
    return linear_scales(scales, xp.arange(1, num_columns + 1, dtype=xp.float32), num_columns)


def linear_scales(scale: Float[AnyArray, ""], columns: Float[AnyArray, "n"], num_columns: int) -> Float[AnyArray, "n"]:
    """Returns 1 + (g − 1) k/L, the "linear" guidance scale of some columns.

    Args:
      scale: g, float32.
      columns: k, columns up to and including each one, from 1 on.
      num_columns: L.

    Example:
      >>> linear_scales(np.asarray(5, np.float32), np.float32([1, 4]), 4).tolist()
      [2.0, 5.0]
    """
    # XLA divides by a constant like this, and NumPy must round alike.
    return 1 + (scale - 1) * columns * (np.float32(1) / np.float32(num_columns))
