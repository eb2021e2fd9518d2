"""The tokenizer's objective and its gradients.

    nll          Σ |x − x̂| + w_l2 · |x − x̂|² + w_perceptual · LPIPS(x, x̂) + w_seam · R(x, x̂) + w_spectrum · S(x, x̂)
                 over values, per image
    kl           ½ Σ mean², per image
    semantic     Σ (semantic head − DINOv2)², per image
    adversarial  −mean D(augmented x̂), weighted by λ

    total = nll + w_kl · kl + w_semantic · semantic + λ · adversarial

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
| `loss` | total |
| `grad_norm` | global norm of the tokenizer's gradients |
| `disc_loss` | loss of the discriminator; 0 while the adversarial term is off |
| `logits_real`, `logits_fake` | mean logits of images and of reconstructions |
| `disc_grad_norm` | global norm of the discriminator's gradients |

Letters: B batch, L columns, D latent channels, H and W pixels, h and w semantic positions, C semantic channels.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1 and appendix; λ: arXiv 2012.09841, section 3.1.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from eqjax import config_fields, nets
from eqjax.evaluation.image_metrics import psnr
from eqjax.tokenizer import Decoded, Tokenizer, losses
from eqjax.tokenizer.augment import NUM_UNIFORMS, diff_augment
from eqjax.tokenizer.local_spectrum import local_spectrum_distance
from eqjax.tokenizer.posterior import posterior_noise
from eqjax.tokenizer.seams import seam_distance
from eqjax.training import fields
from eqjax.training.state import stream
from eqjax.training.tokenizer.discriminator import Discriminator, FrozenParams, Variables, make_discriminator
from eqjax.typing import AnyArray, Config, Params, PRNGKey, Scalar

Images: TypeAlias = Float[AnyArray, "B H W 3"]
Terms: TypeAlias = dict[str, Any]
# Whether a term is on: True if always, else a traced boolean.
Switch: TypeAlias = bool | Bool[AnyArray, ""]

# The terms in the order in which they are computed; the other metrics derive from them.
TERMS = ("l1", "lpips", "seam", "spectrum", "kl_loss", "semantic_loss", "gen_loss")


@flax.struct.dataclass
class RandomDraws:
    """The random draws of one pass over a batch.

    Attributes:
      posterior_noise: noise added to the posterior's mean, [B, L, D].
      real_uniforms: uniforms in [0, 1) that augment the images, [B, 7].
      fake_uniforms: uniforms in [0, 1) that augment the reconstructions, [B, 7].
      real_key: key with which the discriminator crops or resizes images; None: it resizes.
      fake_key: the same for reconstructions.
    """

    posterior_noise: jax.Array
    real_uniforms: jax.Array
    fake_uniforms: jax.Array
    real_key: PRNGKey | None = None
    fake_key: PRNGKey | None = None

    @classmethod
    def from_key(cls, key: PRNGKey, tokenizer: Tokenizer, shape: tuple[int, ...]) -> "RandomDraws":
        """Returns draws for images of a shape [B, H, W, 3]."""
        columns = shape[2] // tokenizer.column_width
        latents_shape = (shape[0], columns, tokenizer.embed_dim)
        return cls(
            posterior_noise=posterior_noise(stream(key, "posterior"), latents_shape, tokenizer.posterior_std),
            real_uniforms=jax.random.uniform(stream(key, "augment_real"), (shape[0], NUM_UNIFORMS), jnp.float32),
            fake_uniforms=jax.random.uniform(stream(key, "augment_fake"), (shape[0], NUM_UNIFORMS), jnp.float32),
            real_key=stream(key, "view_real"),
            fake_key=stream(key, "view_fake"),
        )


class ActiveTerms(NamedTuple):
    """Which of the terms that start late are on: True if always, else a traced boolean."""

    semantic: Switch = True
    adversarial: Switch = True


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

    def reconstruct(
        self, params: Params, images: Images, noise: Float[AnyArray, "B L D"]
    ) -> tuple[Decoded, Float[jax.Array, ""]]:
        """Encodes images, adds noise to the posterior's mean and decodes.

        Args:
          params: the tokenizer's parameters.
          images: images in [-1, 1].
          noise: posterior noise.

        Returns:
          The decoded latents, and the KL term.
        """
        posterior: Any = self.tokenizer.apply({"params": params}, images, method="encode")
        decoded: Any = self.tokenizer.apply({"params": params}, posterior.mean + noise, method="decode")
        return decoded, jnp.mean(posterior.kl())

    def tokenizer_grads(
        self,
        trainable: Params,
        fixed: Params,
        variables: Variables | None,
        frozen: FrozenParams,
        images: Images,
        draws: RandomDraws,
        active: ActiveTerms,
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

        Returns:
          Gradients like `trainable`, metrics, and the spectral vectors after the pass (None without a discriminator).
        """

        def forward(trainable: Params) -> tuple[Any, Any, Any]:
            decoded, kl = self.reconstruct({**fixed, **trainable}, images, draws.posterior_noise)
            return decoded.images, decoded.semantic, kl

        (fakes, semantic, kl), backward = jax.vjp(forward, trainable)

        def last_kernel_norm(to_fakes: jax.Array) -> jax.Array:
            # Only the last layer's gradient of this backward pass is used; the compiler drops the rest.
            (grads,) = backward((to_fakes, jax.tree.map(jnp.zeros_like, semantic), jnp.zeros_like(kl)))
            return jnp.linalg.norm(self.tokenizer.last_layer(grads)["kernel"])

        to_fakes, terms = jax.grad(self._nll, has_aux=True)(fakes, frozen, images)
        terms["kl_loss"] = kl
        total = terms["nll_loss"] + self.kl_weight * kl
        to_semantic, value, weight = self._semantic_term(semantic, frozen, images, active.semantic)
        if self.semantic_targets is not None:
            total += weight * value
            terms |= {"semantic_loss": value, "semantic_active": jnp.asarray(active.semantic, jnp.float32)}
        spectral = None
        if self.discriminator is not None and variables is not None:
            on = active.adversarial
            to_adversarial, value, spectral = self._adversarial_term(fakes, variables, frozen, draws, on)
            norms = last_kernel_norm(to_fakes), last_kernel_norm(to_adversarial)
            is_on = jnp.asarray(on, jnp.float32)
            weight = is_on * losses.adaptive_weight(*norms, self.adversarial_weight)
            to_fakes += weight * to_adversarial
            total += weight * value
            terms |= {"gen_loss": value, "adaptive_weight": weight, "disc_active": is_on}
            terms |= {"nll_grad_norm_last_layer": norms[0], "gen_grad_norm_last_layer": norms[1]}
        (grads,) = backward((to_fakes, to_semantic, jnp.full_like(kl, self.kl_weight)))
        return grads, {**terms, "loss": total}, spectral

    def discriminator_grads(
        self, variables: Variables, frozen: FrozenParams, images: Images, fakes: Images, draws: RandomDraws
    ) -> tuple[Params, Terms, Any]:
        """Computes the gradients of the discriminator's loss with respect to its parameters.

        Args:
          variables: {"params", "spectral"} of the discriminator.
          frozen: parameters of the frozen networks.
          images: images in [-1, 1].
          fakes: their reconstructions.
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

    def _nll(self, fakes: Images, frozen: FrozenParams, images: Images) -> tuple[jax.Array, Terms]:
        """Returns the reconstruction loss, summed over the values of an image, and its parts per value."""
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
        nll = recon * images[0].size
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
        self, fakes: jax.Array, variables: Variables, frozen: FrozenParams, draws: RandomDraws, on: Switch
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Returns the gradient of the adversarial term at the reconstructions, the term, the spectral vectors."""

        def loss(fakes: jax.Array) -> tuple[jax.Array, Any]:
            logits, spectral = self._logits(frozen, variables, fakes, draws.fake_uniforms, draws.fake_key)
            return losses.generator_loss(logits), spectral

        def compute() -> tuple[Any, Any]:
            (value, spectral), to_fakes = jax.value_and_grad(loss, has_aux=True)(fakes)
            return (to_fakes, value), spectral

        (to_fakes, value), spectral = only_if(on, compute, variables["spectral"])
        return to_fakes, value, spectral


