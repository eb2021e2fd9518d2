"""The types of `eqjax.typing` that need JAX; import them from there."""

from collections.abc import Mapping
from typing import TypeAlias

import jax
from jaxtyping import Key
import numpy as np

# An array on a device or on the host; functions that take one convert it themselves.
AnyArray: TypeAlias = jax.Array | np.ndarray
# A scalar of the host, or an array with no axes (a traced one, say).
Scalar: TypeAlias = float | int | np.number | jax.Array | np.ndarray
# One typed random key, as jax.random.key makes it.
PRNGKey: TypeAlias = Key[jax.Array, ""]
# Metrics by name: scalars, or vectors with one curve per entry.
Metrics: TypeAlias = Mapping[str, Scalar]
