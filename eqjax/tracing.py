"""Tells what JAX traces, without importing it."""

import sys
from typing import Any


def is_traced(value: Any) -> bool:
    """Returns whether `jax.jit` (or another transformation) traces a value, so that only its shape is known."""
    jax = sys.modules.get("jax")  # Without it nothing is traced.
    return jax is not None and isinstance(value, jax.core.Tracer)


def is_tracing(*values: Any) -> bool:
    """Returns whether JAX traces the function that runs now, or an array in a tree of `values`."""
    jax = sys.modules.get("jax")
    if jax is None:
        return False
    # Inside of jax.jit new arrays are traced too, other transformations trace their arguments alone.
    return any(map(is_traced, jax.tree.leaves((values, jax.numpy.zeros(())))))
