"""Converts weights between the reference's names and Flax trees, strictly and in both directions.

Reference names occur in this package alone.
"""

from eqjax.convert.checkpoint import (
    ema_tokenizer_state_dict,
    full_tokenizer_state_dict,
    pick_weights,
    published_checkpoint,
    raw_tokenizer_state_dict,
    read_reference,
)
from eqjax.convert.discriminator import discriminator_variables
from eqjax.convert.infer import infer_generator_config, infer_tokenizer_config
from eqjax.convert.networks import (
    dino_params,
    dinov2_params,
    frozen_shapes,
    inception_params,
    lpips_params,
    unused_in_frozen,
)
from eqjax.convert.rules import ConversionError, check_shapes
from eqjax.convert.state_dicts import generator_params, generator_state_dict, tokenizer_params, tokenizer_state_dict

__all__ = [
    "ConversionError",
    "check_shapes",
    "dino_params",
    "dinov2_params",
    "discriminator_variables",
    "ema_tokenizer_state_dict",
    "frozen_shapes",
    "full_tokenizer_state_dict",
    "generator_params",
    "generator_state_dict",
    "inception_params",
    "infer_generator_config",
    "infer_tokenizer_config",
    "lpips_params",
    "pick_weights",
    "published_checkpoint",
    "raw_tokenizer_state_dict",
    "read_reference",
    "tokenizer_params",
    "tokenizer_state_dict",
    "unused_in_frozen",
]
