"""Names for types that annotations share. Array shapes are written in the style of jaxtyping."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import ml_collections

if TYPE_CHECKING:
    from eqjax.array_types import AnyArray, Metrics, PRNGKey, Scalar

__all__ = ["AnyArray", "Config", "Metrics", "PRNGKey", "Params", "Record", "Scalar", "StateDict", "Tree"]

# A tree of parameters (or gradients, moments, EMA weights): nested dicts with arrays as leaves.
Params: TypeAlias = Mapping[str, Any]
# What jax.jit accepts: containers with arrays as leaves.
Tree: TypeAlias = Any
# One example of a data set: names to arrays, such as {"image": uint8 [H, W, 3], "label": int}.
Record: TypeAlias = dict[str, Any]
# A PyTorch state_dict: flat names to arrays, or to anything else with a shape (jax.ShapeDtypeStruct, say).
StateDict: TypeAlias = Mapping[str, Any]
# A configuration, or a part of one. Its fields are made at run time, so type checkers cannot know them.
if TYPE_CHECKING:
    Config: TypeAlias = Any
else:
    Config: TypeAlias = ml_collections.ConfigDict


def __getattr__(name: str) -> Any:
    # Configurations are read and printed without waiting for JAX.
    if name in __all__:
        from eqjax import array_types

        return getattr(array_types, name)
    raise AttributeError(f"module 'eqjax.typing' has no attribute {name!r}")
