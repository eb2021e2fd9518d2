"""From a configuration to the tokenizer's objective: its frozen networks and its discriminator.

Source: arXiv 2301.09515 (StyleGAN-T), section 3.2, for the discriminator on frozen features.
"""

import dataclasses

import jax
import jax.numpy as jnp

from eqjax import nets
from eqjax.tokenizer.discriminator import FeatureDiscriminator, PatchDiscriminator
from eqjax.tokenizer.losses import DISCRIMINATOR_LOSSES
from eqjax.training.objective import Objective

KINDS = ("dino", "patch")


@dataclasses.dataclass(frozen=True)
class FeatureJudge:
    """Heads on a frozen vision transformer, which looks at squares of its own size.

    Attributes:
      transformer: a `nets.ViT` with intermediate layers; its parameters are `frozen["dino"]`.
      heads: a `FeatureDiscriminator`.
    """

    transformer: nets.ViT
    heads: FeatureDiscriminator

    def init(self, key, height, width):
        """Fresh variables {"params", "spectral"}; the images' size does not matter."""
        del height, width
        return self.heads.init_variables(key)

    def __call__(self, frozen, variables, images, key):
        """Images [B, H, W, 3] → logits [B, N], spectral vectors after one power iteration.

        Args:
          key: of the way larger images are brought to the transformer's size; None: by area.
        """
        images = self._view(images, key)
        features = jnp.stack(nets.dino_features(frozen["dino"], images, self.transformer))
        logits, changed = self.heads.apply(
            {"params": variables["params"], "spectral": variables["spectral"]}, features, mutable=["spectral"]
        )
        return logits, changed["spectral"]

    def _view(self, images, key):
        """Larger images are cut, or (with probability ½ for the whole batch, or without a key) resized."""
        side = self.transformer.grid * self.transformer.patch_size
        slack_y, slack_x = images.shape[1] - side, images.shape[2] - side
        if key is None or slack_y <= 0 or slack_x < 0:
            return nets.dino_resize(images, side)
        which, place_y, place_x = jax.random.split(key, 3)
        start = (0, jax.random.randint(place_y, (), 0, slack_y + 1), jax.random.randint(place_x, (), 0, slack_x + 1), 0)
        return jax.lax.cond(
            jax.random.bernoulli(which),
            lambda: jax.lax.dynamic_slice(images, start, (images.shape[0], side, side, 3)),
            lambda: nets.dino_resize(images, side),
        )


@dataclasses.dataclass(frozen=True)
class PatchJudge:
    """PatchGAN: needs no frozen network, and has no spectral vectors. Field: network."""

    network: PatchDiscriminator

    def init(self, key, height, width):
        """Fresh variables {"params", "spectral"} for images of a size, pixels.

        Raises:
          ValueError: the images are too small.
        """
        least = 2 ** (self.network.num_layers + 1)
        if min(height, width) < least:
            raise ValueError(
                f"discriminator.num_layers={self.network.num_layers} needs images of at least {least} × {least} "
                f"pixels; these are {height} × {width}."
            )
        return {"params": self.network.init(key, jnp.zeros((1, height, width, 3)))["params"], "spectral": {}}

    def __call__(self, frozen, variables, images, key):
        """Images [B, H, W, 3] → logits [B, h, w], no spectral vectors."""
        del frozen, key
        return self.network.apply({"params": variables["params"]}, images), {}


def make_judge(config, dtype=jnp.float32):
    """The discriminator of a configuration, and the frozen networks it needs.

    Args:
      config: as `config.discriminator_config`.
      dtype: compute dtype.

    Returns:
      a judge, {name: parameters}.

    Raises:
      ValueError: an unknown kind.
    """
    if config.kind == "patch":
        return PatchJudge(PatchDiscriminator(config.channels, config.num_layers, dtype)), {}
    if config.kind == "dino":
        transformer, params = nets.load("dino", dtype=dtype)
        heads = FeatureDiscriminator(transformer.width, len(transformer.intermediate_layers), dtype=dtype)
        return FeatureJudge(transformer, heads), {"dino": params}
    raise ValueError(f"discriminator.kind={config.kind!r} is not one of {KINDS}.")


def make_objective(config, tokenizer):
    """The objective of a tokenizer's configuration. A term of weight 0 needs no weights.

    Args:
      config: with the parts `objective` and `discriminator`.
      tokenizer: the module; frozen networks compute in its dtype.

    Returns:
      an `Objective`, its judge (None without an adversarial term), {name: parameters of a frozen network}.

    Raises:
      ValueError: an unknown kind of discriminator or loss; a semantic term without a semantic head.
      FileNotFoundError, eqjax.nets.FrozenWeightsError: the file of a frozen network is missing, or another one.
    """
    terms = config.objective
    if terms.discriminator_loss not in DISCRIMINATOR_LOSSES:
        raise ValueError(
            f"objective.discriminator_loss={terms.discriminator_loss!r} is not one of {tuple(DISCRIMINATOR_LOSSES)}."
        )
    dtype, frozen, lpips, targets, judge = tokenizer.dtype, {}, None, None, None
    if terms.perceptual_weight:
        perceptual, frozen["lpips"] = nets.load("lpips", dtype=dtype)

        def lpips(frozen, x, y):
            return nets.lpips(frozen["lpips"], x, y, perceptual)

    if terms.semantic_weight:
        if tokenizer.semantic is None:
            raise ValueError(
                f"objective.semantic_weight={terms.semantic_weight} needs a tokenizer with a semantic head; set "
                "tokenizer.semantic, or the weight to 0."
            )
        dinov2, frozen["dinov2"] = nets.load("dinov2", dtype=dtype)

        def targets(frozen, images):
            return nets.dinov2_targets(frozen["dinov2"], images, dinov2)

    if terms.adversarial_weight:
        judge, more = make_judge(config.discriminator, dtype)
        frozen |= more
    objective = Objective(
        tokenizer,
        kl_weight=terms.kl_weight,
        l2_weight=terms.l2_weight,
        perceptual_weight=terms.perceptual_weight,
        semantic_weight=terms.semantic_weight,
        adversarial_weight=terms.adversarial_weight,
        lpips=lpips,
        semantic_targets=targets,
        judge=judge,
        discriminator_loss=DISCRIMINATOR_LOSSES[terms.discriminator_loss],
    )
    return objective, judge, frozen
