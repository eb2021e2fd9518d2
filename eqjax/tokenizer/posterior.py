"""The distribution over latents that an image is encoded to.

Its mean is predicted. Its standard deviation is not: every image draws its own, so that the decoder
(and later the generator) sees latents with every amount of noise up to a bound.

Letters: B images, L columns, D latent size.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float

from eqjax.typing import AnyArray, PRNGKey


@flax.struct.dataclass
class Posterior:
    """Latents with a predicted mean and a random noise level per image.

    Attributes:
      mean: predicted latents.
      std: bound of the noise level, in the units of the mean.

    Example:
      >>> posterior = Posterior(jnp.ones((1, 2, 4)))
      >>> posterior.sample(jax.random.key(0)).shape
      (1, 2, 4)
      >>> posterior.kl()
      Array([4.], dtype=float32)
    """

    mean: Float[AnyArray, "B L D"]
    std: float = flax.struct.field(pytree_node=False, default=2.5)

    def mode(self) -> Float[AnyArray, "B L D"]:
        """Returns the mean: the latents without noise."""
        return self.mean

    def sample(self, key: PRNGKey) -> Float[jax.Array, "B L D"]:
        """Draws latents: the mean plus `posterior_noise`."""
        return jnp.asarray(self.mean) + posterior_noise(key, self.mean.shape, self.std)

    def kl(self) -> Float[jax.Array, "B"]:
        """Computes the KL divergence from N(0, 1) per image, up to terms that do not depend on the mean: ½ Σ mean²."""
        return 0.5 * jnp.sum(jnp.square(self.mean), axis=(1, 2))


def posterior_noise(key: PRNGKey, shape: Sequence[int], std: float) -> Float[jax.Array, "B L D"]:
    """Draws the noise that `Posterior.sample` adds to the mean: s·ε, one s per image, N(0, std/0.8) clipped to ±std.

    Args:
      key: random key.
      shape: (B, L, D).
      std: bound of the noise level s.

    Returns:
      The noise, float32.
    """
    level_key, noise_key = jax.random.split(key)
    level = jax.random.normal(level_key, (shape[0], 1, 1), jnp.float32) * (std / 0.8)
    return jnp.clip(level, -std, std) * jax.random.normal(noise_key, shape, jnp.float32)