def only_if(on: Switch, compute: Callable[[], tuple[Any, Any]], otherwise: Any) -> tuple[Any, Any]:
    """Returns compute() if `on`, else (zeros, otherwise) without computing.

    Args:
      on: whether to compute; True makes no branch in the program.
      compute: () → (values, state); traced.
      otherwise: the state if nothing is computed.
    """
    if on is True:
        return compute()

    def skip() -> tuple[Any, Any]:
        values, _ = jax.eval_shape(compute)
        return jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), values), otherwise

    return jax.lax.cond(on, compute, skip)


def make_objective(
    config: Config, tokenizer: Tokenizer, load_network: Callable[..., tuple[Any, Params]] = nets.load
) -> tuple[Objective, dict[str, Params]]:
    """Returns the objective of a configuration, and the parameters of its frozen networks by name.

    A term of weight 0 needs no weights; without an adversarial term there is no discriminator.

    Args:
      config: a resolved `tokenizer_config`.
      tokenizer: the module; frozen networks compute in its dtype.
      load_network: `nets.load`, or a function in its place.

    Raises:
      ValueError: a field of the objective or the discriminator is out of range, or there is a semantic
        term without a semantic head.
      FileNotFoundError: the file of a frozen network is missing.
      eqjax.nets.FrozenWeightsError: the file of a frozen network is damaged or holds other arrays.
    """
    weights, dtype = config.objective, tokenizer.dtype
    config_fields.check(weights, fields.OBJECTIVE, "an objective's configuration", "objective.")
    frozen: dict[str, Params] = {}
    functions: dict[str, Any] = {}
    if weights.perceptual_weight:
        lpips: Any
        lpips, frozen["lpips"] = load_network("lpips", dtype=dtype)
        functions["lpips"] = lambda frozen, x, y: nets.lpips(frozen["lpips"], x, y, lpips)
    if weights.semantic_weight:
        if tokenizer.semantic is None:
            raise ValueError(
                f"objective.semantic_weight={weights.semantic_weight} needs a tokenizer with a semantic head; set "
                "tokenizer.semantic, or the weight to 0."
            )
        dinov2: Any
        dinov2, frozen["dinov2"] = load_network("dinov2", dtype=dtype)
        functions["semantic_targets"] = lambda frozen, images: nets.dinov2_targets(frozen["dinov2"], images, dinov2)
    if weights.adversarial_weight:
        functions["discriminator"], discriminator_frozen = make_discriminator(config.discriminator, dtype, load_network)
        frozen |= discriminator_frozen
    objective = Objective(
        tokenizer,
        kl_weight=weights.kl_weight,
        l2_weight=weights.l2_weight,
        seam_weight=weights.seam_weight,
        spectrum_weight=weights.spectrum_weight,
        perceptual_weight=weights.perceptual_weight,
        semantic_weight=weights.semantic_weight,
        adversarial_weight=weights.adversarial_weight,
        discriminator_loss=losses.DISCRIMINATOR_LOSSES[weights.discriminator_loss],
        **functions,
    )
    return objective, frozen
