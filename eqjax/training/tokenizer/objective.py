"""The tokenizer's objective, and its gradients.

    nll          Σ |x − x̂| + w_squared · |x − x̂|² + w_perceptual · LPIPS(x, x̂) over values, per image
    kl           ½ Σ mean², per image
    semantic     Σ (semantic head − DINOv2)², per image
    adversarial  −mean D(augmented x̂), weighted by λ

    total = nll + w_kl · kl + w_semantic · semantic + λ · adversarial

λ compares the gradients of nll and of the adversarial term at the decoder's last kernel. Both losses reach the
parameters through x̂ alone, so their gradients at x̂ are taken first; sent back to the last kernel each, they give λ,
and one backward pass of their weighted sum, through decoder and encoder, gives every gradient.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1 and appendix; λ: arXiv 2012.09841, section 3.1.
"""

from collections.abc import Callable
import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from eqjax import pixels
from eqjax.tokenizer import Tokenizer, losses
from eqjax.tokenizer.augment import NUM_UNIFORMS, diff_augment
from eqjax.tokenizer.posterior import posterior_noise
from eqjax.training.state import stream


@flax.struct.dataclass
class RandomDraws:
    """The random numbers of one pass over a batch.

    Attributes:
      noise: what is added to the posterior's mean, [B, L, D].
      real_uniforms, fake_uniforms: of the augmentation of images and of reconstructions, [B, 7].
      real_key, fake_key: of how the discriminator looks at them; None: the way without chance.
    """

    noise: jax.Array
    real_uniforms: jax.Array
    fake_uniforms: jax.Array
    real_key: jax.Array | None = None
    fake_key: jax.Array | None = None


def draw(key, tokenizer, shape):
    """`RandomDraws` for images of a shape [B, H, W, 3]."""
    columns = shape[2] // tokenizer.column_width
    return RandomDraws(
        posterior_noise(stream(key, "posterior"), (shape[0], columns, tokenizer.embed_dim), tokenizer.posterior_std),
        jax.random.uniform(stream(key, "augment_real"), (shape[0], NUM_UNIFORMS)),
        jax.random.uniform(stream(key, "augment_fake"), (shape[0], NUM_UNIFORMS)),
        stream(key, "view_real"),
        stream(key, "view_fake"),
    )


