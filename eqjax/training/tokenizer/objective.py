"""The tokenizer's objective and its gradients.

    nll          Σ |x − x̂| + w_l2 · |x − x̂|² + w_perceptual · LPIPS(x, x̂) + w_seam · R(x, x̂) + w_spectrum · S(x, x̂)
                 over values, per image
    kl           ½ Σ mean², per image
    semantic     Σ (semantic head − DINOv2)², per image
    adversarial  −mean D(augmented x̂), weighted by λ

    total = nll + w_kl · kl + w_semantic · semantic + λ · adversarial

On an implicit step of `objective.equivariance`, x is the transformed image T x and x̂ = D(T' z), for both updates; the
semantic term is off. Explicit errors and the stereo term add their weight · values per image. With soft weights, the
total of an implicit step is multiplied by the weight of its transform. See `eqjax.training.tokenizer.regularization`.

R is the distance of roughness by place in a column (`eqjax.tokenizer.seams`), S the distance of local amplitudes
(`eqjax.tokenizer.local_spectrum`); neither is published.

λ compares the gradients of nll and of the adversarial term at the decoder's last kernel. Both losses reach the
parameters through x̂ alone, so their gradients at x̂ are computed first; each of them, propagated back to the last
kernel, gives λ, and one backward pass of their weighted sum, through decoder and encoder, gives every gradient.

Metrics of a step, in the order in which they are computed:

| metric | meaning |
| --- | --- |
| `l1` | mean absolute error per value |
| `lpips` | LPIPS distance, mean over images; with a perceptual weight |
| `seam` | distance of roughness by place in a column, mean over images; with a seam weight |
| `spectrum` | distance of local amplitudes, mean over images; with a spectrum weight |
| `psnr` | peak signal-to-noise ratio of the reconstructions, dB |
| `recon_loss` | l1 and the weighted terms beside it, per value |
| `nll_loss` | `recon_loss` summed over the values of an image |
| `kl_loss` | KL divergence of the posterior |
| `semantic_loss` | squared distance to DINOv2 features; 0 while the term is off |
| `semantic_active` | whether the semantic term is on, 0 or 1 |
| `gen_loss` | adversarial term, unweighted; 0 while the term is off |
| `adaptive_weight` | λ; 0 while the term is off |
| `disc_active` | whether the adversarial term is on, 0 or 1 |
| `nll_grad_norm_last_layer` | norm of the gradient of `nll_loss` at the decoder's last kernel |
| `gen_grad_norm_last_layer` | the same of `gen_loss` |
| `encoder_error`, `decoder_error` | squared relative errors under the step's transform; with an explicit weight |
| `stereo_loss` | one minus the smoothed precision of retrieval; with a stereo weight |
| `equivariance_error` | relative error of the encoder under the step's transform; with an explicit weight |
| `latent_spread` | root mean variance of latent channels; with an explicit weight |
| `collapsed` | whether the guard has turned the explicit errors off, 0 or 1 |
| `soft_scale`, `soft_flip`, … | soft weights of the kinds of transforms |
| `transformed_l1`, … | on an implicit step the names of `l1` to `nll_loss` have this prefix |
| `loss` | total |
| `grad_norm` | global norm of the tokenizer's gradients |
| `disc_loss` | loss of the discriminator; 0 while the adversarial term is off |
| `logits_real`, `logits_fake` | mean logits of images, and of reconstructions (and decoded samples) |
| `disc_grad_norm` | global norm of the discriminator's gradients |

Letters: B batch, L columns, D latent channels, H and W pixels, h and w semantic positions, C semantic channels.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1 and appendix; λ: arXiv 2012.09841, section 3.1.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float

from eqjax.equivariance import transformed_pair
from eqjax.evaluation.image_metrics import psnr
from eqjax.tokenizer import Tokenizer, losses
from eqjax.tokenizer.augment import diff_augment
from eqjax.tokenizer.local_spectrum import local_spectrum_distance
from eqjax.tokenizer.seams import seam_distance
from eqjax.training.tokenizer.discriminator import Discriminator, FrozenParams, Variables
from eqjax.training.tokenizer.draws import ActiveTerms, Images, RandomDraws, Switch, Terms, only_if
from eqjax.training.tokenizer.regularization import Regularization, StepRegularizer
from eqjax.typing import AnyArray, Params, PRNGKey, Scalar

# The terms in the order in which they are computed; the other metrics derive from them.
TERMS = ("l1", "lpips", "seam", "spectrum", "kl_loss", "semantic_loss", "gen_loss")


@flax.struct.dataclass
class Reconstruction:
    """A pass through the tokenizer.

    Attributes:
      targets: the images, or on an implicit step the transformed ones.
      images: reconstructions of the targets.
      semantic: predicted semantic features; None without a semantic head, and on an implicit step.
      kl: the KL term.
      means: means of the posterior.
      latents: latents with noise, before any transform.
    """

    targets: Images
    images: Images
    semantic: Float[AnyArray, "B h w C"] | None
    kl: Float[AnyArray, ""]
    means: Float[AnyArray, "B L D"]
    latents: Float[AnyArray, "B L D"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The terms and their weights; arrays are arguments. A term whose function is None is left out.

    Attributes:
      tokenizer: the module.
      kl_weight: weight of the KL term.
      l2_weight: weight of the squared error beside L1.
      seam_weight: weight of the distance of roughness by place in a column beside L1.
      spectrum_weight: weight of the distance of local amplitudes beside L1.
      perceptual_weight: weight of LPIPS.
      semantic_weight: weight of the semantic term.
      adversarial_weight: norm of the adversarial term's gradient, as a fraction of nll's.
      lpips: (frozen parameters, x, y) → distance [B].
      semantic_targets: (frozen parameters, images) → [B, h, w, C].
      discriminator: maps augmented images to logits.
      discriminator_loss: (logits of images, logits of reconstructions) → scalar.
      regularization: what trains equivariance, or None.
    """

    tokenizer: Tokenizer
    kl_weight: float = 0.01
    l2_weight: float = 0.0
    seam_weight: float = 0.0
    spectrum_weight: float = 0.0
    perceptual_weight: float = 0.0
    semantic_weight: float = 0.0
    adversarial_weight: float = 0.0
    lpips: Callable[..., jax.Array] | None = None
    semantic_targets: Callable[..., jax.Array] | None = None
    discriminator: Discriminator | None = None
    discriminator_loss: Callable[..., jax.Array] = losses.hinge_loss
    regularization: Regularization | None = None

    def reconstruct(
        self,
        params: Params,
        images: Images,
        noise: Float[AnyArray, "B L D"],
        regularizer: StepRegularizer | None = None,
    ) -> Reconstruction:
        """Encodes images, adds noise to the posterior's mean and decodes; on an implicit step after a transform.

        Args:
          params: the tokenizer's parameters.
          images: images in [-1, 1].
          noise: posterior noise.
          regularizer: what the step adds to the objective; None: nothing.
        """
        posterior: Any = self.tokenizer.apply({"params": params}, images, method="encode")
        latents = posterior.mean + noise
        if self.regularization is not None and regularizer is not None and regularizer.implicit:
            assert regularizer.action is not None
            decode = functools.partial(self._decode, params)
            targets, fakes = transformed_pair(self.regularization.geometry, regularizer.action, images, latents, decode)
            return Reconstruction(targets, fakes, None, jnp.mean(posterior.kl()), posterior.mean, latents)
        decoded: Any = self.tokenizer.apply({"params": params}, latents, method="decode")
        kl = jnp.mean(posterior.kl())
        return Reconstruction(images, decoded.images, decoded.semantic, kl, posterior.mean, latents)

    def decode_samples(self, params: Params, draws: RandomDraws) -> Images | None:
        """Returns the images of the draws' samples of a generator; None without any.

        Args:
          params: the tokenizer's parameters.
          draws: random draws.
        """
        return None if draws.sampled is None else self._decode(params, draws.sampled)

    def _decode(self, params: Params, latents: Float[AnyArray, "B L D"]) -> Images:
        decoded: Any = self.tokenizer.apply({"params": params}, latents, method="decode")
        return decoded.images

    def tokenizer_grads(
        self,
        trainable: Params,
        fixed: Params,
        variables: Variables | None,
        frozen: FrozenParams,
        images: Images,
        draws: RandomDraws,
        active: ActiveTerms,
        regularizer: StepRegularizer | None = None,
    ) -> tuple[Params, Terms, Any]:
        """Computes the gradients of the total with respect to the tokenizer.

        Args:
          trainable: parameters of the tokenizer that get gradients.
          fixed: its other parameters; nothing that depends on them alone is differentiated.
          variables: {"params", "spectral"} of the discriminator, or None without one.
          frozen: parameters of the frozen networks.
          images: images in [-1, 1].
          draws: random draws.
          active: which terms are on.
          regularizer: what the step adds to the objective; None: nothing.

        Returns:
          Gradients like `trainable`, metrics, and the spectral vectors after the pass (None without a discriminator).
        """

        def forward(trainable: Params) -> tuple[tuple[Any, ...], tuple[Any, Any]]:
            params = {**fixed, **trainable}
            made = self.reconstruct(params, images, draws.posterior_noise, regularizer)
            extra, readings = self._regularize(params, frozen, images, made, regularizer)
            sampled = self.decode_samples(params, draws)
            return (made.images, sampled, made.semantic, made.kl, extra), (made.targets, readings)

        (fakes, sampled, semantic, kl, extra), backward, (targets, readings) = jax.vjp(forward, trainable, has_aux=True)
        to_sampled = jax.tree.map(jnp.zeros_like, sampled)

        def last_kernel_norm(to_fakes: jax.Array, to_sampled: jax.Array | None) -> jax.Array:
            # Only the last layer's gradient of this backward pass is used; the compiler drops the rest.
            rest = jax.tree.map(jnp.zeros_like, (semantic, kl, extra))
            (grads,) = backward((to_fakes, to_sampled, *rest))
            return jnp.linalg.norm(self.tokenizer.last_layer(grads)["kernel"])

        # Images of every width weigh alike beside the KL term.
        size = images[0].size
        to_fakes, terms = jax.grad(self._nll, has_aux=True)(fakes, frozen, targets, size)
        terms["kl_loss"] = kl
        total = terms["nll_loss"] + self.kl_weight * kl
        to_semantic, value, weight = self._semantic_term(semantic, frozen, images, active.semantic)
        if self.semantic_targets is not None and semantic is not None:
            total += weight * value
            terms |= {"semantic_loss": value, "semantic_active": jnp.asarray(active.semantic, jnp.float32)}
        spectral = None
        if self.discriminator is not None and variables is not None:
            on = active.adversarial
            (to_adversarial, to_samples), value, spectral = self._adversarial_term(
                (fakes, sampled), variables, frozen, draws, on
            )
            norms = last_kernel_norm(to_fakes, to_sampled), last_kernel_norm(to_adversarial, to_samples)
            is_on = jnp.asarray(on, jnp.float32)
            weight = is_on * losses.adaptive_weight(*norms, self.adversarial_weight)
            to_fakes += weight * to_adversarial
            to_sampled = jax.tree.map(lambda gradient: weight * gradient, to_samples)
            total += weight * value
            terms |= {"gen_loss": value, "adaptive_weight": weight, "disc_active": is_on}
            terms |= {"nll_grad_norm_last_layer": norms[0], "gen_grad_norm_last_layer": norms[1]}
        to_kl, to_losses = jnp.full_like(kl, self.kl_weight), {}
        if self.regularization is not None and regularizer is not None:
            if regularizer.implicit and regularizer.weight is not None:
                # The data may lack the symmetry: the whole objective of its steps counts less.
                to_fakes, to_kl, total = (regularizer.weight * x for x in (to_fakes, to_kl, total))
            weights = self.regularization.weights(regularizer, extra)
            to_losses = {name: size * weights[name] for name in extra}
            total += sum((to_losses[name] * value for name, value in extra.items()), jnp.zeros(()))
        (grads,) = backward((to_fakes, to_sampled, to_semantic, to_kl, to_losses))
        return grads, {**extra, **readings, **terms, "loss": total}, spectral

    def _regularize(
        self,
        params: Params,
        frozen: FrozenParams,
        images: Images,
        made: Reconstruction,
        regularizer: StepRegularizer | None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the terms of a step's regularizer, and its readings; nothing of a plain step."""
        if self.regularization is None or regularizer is None:
            return {}, {}

        def encode(images: Images) -> jax.Array:
            posterior: Any = self.tokenizer.apply({"params": params}, images, method="encode")
            return posterior.mean

        decode = functools.partial(self._decode, params)
        return self.regularization.losses(regularizer, encode, decode, images, made, frozen)

    def discriminator_grads(
        self,
        variables: Variables,
        frozen: FrozenParams,
        images: Images,
        fakes: Float[AnyArray, "F H W 3"],
        draws: RandomDraws,
    ) -> tuple[Params, Terms, Any]:
        """Computes the gradients of the discriminator's loss with respect to its parameters.

        Args:
          variables: {"params", "spectral"} of the discriminator.
          frozen: parameters of the frozen networks.
          images: images in [-1, 1].
          fakes: their reconstructions, and decoded samples after them, see `with_samples`.
          draws: random draws, not those of the tokenizer's gradients.

        Returns:
          Gradients, metrics, and the spectral vectors after both passes, images first.
        """

        def loss(params: Params) -> tuple[jax.Array, tuple[Terms, Any]]:
            real, spectral = self._logits(
                frozen,
                {"params": params, "spectral": variables["spectral"]},
                images,
                draws.real_uniforms,
                draws.real_key,
            )
            fake, spectral = self._logits(
                frozen, {"params": params, "spectral": spectral}, fakes, draws.fake_uniforms, draws.fake_key
            )
            value = self.discriminator_loss(real, fake)
            terms = {"disc_loss": value, "logits_real": jnp.mean(real), "logits_fake": jnp.mean(fake)}
            return value, (terms, spectral)

        grads, (terms, spectral) = jax.grad(loss, has_aux=True)(variables["params"])
        return grads, terms, spectral

    def _logits(
        self,
        frozen: FrozenParams,
        variables: Variables,
        images: Images,
        uniforms: Float[AnyArray, "B 7"],
        key: PRNGKey | None,
    ) -> tuple[jax.Array, Any]:
        assert self.discriminator is not None
        return self.discriminator(frozen, variables, diff_augment(images, uniforms), key)

    def _nll(self, fakes: Images, frozen: FrozenParams, images: Images, size: int) -> tuple[jax.Array, Terms]:
        """Returns the reconstruction loss, summed over `size` values of an image, and its parts per value."""
        l1 = jnp.abs(images - fakes)
        recon, terms = jnp.mean(l1 + self.l2_weight * jnp.square(l1)), {"l1": jnp.mean(l1)}
        if self.lpips is not None:
            terms["lpips"] = jnp.mean(self.lpips(frozen, images, fakes))
            recon += self.perceptual_weight * terms["lpips"]
        if self.seam_weight:
            terms["seam"] = jnp.mean(seam_distance(images, fakes, self.tokenizer.column_width))
            recon += self.seam_weight * terms["seam"]
        if self.spectrum_weight:
            terms["spectrum"] = jnp.mean(local_spectrum_distance(images, fakes))
            recon += self.spectrum_weight * terms["spectrum"]
        nll = recon * size
        terms["psnr"] = jnp.mean(psnr(images, fakes))
        return nll, terms | {"recon_loss": recon, "nll_loss": nll}

    def _semantic_term(
        self, semantic: jax.Array | None, frozen: FrozenParams, images: Images, on: Switch
    ) -> tuple[Any, Scalar, Scalar]:
        """Returns the gradient of the weighted semantic term at the semantic head's output, the term, its weight."""
        if self.semantic_targets is None or semantic is None:
            return jax.tree.map(jnp.zeros_like, semantic), 0.0, 0.0
        targets = self.semantic_targets

        def compute() -> tuple[Any, tuple[()]]:
            difference = semantic - targets(frozen, images)
            return (difference, jnp.sum(jnp.square(difference)) / images.shape[0]), ()

        (difference, value), _ = only_if(on, compute, ())
        weight = self.semantic_weight * jnp.asarray(on, jnp.float32)
        return 2 * weight * difference / images.shape[0], value, weight

    def _adversarial_term(
        self,
        fakes: tuple[jax.Array, jax.Array | None],
        variables: Variables,
        frozen: FrozenParams,
        draws: RandomDraws,
        on: Switch,
    ) -> tuple[tuple[jax.Array, jax.Array | None], jax.Array, Any]:
        """Returns the gradient of the adversarial term at `fakes`, the term, the spectral vectors.

        Args:
          fakes: reconstructions, and decoded samples or None.
          variables: {"params", "spectral"} of the discriminator.
          frozen: parameters of the frozen networks.
          draws: random draws.
          on: whether the term is on.
        """

        def loss(fakes: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, Any]:
            images = with_samples(*fakes)
            logits, spectral = self._logits(frozen, variables, images, draws.fake_uniforms, draws.fake_key)
            return losses.generator_loss(logits), spectral

        def compute() -> tuple[Any, Any]:
            (value, spectral), to_fakes = jax.value_and_grad(loss, has_aux=True)(fakes)
            return (to_fakes, value), spectral

        (to_fakes, value), spectral = only_if(on, compute, variables["spectral"])
        return to_fakes, value, spectral


def with_samples(fakes: Images, sampled: Images | None) -> Float[AnyArray, "F H W 3"]:
    """Returns what the discriminator takes for fake: reconstructions [B, …], and as many decoded samples after them."""
    return fakes if sampled is None else jnp.concatenate([fakes, sampled])
