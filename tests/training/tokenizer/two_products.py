"""A tokenizer of a few products and a discriminator of one, in the place of networks that take long to compile."""

import flax.linen as nn
import jax.numpy as jnp

from eqjax.tokenizer import Tokenizer
from eqjax.tokenizer.posterior import Posterior
from eqjax.tokenizer.tokenizer import Decoded

NUM_VALUES = 8 * 8 * 3  # Of an image; it is one column.


class _Product(nn.Module):
    """A product, whose kernel is where the decoder's last one is."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(NUM_VALUES, use_bias=False, name="conv_out")(x)


class TwoProducts(Tokenizer):
    """Images of 8 × 8 pixels to one latent and back; with `semantic_dim`, also to one semantic vector."""

    embed_dim: int = 4
    posterior_std: float = 0.1
    semantic_dim: int = 0

    def setup(self):
        self.quant, self.decoder = nn.Dense(self.embed_dim, use_bias=False), _Product()
        if self.semantic_dim:
            self.semantic_head = nn.Dense(self.semantic_dim, use_bias=False)

    @property
    def column_width(self):
        return 8

    def encode(self, images):
        return Posterior(self.quant(images.reshape(len(images), 1, -1)), self.posterior_std)

    def decode(self, latents):
        semantic = self.semantic_head(latents)[:, None] if self.semantic_dim else None
        return Decoded(jnp.tanh(self.decoder(latents)).reshape(-1, 8, 8, 3), semantic)


class Discriminator:
    """The squares of an image's values in a product; no spectral vectors."""

    def init(self, key, height, width):
        raise NotImplementedError

    def __call__(self, frozen, variables, images, key):
        del frozen, key
        return jnp.square(images).reshape(len(images), -1) @ variables["params"]["w"], variables["spectral"]
