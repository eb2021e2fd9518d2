r"""Comparisons of small tokenizers and generators, trained on the built-in photographs with several seeds each.

    eqjax analyze comparison --config=comparison --output=outputs/comparison
    eqjax analyze comparison --config=comparison:equivariance --output=outputs/comparison_equivariance

Images are 32 pixels high, columns 8 pixels wide. By default tokenizers as published and strictly equivariant, and on
each a generator with a window of 3 columns and one with full causal attention.

Variants (`--config=comparison:name`, several joined by commas):
  equivariance  tokenizers strict, strict and anchored at the image's strongest phase, as published, alias-free, and
                trained with the implicit loss; generators with a window of 3 columns, with and without the index in
                cross-attention
  tiny          a few steps of very small models, to see that everything runs
"""

import ml_collections

from eqjax.cli.comparison_config import comparison_config
from eqjax.config_files import parse_variant
from eqjax.typing import Config

# What makes a tokenizer strictly equivariant to shifts by whole columns.
_STRICT = {"norm": "pixel", "attention_window": 1}

# Half of the steps compare images that are mirrored, half as wide, or both, with decoded latents that are.
_IMPLICIT = {"implicit_probability": 0.5, "transforms": ("scale", "flip"), "scales": ("1/2", "1")}


def get_config(variant: str | None = None) -> Config:
    """Returns the configuration of a variant; the module's docstring lists them."""
    args = parse_variant(variant, equivariance=False, tiny=False)
    config = comparison_config()
    config.training = ml_collections.ConfigDict(
        {
            "batch_size": 16,
            "data": {"height": 32, "min_scale": 0.25, "max_scale": 0.6},
            "tokenizer": {
                "patch_size": 4,
                "channels": 32,
                "channel_multipliers": (1, 1),
                "refine_channels": None,
                "resolution": 32,
                "z_channels": 16,
                "embed_dim": 32,
                # As in the published tokenizer, the lowest level attends, globally or within the window of its style.
                "attention_resolutions": (4,),
            },
        }
    )
    config.tokenizers = {"published": {}, "strict": {"tokenizer": _STRICT}}
    config.generator = ml_collections.ConfigDict(
        {"width": 96, "depth": 2, "num_heads": 4, "num_cond_tokens": 4, "flow_width": 96, "flow_depth": 2}
        | {"dropout_rate": 0.0}
    )
    config.generators = {"window 3": {"window_size": 3}, "full causal": {"window_size": None}}
    if args["equivariance"]:
        config.update(tokenizer_steps=500, generator_steps=500, gradients=False)
        config.anchored = ("strict",)
        config.tokenizers = {
            "strict": {"tokenizer": _STRICT},
            "published": {},
            "alias-free": {"tokenizer": _STRICT | {"resample": "kaiser"}},
            "implicit": {"tokenizer": _STRICT, "objective": {"equivariance": _IMPLICIT}},
        }
        config.generators = {name: {"window_size": 3, "cross_rope": name == "index"} for name in ("index", "no index")}
    if args["tiny"]:
        config.update(num_seeds=2, num_columns=6, num_batches=2, num_train_images=32, num_samples=96)
        config.update(tokenizer_steps=2, generator_steps=2)
        config.generator.update(width=16, flow_width=16, flow_depth=1)
    return config
