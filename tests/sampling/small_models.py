"""Small random models for the tests of sampling."""

import functools

from eqjax import Generator, Model, Tokenizer
from tests.random_params import random_params


def tokenizer(**kwargs):
    """16 pixels high, columns of 2 pixels."""
    return Tokenizer(
        channels=8, channel_multipliers=(1, 1), num_res_blocks=1, attention_resolutions=(), resolution=16, z_channels=2,
        embed_dim=4, **kwargs,
    )  # fmt: skip


@functools.cache
def model(strict, **changes):
    """Tokenizer and generator of 3 classes; a window of 3 columns."""
    coder = tokenizer(norm="pixel", attention_window=0) if strict else tokenizer()
    fields = dict(
        width=16, depth=2, num_heads=2, latent_dim=4, num_classes=3, num_cond_tokens=2, window_size=3, flow_width=8,
        flow_depth=1,
    )  # fmt: skip
    generator = Generator(**{**fields, **changes})
    return Model(coder, random_params(coder), generator, random_params(generator, gain=1.5), 0.5, ("cat", "dog", "eel"))
