"""Losses of adversarial training, on logits: large where the discriminator believes in a real image.

Source: hinge loss, arXiv 1705.02894; adaptive weight, arXiv 2012.09841, section 3.1.
"""

import jax
import jax.numpy as jnp


def hinge_loss(real, fake):
    """Discriminator's hinge loss: ½ (mean relu(1 − real) + mean relu(1 + fake)), a scalar."""
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def vanilla_loss(real, fake):
    """Discriminator's cross-entropy: ½ (mean softplus(−real) + mean softplus(fake)), a scalar."""
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


DISCRIMINATOR_LOSSES = {"hinge": hinge_loss, "vanilla": vanilla_loss}


def generator_loss(fake):
    """What the tokenizer minimises: −mean of the logits of its reconstructions, a scalar."""
    return -jnp.mean(fake)


def adaptive_weight(nll_grad_norm, generator_grad_norm, weight=0.5):
    """Weight of the adversarial term that keeps its gradient in proportion to the reconstruction's.

    weight · clip(‖∇ nll‖ / (‖∇ adversarial‖ + 1e-4), 0, 1e4), both gradients with respect to the decoder's last
    kernel.

    Args:
      nll_grad_norm, generator_grad_norm: the two norms, scalars.
      weight: the proportion.
    """
    return weight * jnp.clip(nll_grad_norm / (generator_grad_norm + 1e-4), 0, 1e4)