@dataclasses.dataclass(frozen=True)
class Objective:
    """The terms and their weights; arrays are arguments. A term whose function is None does not exist.

    Attributes:
      tokenizer: the module.
      kl_weight, l2_weight, perceptual_weight, semantic_weight, adversarial_weight: as in `config.objective_config`.
      lpips: (frozen, x, y) → distance [B].
      semantic_targets: (frozen, images) → [B, h, w, C].
      judge: (frozen, discriminator, images, key) → (logits, spectral vectors); images come augmented.
      discriminator_loss: (real logits, fake logits) → scalar.
    """

    tokenizer: Tokenizer
    kl_weight: float = 0.01
    l2_weight: float = 0.0
    perceptual_weight: float = 0.0
    semantic_weight: float = 0.0
    adversarial_weight: float = 0.0
    lpips: Callable | None = None
    semantic_targets: Callable | None = None
    judge: Callable | None = None
    discriminator_loss: Callable = losses.hinge_loss

    def reconstruct(self, params, images, noise):
        """Encodes, adds noise to the mean and decodes.

        Args:
          params: the tokenizer's parameters.
          images: [B, H, W, 3] in [-1, 1].
          noise: [B, L, D].

        Returns:
          `Decoded`, and the KL term, a scalar.
        """
        posterior = self.tokenizer.apply({"params": params}, images, method="encode")
        decoded = self.tokenizer.apply({"params": params}, posterior.mean + noise, method="decode")
        return decoded, jnp.mean(posterior.kl())

    def tokenizer_grads(self, trainable, fixed, discriminator, frozen, images, draws, switches):
        """Gradients of the total with respect to the tokenizer.

        Args:
          trainable, fixed: the tokenizer's parameters in two parts; only the first gets gradients, and nothing is
            differentiated that the second alone decides.
          discriminator: {"params", "spectral"}, or None without one.
          frozen: parameters of the frozen networks.
          images: [B, H, W, 3] in [-1, 1].
          draws: `RandomDraws`.
          switches: {"semantic", "adversarial"}: whether these terms are on, traced booleans or True.

        Returns:
          gradients like `trainable`, {term: scalar}, spectral vectors after the pass (None without a discriminator).
        """

        def forward(trainable):
            decoded, kl = self.reconstruct({**fixed, **trainable}, images, draws.noise)
            return decoded.images, decoded.semantic, kl

        (fakes, semantic, kl), backward = jax.vjp(forward, trainable)

        def last_kernel_norm(to_fakes):
            # Of this backward pass only the last layer's gradient is used; the compiler leaves the rest out.
            (grads,) = backward((to_fakes, jax.tree.map(jnp.zeros_like, semantic), jnp.zeros_like(kl)))
            return jnp.linalg.norm(grads["decoder"]["conv_out"]["kernel"])

        to_fakes, terms = jax.grad(self._nll, has_aux=True)(fakes, frozen, images)
        to_semantic, more = self._semantic_term(semantic, frozen, images, switches["semantic"])
        terms |= {"kl_loss": kl} | more
        total, spectral = terms["nll_loss"] + self.kl_weight * kl, None
        if self.semantic_targets is not None:
            total += terms["semantic_factor"] * terms["semantic_loss"]
        if self.judge is not None:
            on = switches["adversarial"]
            to_adversarial, value, spectral = self._adversarial_term(fakes, discriminator, frozen, draws, on)
            norms = last_kernel_norm(to_fakes), last_kernel_norm(to_adversarial)
            factor = jnp.asarray(on, jnp.float32)
            weight = factor * losses.adaptive_weight(*norms, self.adversarial_weight)
            to_fakes += weight * to_adversarial
            total += weight * value
            terms |= {"g_loss": value, "d_weight": weight, "disc_factor": factor}
            terms |= {"nll_grad_norm_last_layer": norms[0], "g_grad_norm_last_layer": norms[1]}
        (grads,) = backward((to_fakes, to_semantic, jnp.full_like(kl, self.kl_weight)))
        return grads, {"loss": total, **terms}, spectral

    def discriminator_grads(self, discriminator, frozen, images, fakes, draws):
        """Gradients of the discriminator's loss with respect to its parameters.

        Args:
          discriminator, frozen, images: as in `tokenizer_grads`.
          fakes: reconstructions, [B, H, W, 3].
          draws: `RandomDraws`, its own.

        Returns:
          gradients, {term: scalar}, spectral vectors after both passes, images first.
        """

        def loss(params):
            variables = {**discriminator, "params": params}
            real, variables["spectral"] = self._judge(frozen, variables, images, draws.real_uniforms, draws.real_key)
            fake, variables["spectral"] = self._judge(frozen, variables, fakes, draws.fake_uniforms, draws.fake_key)
            value = self.discriminator_loss(real, fake)
            terms = {"disc_loss": value, "logits_real": jnp.mean(real), "logits_fake": jnp.mean(fake)}
            return value, (terms, variables["spectral"])

        grads, (terms, spectral) = jax.grad(loss, has_aux=True)(discriminator["params"])
        return grads, terms, spectral

    def _judge(self, frozen, discriminator, images, numbers, key):
        return self.judge(frozen, discriminator, diff_augment(images, numbers), key)

    def _nll(self, fakes, frozen, images):
        """Reconstruction loss: summed over values, divided by the batch; and its terms per value."""
        l1 = jnp.abs(images - fakes)
        rec, terms = jnp.mean(l1 + self.l2_weight * jnp.square(l1)), {"l1": jnp.mean(l1)}
        if self.lpips is not None:
            terms["lpips"] = jnp.mean(self.lpips(frozen, images, fakes))
            rec += self.perceptual_weight * terms["lpips"]
        nll = rec * images[0].size
        terms["psnr"] = jnp.mean(pixels.psnr(images, fakes))
        return nll, terms | {"nll_loss": nll, "rec_loss": rec}

    def _semantic_term(self, semantic, frozen, images, on):
        """Gradient of the weighted semantic term at the semantic head's output; the term and its weight."""
        if self.semantic_targets is None:
            return jax.tree.map(jnp.zeros_like, semantic), {}

        def compute():
            difference = semantic - self.semantic_targets(frozen, images)
            return (difference, jnp.sum(jnp.square(difference)) / images.shape[0]), ()

        (difference, value), _ = only_if(on, compute, ())
        factor = self.semantic_weight * jnp.asarray(on, jnp.float32)
        return 2 * factor * difference / images.shape[0], {"semantic_loss": value, "semantic_factor": factor}

    def _adversarial_term(self, fakes, discriminator, frozen, draws, on):
        """Gradient of the unweighted adversarial term at the reconstructions, the term, the spectral vectors."""

        def loss(fakes):
            logits, spectral = self._judge(frozen, discriminator, fakes, draws.fake_uniforms, draws.fake_key)
            return losses.generator_loss(logits), spectral

        def compute():
            (value, spectral), to_fakes = jax.value_and_grad(loss, has_aux=True)(fakes)
            return (to_fakes, value), spectral

        (to_fakes, value), spectral = only_if(on, compute, discriminator["spectral"])
        return to_fakes, value, spectral


def only_if(on, compute, otherwise):
    """compute() where `on`, else (zeros, otherwise), without computing; True makes no branch of it."""
    if on is True:
        return compute()

    def skip():
        values, _ = jax.eval_shape(compute)
        return jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), values), otherwise

    return jax.lax.cond(on, compute, skip)
