"""Counts the FLOPs of a function from its jaxpr: matrix products and convolutions, with loops unrolled."""

from collections.abc import Callable, Iterator
import math
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn
from jax.interpreters import partial_eval


def count(function: Callable[..., Any], *args: Any) -> int:
    """Counts the FLOPs of the products in a function: two for a multiplication and an addition.

    XLA's cost analysis counts the body of a loop once, and generators loop over their layers. This walks
    the jaxpr after dead-code elimination, as XLA would. Everything but products (norms, softmax, optimizer)
    is left out, as is usual for utilization. A conditional counts as its most expensive branch.

    Args:
      function: any function that JAX can trace. Products of all devices together are counted.
      *args: its arguments, arrays or jax.ShapeDtypeStruct.

    Returns:
      The number of FLOPs.

    Example:
      >>> count(lambda a, b: a @ b, jax.ShapeDtypeStruct((4, 8), "float32"), jax.ShapeDtypeStruct((8, 6), "float32"))
      384
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    # The public API traces and compiles, but does not expose dead-code elimination of a jaxpr.
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count_jaxpr(used)


def _count_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    params, name = equation.params, equation.primitive.name
    inputs: list[Any] = [variable.aval for variable in equation.invars]  # Shaped arrays, for products.
    outputs: list[Any] = [variable.aval for variable in equation.outvars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * outputs[0].size * math.prod(inputs[0].shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = inputs[1].shape
        out_channels = kernel[params["dimension_numbers"].rhs_spec[0]]
        # Gradients of strided convolutions dilate their input: only one value in so many is not zero.
        dilation = math.prod(params["lhs_dilation"])
        return 2 * outputs[0].size * math.prod(kernel) // (out_channels * dilation)
    if name == "pallas_call":  # Its body is one tile of many, some of them not full.
        return params["cost_estimate"].flops
    inner = [_count_jaxpr(jaxpr) for jaxpr in _inner_jaxprs(equation)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yields the jaxprs inside an equation: bodies of loops, branches and called functions."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if isinstance(jaxpr, Jaxpr):
                yield jaxpr
