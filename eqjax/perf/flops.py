"""FLOPs of a traced function: matrix products and convolutions, loops unrolled."""

import math

import jax
from jax.interpreters import partial_eval


def count(function, *args):
    """FLOPs of the products in a function, two for a multiplication and an addition.

    XLA's own analysis counts the body of a loop once, and generators loop over their layers; this walks
    through the trace, without what nothing depends on, as the compiler leaves it out too. Everything else
    (norms, softmax, optimizer) is not counted, as is usual for utilization; of branches the longest is.

    Args:
      function: anything JAX can trace; products of all devices together are counted.
      *args: arrays or jax.ShapeDtypeStruct.

    Returns:
      A number.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(used)


def _count(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            # Dilated inputs, of gradients of strided convolutions, are zeros but for one in so many.
            zeros = math.prod(equation.params["lhs_dilation"])
            total += 2 * equation.outvars[0].aval.size * math.prod(kernel) // (out_channels * zeros)
        else:
            inner = [_count(part) for part in _parts(equation)]
            if name == "cond":
                total += max(inner)
            else:
                total += sum(inner) * (equation.params["length"] if name == "scan" else 1)
    return total


def _parts(equation):
    """The jaxprs inside an equation: of loops, branches, calls."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
