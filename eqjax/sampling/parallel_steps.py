"""Steps of a flow solver computed at once, and corrected in sweeps until they agree: Picard iteration in time.

Every state of a solver is the first one plus a sum of weighted velocities (`flow.SolverTable`). A sweep evaluates the
velocities of a window of steps at once, at the states that the velocities of the sweep before give. After k sweeps the
first k states are those of the sequential solver, and far more are so nearly. States that have settled leave the window
in front, and the window moves on. The fixed point is the sequential solution, of any solver that is such a table.

So one column waits for as many evaluations one after another as there are sweeps, at most for those of the sequential
solver, and each works on a window of steps. That pays where a device waits for launches or for weights rather than for
arithmetic: a GPU or TPU and a few images.

A row's window moves by the row's own changes alone, so rows stay independent of each other.

Letters: B rows, P evaluations in the window, M evaluations in all, D latent size.

Source: Picard–Lindelöf iteration, Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, section I.8; the
moving window: Parallel Sampling of Diffusion Models, arXiv 2305.16317, section 3.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from eqjax.flow import SolverTable
from eqjax.typing import AnyArray, Scalar, Tree


class Window(NamedTuple):
    """The state between two sweeps.

    Attributes:
      first: index of the first evaluation in the window of each row; M: the row is done.
      x: state at that evaluation.
      step_start: state at the beginning of its step.
      previous_velocity: velocity of the evaluation before.
      velocities: velocities in the window, as far as they are known.
      sweeps: sweeps so far.
    """

    first: Int[jax.Array, "B"]
    x: Float[jax.Array, "B D"]
    step_start: Float[jax.Array, "B D"]
    previous_velocity: Float[jax.Array, "B D"]
    velocities: Float[jax.Array, "P B D"]
    sweeps: Int[jax.Array, ""]


def integrate_parallel(
    velocity: Callable[[jax.Array, Tree], jax.Array],
    noise: Float[AnyArray, "B D"],
    table: SolverTable,
    prepared: Tree,
    size: int,
    tolerance: Scalar,
) -> tuple[Float[jax.Array, "B D"], Int[jax.Array, ""]]:
    """Integrates the flow from t = 1 to t = 0, a window of evaluations at a time.

    A state is accepted if a sweep changed it, and those before it in the window, by less than its share of the
    tolerance: the fraction of all evaluations that lies between it and the last accepted one. Only forward derivatives
    can be taken of it, as the number of sweeps depends on the values.

    Args:
      velocity: function of (z [P, B, D], prepared [P, …]) → [P, B, D].
      noise: z at t = 1.
      table: a `SolverTable` of M evaluations.
      prepared: what `velocity` needs besides z at all evaluations, leaves [M, R, …] where R is B or a multiple of it.
      size: P, 1 … M.
      tolerance: bound of the root mean square difference from the sequential solution, over the channels of a row.

    Returns:
      z at t = 0, float32, and the number of sweeps.
    """
    table = jax.tree.map(jnp.asarray, table)
    evaluations = table.times.shape[0]

    def sweep(window: Window) -> Window:
        index = window.first[None] + jnp.arange(size)[:, None]  # [P, B]
        rows = _rows(table, index)
        states, _ = _states(rows, window, window.velocities)
        found = velocity(states[:-1], _take(prepared, jnp.minimum(index, evaluations - 1))).astype(jnp.float32)
        corrected, step_starts = _states(rows, window, found)
        change = jnp.sqrt(jnp.mean(jnp.square(corrected - states), axis=-1))[1:]  # [P, B]
        share = tolerance * (1 + jnp.arange(size, dtype=jnp.float32)) / evaluations
        settled = jnp.cumprod((change <= share[:, None]).astype(jnp.int32), axis=0).sum(0)  # [B]
        # The first state is exact after any sweep.
        moved = jnp.minimum(jnp.maximum(settled, 1), evaluations - window.first)
        known = jnp.concatenate([window.previous_velocity[None], found])  # [P + 1, B, D]
        # What enters the window continues in a straight line.
        shifted = jnp.minimum(moved[None] + 1 + jnp.arange(size)[:, None], size)
        return Window(
            window.first + moved,
            _pick(corrected, moved),
            _pick(step_starts, moved),
            _pick(known, moved),
            jax.vmap(lambda a, i: a[i], in_axes=1, out_axes=1)(known, shifted),
            window.sweeps + 1,
        )

    noise = jnp.asarray(noise, jnp.float32)
    zeros = jnp.zeros_like(noise)
    begin = Window(
        jnp.zeros(noise.shape[0], jnp.int32), noise, noise, zeros, jnp.zeros((size, *noise.shape)), jnp.int32(0)
    )
    end = jax.lax.while_loop(lambda window: (window.first < evaluations).any(), sweep, begin)
    return end.x, end.sweeps


def _rows(table: SolverTable, index: Int[jax.Array, "P B"]) -> SolverTable:
    """Returns rows of a table, leaves [P, B, 1]; those behind its end change nothing."""
    inside = index < table.times.shape[0]
    return SolverTable(*(jnp.where(inside, jnp.take(row, index, mode="clip"), 0)[..., None] for row in table))


def _states(
    rows: SolverTable, window: Window, velocities: Float[jax.Array, "P B D"]
) -> tuple[Float[jax.Array, "Q B D"], Float[jax.Array, "Q B D"]]:
    """Returns the states before and after every evaluation, and the beginnings of their steps; Q = P + 1."""
    before = jnp.concatenate([window.previous_velocity[None], velocities[:-1]])
    change = rows.weight * velocities + rows.previous_weight * before
    sums = jnp.cumsum(jnp.concatenate([window.step_start[None], rows.completes_step * change]), axis=0)
    return jnp.concatenate([window.x[None], sums[:-1] + change]), sums


def _take(tree: Tree, index: Int[jax.Array, "P B"]) -> Tree:
    """Returns the elements of each row at its own indices, of leaves [M, R, …], where R is a multiple of B."""

    def take(leaf: jax.Array) -> jax.Array:
        tiled = jnp.tile(index, (1, leaf.shape[1] // index.shape[1]))
        return jax.vmap(lambda a, i: a[i], in_axes=1, out_axes=1)(leaf, tiled)

    return jax.tree.map(take, tree)


def _pick(states: Float[jax.Array, "Q B D"], index: Int[jax.Array, "B"]) -> Float[jax.Array, "B D"]:
    """Returns one of the states of each row."""
    return jax.vmap(lambda a, i: a[i], in_axes=(1, 0))(states, index)
