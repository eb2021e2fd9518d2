"""Equivariance of images and their columns: transforms of both sides, and measures of how well a model obeys them.

A column autoencoder is equivariant to a transform T of images if encoding commutes with it, E(T x) = T' E(x), where T'
acts on columns, and so does decoding, D(T' z) = T D(z). Everything here takes such a pair of functions as a `Codec`:
that of a model (`model_codec`), or any other.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eqjax.equivariance.actions import Action, Warp, act_columns, act_image, compose, inverse, make_action
    from eqjax.equivariance.codecs import model_codec
    from eqjax.equivariance.crop_shifts import ShiftErrors, crop_shift_errors
    from eqjax.equivariance.footprints import (
        decoder_footprints,
        encoder_footprints,
        footprint_fractions,
        footprint_score,
    )
    from eqjax.equivariance.geometry import Codec, ColumnGeometry
    from eqjax.equivariance.groups import Group, flips, identity, product, scales, shifts, warps
    from eqjax.equivariance.index_shifts import IndexShiftErrors, index_shift_errors, sampler_shift_errors
    from eqjax.equivariance.latent_statistics import next_column_error, twonn_dimension
    from eqjax.equivariance.orbits import EquivarianceError, Orbit, measure_orbit
    from eqjax.equivariance.stereo import StereoPair, StereoReport, load_stereo_pair, stereo_report

# Imported at first use: the tokenizer's layers import modules from here, and some of these import the tokenizer.
_MODULES = {
    "Action": "actions",
    "Codec": "geometry",
    "ColumnGeometry": "geometry",
    "EquivarianceError": "orbits",
    "Group": "groups",
    "IndexShiftErrors": "index_shifts",
    "Orbit": "orbits",
    "ShiftErrors": "crop_shifts",
    "StereoPair": "stereo",
    "StereoReport": "stereo",
    "Warp": "actions",
    "act_columns": "actions",
    "act_image": "actions",
    "compose": "actions",
    "crop_shift_errors": "crop_shifts",
    "decoder_footprints": "footprints",
    "encoder_footprints": "footprints",
    "flips": "groups",
    "footprint_fractions": "footprints",
    "footprint_score": "footprints",
    "identity": "groups",
    "index_shift_errors": "index_shifts",
    "inverse": "actions",
    "load_stereo_pair": "stereo",
    "make_action": "actions",
    "measure_orbit": "orbits",
    "model_codec": "codecs",
    "next_column_error": "latent_statistics",
    "product": "groups",
    "sampler_shift_errors": "index_shifts",
    "scales": "groups",
    "shifts": "groups",
    "stereo_report": "stereo",
    "twonn_dimension": "latent_statistics",
    "warps": "groups",
}

__all__ = [
    "Action",
    "Codec",
    "ColumnGeometry",
    "EquivarianceError",
    "Group",
    "IndexShiftErrors",
    "Orbit",
    "ShiftErrors",
    "StereoPair",
    "StereoReport",
    "Warp",
    "act_columns",
    "act_image",
    "compose",
    "crop_shift_errors",
    "decoder_footprints",
    "encoder_footprints",
    "flips",
    "footprint_fractions",
    "footprint_score",
    "identity",
    "index_shift_errors",
    "inverse",
    "load_stereo_pair",
    "make_action",
    "measure_orbit",
    "model_codec",
    "next_column_error",
    "product",
    "sampler_shift_errors",
    "scales",
    "shifts",
    "stereo_report",
    "twonn_dimension",
    "warps",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'eqjax.equivariance' has no attribute {name!r}")
    return getattr(importlib.import_module(f"eqjax.equivariance.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
