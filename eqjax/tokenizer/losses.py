"""Losses of adversarial (GAN) training on discriminator logits, and the weight of the adversarial term.

A high logit classifies an image as real, a low one as a reconstruction ("fake").

Source: hinge loss, arXiv 1705.02894; adaptive weight, arXiv 2012.09841, section 3.1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from eqjax.typing import AnyArray, Scalar


def hinge_loss(real: Float[AnyArray, "..."], fake: Float[AnyArray, "..."]) -> Float[jax.Array, ""]:
    """Computes the discriminator's hinge loss, ½ (mean relu(1 − real) + mean relu(1 + fake)).

    Args:
      real, fake: logits of images and of reconstructions.

    Returns:
      The loss, 0 once all real logits are above 1 and all fake ones below −1.
    """
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def vanilla_loss(real: Float[AnyArray, "..."], fake: Float[AnyArray, "..."]) -> Float[jax.Array, ""]:
    """Computes the discriminator's binary cross-entropy, ½ (mean softplus(−real) + mean softplus(fake)).

    Args:
      real, fake: logits of images and of reconstructions.

    Returns:
      The loss.
    """
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


# Losses by their names in a configuration.
DISCRIMINATOR_LOSSES: dict[str, Callable[..., jax.Array]] = {"hinge": hinge_loss, "vanilla": vanilla_loss}


def generator_loss(fake: Float[AnyArray, "..."]) -> Float[jax.Array, ""]:
    """Computes the non-saturating loss of the network that the discriminator is trained against: −mean(fake).

    Args:
      fake: logits of its reconstructions.

    Returns:
      The loss; here the tokenizer minimizes it.
    """
    return -jnp.mean(fake)


def adaptive_weight(nll_grad_norm: Scalar, generator_grad_norm: Scalar, weight: float = 0.5) -> Float[jax.Array, ""]:
    """Computes the weight of the adversarial term that keeps its gradient in proportion to the reconstruction's.

    weight · clip(‖∇ nll‖ / (‖∇ generator_loss‖ + 1e-4), 0, 1e4), both gradients with respect to the decoder's
    last kernel.

    Args:
      nll_grad_norm: gradient norm of the reconstruction terms.
      generator_grad_norm: gradient norm of `generator_loss`.
      weight: the proportion.

    Returns:
      The weight.
    """
    return weight * jnp.clip(nll_grad_norm / (generator_grad_norm + 1e-4), 0, 1e4)
