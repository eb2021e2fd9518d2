"""A model and a feature network small enough for tests."""

import jax
import jax.numpy as jnp
import numpy as np

from eqjax import Generator, Model, Tokenizer
from eqjax.evaluation import FeatureNetwork
from tests.random_params import random_params

PROTOCOL = {"network": "tiny", "resize": "none"}


def model(classes=3):
    tokenizer = Tokenizer(
        channels=8,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        attention_resolutions=(),
        resolution=16,
        z_channels=4,
        embed_dim=6,
        patch_size=4,
        square_downsamples=0,
        norm="pixel",
        attention_window=1,
    )
    generator = Generator(
        width=16,
        depth=1,
        num_heads=2,
        latent_dim=6,
        num_classes=classes,
        num_cond_tokens=2,
        window_size=2,
        flow_width=16,
        flow_depth=1,
    )
    return Model(tokenizer, random_params(tokenizer, 0), generator, random_params(generator, 1), 1.0, None)


def network():
    """Features that depend on every pixel: a random projection, through a tanh."""
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=(8 * 8 * 3, size)).astype("f4") for name, size in SIZES.items()}

    def apply(params, images):
        small = jax.image.resize(images.astype(jnp.float32) / 127.5 - 1, (len(images), 8, 8, 3), "linear")
        flat = small.reshape(len(images), -1)
        return {name: jnp.tanh(flat @ matrix / 8) for name, matrix in params.items()}

    return FeatureNetwork(apply, params, PROTOCOL)


SIZES = {"pool": 5, "logits": 7, "spatial": 4}
