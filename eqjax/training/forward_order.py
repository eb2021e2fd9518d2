"""The order in which the submodules of a model compute, to find the first one that is not finite."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


def forward_order(function: Callable[..., Any], *args: Any) -> list[str]:
    """Returns the paths of the submodules that a function calls, in the order in which their last calls return.

    A module comes after its parts. Nothing is computed.

    Args:
      function: calls flax modules; traced.
      *args: arrays or jax.ShapeDtypeStruct.

    Example:
      >>> dense = nn.Sequential([nn.Dense(2), nn.Dense(3)])
      >>> forward_order(lambda key: dense.init(key, jax.numpy.zeros(2)), jax.random.key(0))
      ['layers_0', 'layers_1', '']
    """
    order: dict[str, None] = {}

    def record(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        result = call(*args, **kwargs)
        if context.method_name == "__call__":
            path = "/".join(context.module.path)
            order.pop(path, None)
            order[path] = None
        return result

    with nn.intercept_methods(record):
        jax.eval_shape(function, *args)
    return list(order)
