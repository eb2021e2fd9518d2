"""Small models with random weights, for the tests of sampling: three classes, and windows of three columns."""

import functools
from typing import Any

from eqjax import Generator, Model, Tokenizer
from tests.random_params import random_params

CLASS_NAMES = ("cat", "dog", "eel")


def _tokenizer(**fields: Any) -> Tokenizer:
    """Returns a tokenizer for images 16 pixels high with columns of 2 pixels, as published but for `fields`."""
    return Tokenizer(
        channels=8, channel_multipliers=(1, 1), num_res_blocks=1, attention_resolutions=(), resolution=16, z_channels=2,
        embed_dim=4, **fields,
    )  # fmt: skip


def _model(tokenizer: Tokenizer, **fields: Any) -> Model:
    small: Any = dict(
        width=16, depth=2, num_heads=2, latent_dim=4, num_classes=3, num_cond_tokens=2, window_size=3, flow_width=8,
        flow_depth=1,
    )  # fmt: skip
    generator = Generator(**{**small, **fields})
    return Model(tokenizer, random_params(tokenizer), generator, random_params(generator, gain=1.5), 0.5, CLASS_NAMES)


@functools.cache
def local_model(**generator_fields: Any) -> Model:
    """Returns a model whose tokenizer has limited reach (`halo_columns` is a number)."""
    return _model(_tokenizer(norm="pixel", attention_window=0), **generator_fields)


@functools.cache
def published_model() -> Model:
    """Returns a model whose tokenizer, like the published one, sees whole images (`halo_columns` is None)."""
    return _model(_tokenizer())
