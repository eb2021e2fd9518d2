"""A tiny tokenizer, and data configurations with and without its cache."""

from typing import Any

from eqjax import pretrained
from eqjax.data import default_config
from eqjax.tokenizer import Tokenizer
from tests.random_params import random_params

# 200 images with 4 variants in 3 shards.
OPTIONS: dict[str, Any] = dict(num_crops=2, shard_size=80, batch_size=30, seed=3)


def image_config():
    """100 records of each of two photographs, 16 × 24 pixels: 6 columns."""
    config = default_config()
    config.update(height=16, width=24, num_threads=2, classes=("brick", "coffee"), min_scale=0.5)
    return config


def cache_config(config, root, **fields):
    """The same data, read from a cache."""
    config = config.copy_and_resolve_references()
    config.update(source="latents", root=str(root), **fields)
    return config


def make_weights():
    """A tokenizer with columns of 4 pixels and 8 latent channels."""
    tokenizer = Tokenizer(
        channels=8,
        channel_multipliers=(1, 2, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        resolution=16,
        z_channels=8,
        embed_dim=8,
        square_downsamples=2,
    )
    return pretrained.Weights({"tokenizer": tokenizer}, {"tokenizer": random_params(tokenizer)}, latent_scale=0.4)
