"""The flow head's modulations at a few times, interpolated to the times of all steps.

Modulations depend on time through sinusoids whose angles are at most 1 (`flow_head.time_features`) and through smooth
layers behind them, so a polynomial of a low degree follows them closely. Computed at K Chebyshev times instead of at
all M times of a solver, they cost K/M of the products; the interpolation is a single product with a matrix [M, K].

Letters: K Chebyshev times, M evaluations of the flow head, R rows.

Source: Barycentric Lagrange Interpolation, J.-P. Berrut and L. N. Trefethen, SIAM Review 46 (2004), sections 3 and 5.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from eqjax.generator import Modulations
from eqjax.typing import AnyArray


class Interpolation(NamedTuple):
    """Interpolation from Chebyshev times to the times of a solver.

    Attributes:
      nodes: Chebyshev times.
      matrix: weights of the nodes at every time of the solver; each row sums to 1.
    """

    nodes: Float[AnyArray, "K"]
    matrix: Float[AnyArray, "M K"]


def check_saves(modulation_times: int, evaluations: int) -> None:
    """Checks that there are fewer times at which modulations are computed than those at which they are needed.

    Args:
      modulation_times: K.
      evaluations: M.

    Raises:
      ValueError: there are not.
    """
    if modulation_times >= evaluations:
        raise ValueError(
            f"modulation_times={modulation_times} saves nothing: the solver evaluates the flow head {evaluations} "
            f"times per column; give fewer than {evaluations}, or leave modulation_times out."
        )


def interpolation(times: Float[np.ndarray, "M"], num_nodes: int) -> Interpolation:
    """Returns the polynomial interpolation from K Chebyshev times, both ends of the interval included.

    It is computed in float64, and rounded to float32 at the end.

    Args:
      times: times of a solver.
      num_nodes: K ≥ 2.

    Example:
      >>> found = interpolation(np.linspace(0, 1, 5, dtype=np.float32), 3)
      >>> found.nodes.tolist(), (found.matrix @ found.nodes**2).tolist()
      ([0.0, 0.5, 1.0], [0.0, 0.0625, 0.25, 0.5625, 1.0])
    """
    exact = np.asarray(times, np.float64)
    low, high = exact.min(), exact.max()
    unit = (1 - np.cos(np.pi * np.arange(num_nodes) / (num_nodes - 1))) / 2
    nodes = np.asarray(low + (high - low) * unit, np.float32).astype(np.float64)  # Those at which values are computed.
    weights = (-1.0) ** np.arange(num_nodes)
    weights[[0, -1]] /= 2
    distance = exact[:, None] - nodes
    at_node = distance == 0
    terms = np.where(at_node.any(1, keepdims=True), at_node, weights / np.where(at_node, 1, distance))
    matrix = terms / terms.sum(1, keepdims=True)
    return Interpolation(nodes.astype(np.float32), matrix.astype(np.float32))


def interpolate(rows: Float[AnyArray, "n K"], at_nodes: Modulations) -> Modulations:
    """Returns modulations at times from those at the nodes, in their dtype.

    Args:
      rows: rows of the matrix of an `Interpolation`.
      at_nodes: modulations at its nodes, leaves [K, R, …].
    """

    def apply(values: Float[jax.Array, "K ..."]) -> Float[jax.Array, "n ..."]:
        # Weights of interpolation have to be exact, whatever the precision of the model: they have both signs.
        found = jnp.einsum("nk,k...->n...", jnp.asarray(rows), values.astype(jnp.float32), precision="highest")
        return found.astype(values.dtype)

    interpolated: Any = jax.tree.map(apply, at_nodes)
    return interpolated
