"""How a column's flow is integrated: modulations at every time or interpolated, steps one after another or at once."""

from collections.abc import Callable
import functools
from typing import Any

import flax.struct
import jax
from jax.typing import DTypeLike
from jaxtyping import Float

from eqjax import flow
from eqjax.generator import Modulations
from eqjax.sampling.interpolated_modulations import Interpolation, interpolate
from eqjax.sampling.parallel_steps import integrate_parallel
from eqjax.typing import AnyArray, Scalar


@flax.struct.dataclass
class Shortcuts:
    """Two ways to integrate the flow with fewer products, or with fewer evaluations that wait for each other.

    Attributes:
      window: evaluations that are computed at once; None: one after another.
      interpolation: from few times to those of all evaluations; None: modulations are computed at every time.
      tolerance: bound of the error of evaluations at once; None without them.
      gpu_kernels: kernels of columns whose evaluations follow each other, "plain", "fused", or "auto": where that pays;
        or the kinds of them that several processes agreed on, see `eqjax.generator.gpu_kernels.agree`.
    """

    window: int | None = flax.struct.field(pytree_node=False)
    interpolation: Interpolation | None
    tolerance: Scalar | None
    gpu_kernels: Any = flax.struct.field(pytree_node=False, default="plain")


def integrate(
    shortcuts: Shortcuts,
    velocity: Callable[[jax.Array, Modulations], jax.Array],
    noise: Float[AnyArray, "B D"],
    table: flow.SolverTable,
    modulations: Callable[[AnyArray], Modulations],
    chunk_size: int,
    dtype: DTypeLike,
    *,
    in_place: bool = False,
) -> tuple[Float[jax.Array, "B D"], Scalar]:
    """Integrates the flow of a column.

    Args:
      shortcuts: how.
      velocity: function of states [..., B, D] and modulations [..., R, …].
      noise: the states at t = 1.
      table: the flow solver.
      modulations: function of times [n] → modulations, leaves [n, R, …].
      chunk_size: times whose modulations are in memory at once, at most; with evaluations at once it is all of them.
      dtype: of the states that `velocity` receives one after another; sums are float32.
      in_place: gives `velocity` all modulations in memory and an index, see `flow.integrate`; one after another only.

    Returns:
      The states at t = 0, and how many evaluations waited for each other.
    """
    prepare, given = modulations, None
    if shortcuts.interpolation is not None:
        at_nodes, given = modulations(shortcuts.interpolation.nodes), shortcuts.interpolation.matrix
        prepare = functools.partial(interpolate, at_nodes=at_nodes)
    if shortcuts.window is None:
        latents = flow.integrate(velocity, noise, table, prepare, chunk_size, given, dtype, in_place=in_place)
        return latents, table.times.shape[0]
    assert shortcuts.tolerance is not None
    prepared = prepare(table.times if given is None else given)
    return integrate_parallel(velocity, noise, table, prepared, shortcuts.window, shortcuts.tolerance)
