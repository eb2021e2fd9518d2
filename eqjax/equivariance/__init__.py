"""Equivariance of images and their columns: transforms of both sides, and measures of how well a model obeys them.

A column autoencoder is equivariant to a transform T of images if encoding commutes with it, E(T x) = T' E(x), where T'
acts on columns, and so does decoding, D(T' z) = T D(z). Everything here takes such a pair of functions as a `Codec`:
that of a model (`model_codec`), or any other.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eqjax.equivariance.actions import Action, Warp, act_columns, act_image, compose, inverse, make_action
    from eqjax.equivariance.geometry import Codec, ColumnGeometry
    from eqjax.equivariance.groups import Group, flips, product, scales, shifts, warps

# Imported at first use: the tokenizer's layers import modules from here, and some of these import the tokenizer.
_MODULES = {
    "Action": "actions",
    "Codec": "geometry",
    "ColumnGeometry": "geometry",
    "Group": "groups",
    "Warp": "actions",
    "act_columns": "actions",
    "act_image": "actions",
    "compose": "actions",
    "flips": "groups",
    "inverse": "actions",
    "make_action": "actions",
    "product": "groups",
    "scales": "groups",
    "shifts": "groups",
    "warps": "groups",
}

__all__ = [
    "Action",
    "Codec",
    "ColumnGeometry",
    "Group",
    "Warp",
    "act_columns",
    "act_image",
    "compose",
    "flips",
    "inverse",
    "make_action",
    "product",
    "scales",
    "shifts",
    "warps",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'eqjax.equivariance' has no attribute {name!r}")
    return getattr(importlib.import_module(f"eqjax.equivariance.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
