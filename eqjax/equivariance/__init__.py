"""Equivariance of images and their columns: transforms of both sides, and measures of how well a model obeys them.

A column autoencoder is equivariant to a transform T of images if encoding commutes with it, E(T x) = T' E(x), where T'
acts on columns, and so does decoding, D(T' z) = T D(z). Everything here takes such a pair of functions as a `Codec`:
that of a model (`model_codec`), or any other.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eqjax.equivariance.actions import Action, Warp, act_columns, act_image, compose, inverse, make_action
    from eqjax.equivariance.agreement import equivariance_score
    from eqjax.equivariance.canonicalize import CanonicalCodec, Canonicalizer, Chain, Code, FlipCanonicalizer
    from eqjax.equivariance.codecs import model_codec
    from eqjax.equivariance.column_retrieval import (
        StereoWindows,
        column_smooth_ap,
        load_stereo_windows,
        stereo_retrieval_loss,
    )
    from eqjax.equivariance.crop_shifts import ShiftErrors, crop_shift_errors
    from eqjax.equivariance.data_symmetries import Overlap, SymmetryCritic, measure_overlap
    from eqjax.equivariance.flip_layers import (
        FlipAutoencoder,
        FlipConv,
        FlipConvTranspose,
        FlipDense,
        flip_activation,
        flip_channels,
    )
    from eqjax.equivariance.footprints import (
        decoder_footprints,
        encoder_footprints,
        footprint_fractions,
        footprint_score,
    )
    from eqjax.equivariance.geometry import Codec, ColumnGeometry
    from eqjax.equivariance.groups import Group, flips, identity, product, scales, shifts, warps
    from eqjax.equivariance.index_shifts import IndexShiftErrors, index_shift_errors, sampler_shift_errors
    from eqjax.equivariance.latent_statistics import gaussian_flow_loss, next_column_error, twonn_dimension
    from eqjax.equivariance.learned import (
        LearnedCanonicalizer,
        ScoreNetwork,
        prior_loss,
        shift_flip_group,
        straight_through,
    )
    from eqjax.equivariance.orbits import EquivarianceError, Orbit, measure_orbit
    from eqjax.equivariance.polyphase import PolyphaseAnchor, anchor_consistency
    from eqjax.equivariance.regularizers import (
        CollapseGuard,
        ExplicitLosses,
        decoder_error,
        encoder_error,
        explicit_losses,
        implicit_loss,
        latent_spread,
        transformed_pair,
    )
    from eqjax.equivariance.stereo import StereoPair, StereoReport, load_stereo_pair, stereo_report
    from eqjax.equivariance.symmetrization import orbit_distance_loss, soft_shift, symmetrize
    from eqjax.equivariance.warp_fixed_point import WarpCanonicalizer

# Imported at first use: the tokenizer's layers import modules from here, and some of these import the tokenizer.
_MODULES = {
    "Action": "actions",
    "CanonicalCodec": "canonicalize",
    "Canonicalizer": "canonicalize",
    "Chain": "canonicalize",
    "Code": "canonicalize",
    "Codec": "geometry",
    "CollapseGuard": "regularizers",
    "ColumnGeometry": "geometry",
    "EquivarianceError": "orbits",
    "ExplicitLosses": "regularizers",
    "FlipAutoencoder": "flip_layers",
    "FlipCanonicalizer": "canonicalize",
    "FlipConv": "flip_layers",
    "FlipConvTranspose": "flip_layers",
    "FlipDense": "flip_layers",
    "Group": "groups",
    "IndexShiftErrors": "index_shifts",
    "LearnedCanonicalizer": "learned",
    "Orbit": "orbits",
    "Overlap": "data_symmetries",
    "PolyphaseAnchor": "polyphase",
    "ScoreNetwork": "learned",
    "ShiftErrors": "crop_shifts",
    "StereoPair": "stereo",
    "StereoReport": "stereo",
    "StereoWindows": "column_retrieval",
    "SymmetryCritic": "data_symmetries",
    "Warp": "actions",
    "WarpCanonicalizer": "warp_fixed_point",
    "act_columns": "actions",
    "act_image": "actions",
    "anchor_consistency": "polyphase",
    "column_smooth_ap": "column_retrieval",
    "compose": "actions",
    "crop_shift_errors": "crop_shifts",
    "decoder_error": "regularizers",
    "decoder_footprints": "footprints",
    "encoder_error": "regularizers",
    "encoder_footprints": "footprints",
    "equivariance_score": "agreement",
    "explicit_losses": "regularizers",
    "flip_activation": "flip_layers",
    "flip_channels": "flip_layers",
    "flips": "groups",
    "footprint_fractions": "footprints",
    "footprint_score": "footprints",
    "gaussian_flow_loss": "latent_statistics",
    "identity": "groups",
    "implicit_loss": "regularizers",
    "index_shift_errors": "index_shifts",
    "inverse": "actions",
    "latent_spread": "regularizers",
    "load_stereo_pair": "stereo",
    "load_stereo_windows": "column_retrieval",
    "make_action": "actions",
    "measure_orbit": "orbits",
    "measure_overlap": "data_symmetries",
    "model_codec": "codecs",
    "next_column_error": "latent_statistics",
    "orbit_distance_loss": "symmetrization",
    "prior_loss": "learned",
    "product": "groups",
    "sampler_shift_errors": "index_shifts",
    "scales": "groups",
    "shift_flip_group": "learned",
    "shifts": "groups",
    "soft_shift": "symmetrization",
    "stereo_report": "stereo",
    "stereo_retrieval_loss": "column_retrieval",
    "straight_through": "learned",
    "symmetrize": "symmetrization",
    "transformed_pair": "regularizers",
    "twonn_dimension": "latent_statistics",
    "warps": "groups",
}

__all__ = [
    "Action",
    "CanonicalCodec",
    "Canonicalizer",
    "Chain",
    "Code",
    "Codec",
    "CollapseGuard",
    "ColumnGeometry",
    "EquivarianceError",
    "ExplicitLosses",
    "FlipAutoencoder",
    "FlipCanonicalizer",
    "FlipConv",
    "FlipConvTranspose",
    "FlipDense",
    "Group",
    "IndexShiftErrors",
    "LearnedCanonicalizer",
    "Orbit",
    "Overlap",
    "PolyphaseAnchor",
    "ScoreNetwork",
    "ShiftErrors",
    "StereoPair",
    "StereoReport",
    "StereoWindows",
    "SymmetryCritic",
    "Warp",
    "WarpCanonicalizer",
    "act_columns",
    "act_image",
    "anchor_consistency",
    "column_smooth_ap",
    "compose",
    "crop_shift_errors",
    "decoder_error",
    "decoder_footprints",
    "encoder_error",
    "encoder_footprints",
    "equivariance_score",
    "explicit_losses",
    "flip_activation",
    "flip_channels",
    "flips",
    "footprint_fractions",
    "footprint_score",
    "gaussian_flow_loss",
    "identity",
    "implicit_loss",
    "index_shift_errors",
    "inverse",
    "latent_spread",
    "load_stereo_pair",
    "load_stereo_windows",
    "make_action",
    "measure_orbit",
    "measure_overlap",
    "model_codec",
    "next_column_error",
    "orbit_distance_loss",
    "prior_loss",
    "product",
    "sampler_shift_errors",
    "scales",
    "shift_flip_group",
    "shifts",
    "soft_shift",
    "stereo_report",
    "stereo_retrieval_loss",
    "straight_through",
    "symmetrize",
    "transformed_pair",
    "twonn_dimension",
    "warps",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'eqjax.equivariance' has no attribute {name!r}")
    return getattr(importlib.import_module(f"eqjax.equivariance.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
