"""The distribution over latents that an image is encoded to.

Its mean is predicted; its standard deviation is not: it is drawn anew for every image, so that
the decoder (and later the generator) meets latents with every amount of noise up to a bound.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Posterior:
    """Latents with a predicted mean and a random noise level per image.

    Attributes:
      mean: [B, L, D].
      std: bound of the noise level, in the units of the mean.
    """

    mean: jax.Array
    std: float = flax.struct.field(pytree_node=False, default=2.5)

    def mode(self):
        """The mean, [B, L, D]: what encoding without noise returns."""
        return self.mean

    def sample(self, key):
        """A draw, [B, L, D]: the mean plus `posterior_noise`."""
        return self.mean + posterior_noise(key, self.mean.shape, self.std)

    def kl(self):
        """KL divergence from N(0, 1) up to what does not depend on the mean: ½ Σ mean², [B]."""
        return 0.5 * jnp.sum(jnp.square(self.mean), axis=(1, 2))


def posterior_noise(key, shape, std):
    """What a draw adds to the mean, [B, L, D]: s·ε with one level s per image, N(0, std/0.8) clipped to ±std."""
    level_key, noise_key = jax.random.split(key)
    level = jax.random.normal(level_key, (shape[0], 1, 1)) * (std / 0.8)
    return jnp.clip(level, -std, std) * jax.random.normal(noise_key, shape)
