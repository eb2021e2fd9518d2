"""Names for types that annotations share. Array shapes are written in the style of jaxtyping."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
from jaxtyping import Key
import ml_collections
import numpy as np

# An array on a device or on the host; functions that take one convert it themselves.
AnyArray: TypeAlias = jax.Array | np.ndarray
# A scalar of the host, or an array with no axes (a traced one, say).
Scalar: TypeAlias = float | int | np.number | jax.Array | np.ndarray
# One typed random key, as jax.random.key makes it.
PRNGKey: TypeAlias = Key[jax.Array, ""]
# A tree of parameters (or gradients, moments, EMA weights): nested dicts with arrays as leaves.
Params: TypeAlias = Mapping[str, Any]
# What jax.jit accepts: containers with arrays as leaves.
Tree: TypeAlias = Any
# One example of a data set: names to arrays, such as {"image": uint8 [H, W, 3], "label": int}.
Record: TypeAlias = dict[str, Any]
# A PyTorch state_dict: flat names to arrays, or to anything else with a shape (jax.ShapeDtypeStruct, say).
StateDict: TypeAlias = Mapping[str, Any]
# Metrics by name: scalars, or vectors with one curve per entry.
Metrics: TypeAlias = Mapping[str, Scalar]
# A configuration, or a part of one. Its fields are made at run time, so type checkers cannot know them.
if TYPE_CHECKING:
    Config: TypeAlias = Any
else:
    Config: TypeAlias = ml_collections.ConfigDict
