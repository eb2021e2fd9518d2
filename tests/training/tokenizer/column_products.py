"""A tokenizer of one product per column and one back: it follows whole columns exactly, and compiles at once."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from eqjax.equivariance import ColumnGeometry, flips, product, scales, shifts, warps
from eqjax.tokenizer import Tokenizer
from eqjax.tokenizer.posterior import Posterior
from eqjax.tokenizer.tokenizer import Decoded
from eqjax.training.state import TokenizerState
from eqjax.training.tokenizer import Objective, TokenizerStep
from eqjax.training.tokenizer.regularization import Regularization
from tests.equivariance.toy_codecs import photograph_rows
from tests.training.tokenizer import two_products

HEIGHT, STRIDE, WIDTH, BATCH = 16, 4, 32, 4
ALL = product(scales("1/2", "1"), flips(), shifts(STRIDE / 2), warps(WIDTH))
KINDS = ("scale", "flip", "shift", "warp")


class _Product(nn.Module):
    """A product, whose kernel is where the decoder's last one is."""

    @nn.compact
    def __call__(self, z):
        return nn.Dense(HEIGHT * STRIDE * 3, use_bias=False, name="conv_out")(z)


class ColumnProducts(Tokenizer):
    """Images of 16 pixels' height to columns of 4 pixels, and back."""

    embed_dim: int = 6
    posterior_std: float = 0.1

    def setup(self):
        self.quant, self.decoder = nn.Dense(self.embed_dim, use_bias=False), _Product()

    @property
    def column_width(self):
        return STRIDE

    def encode(self, images):
        columns = jnp.asarray(images).reshape(len(images), HEIGHT, -1, STRIDE, 3).transpose(0, 2, 1, 3, 4)
        return Posterior(self.quant(columns.reshape(*columns.shape[:2], -1)), self.posterior_std)

    def decode(self, latents):
        columns = self.decoder(latents).reshape(*latents.shape[:2], HEIGHT, STRIDE, 3)
        return Decoded(columns.transpose(0, 2, 1, 3, 4).reshape(len(latents), HEIGHT, -1, 3), None)


class Discriminator(two_products.Discriminator):
    """The brightness of an image's left end against that of its right, a weighted mean that no augmentation hides."""

    def init(self, key, height, width):
        del key, height, width
        return {"params": {"w": jnp.ones(())}, "spectral": {}}

    def __call__(self, frozen, variables, images, key):
        del frozen, key
        ramp = jnp.linspace(-1, 1, images.shape[2])[None, None, :, None]
        return variables["params"]["w"] * jnp.mean(ramp * images, axis=(1, 2, 3)), {}


def regularization(**options):
    """The regularizers of a run, all kinds of transforms by default."""
    options = {"group": ALL, "kinds": KINDS, **options}
    return Regularization(ColumnGeometry(STRIDE, HEIGHT), **options)


def make_step(adversarial=False, num_microbatches=1, posterior_std=0.1, **options):
    """A training step; without options it has no regularizers."""
    objective = Objective(
        ColumnProducts(posterior_std=posterior_std),
        adversarial_weight=0.5 if adversarial else 0.0,
        discriminator=Discriminator() if adversarial else None,
        regularization=regularization(**options) if options else None,
    )
    optimizer = optax.sgd(1e-6)
    return TokenizerStep(
        objective,
        optimizer,
        optimizer,
        lambda _: jnp.float32(1e-6),
        ema_decay=lambda _: 0.9,
        num_microbatches=num_microbatches,
    )


def make_state(step) -> Any:
    """The state before the first step, with random parameters of the size that keeps images."""
    rng = np.random.default_rng(0)
    size = HEIGHT * STRIDE * 3
    encoder = rng.normal(size=(size, 6)).astype(np.float32) / np.float32(np.sqrt(size))
    params = {"quant": {"kernel": encoder}, "decoder": {"conv_out": {"kernel": encoder.T.copy()}}}
    regularizers, discriminator = step.objective.regularization, None
    if step.objective.discriminator is not None:
        discriminator = step.objective.discriminator.init(None, HEIGHT, WIDTH)
        discriminator["opt_state"] = step.discriminator_optimizer.init(discriminator["params"])
    carried = None if regularizers is None else regularizers.init_state()
    return TokenizerState(jnp.int32(0), params, params, step.optimizer.init(params), discriminator, carried)


def batch(choice=None):
    """Images as a batch has them, with the host's choice."""
    images = np.round(127.5 * (photograph_rows(BATCH, WIDTH) + 1)).astype(np.uint8)
    return {"image": images} if choice is None else {"image": images, "transform": choice}
