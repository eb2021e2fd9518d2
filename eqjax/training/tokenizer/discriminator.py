"""The discriminators of a tokenizer's training: their networks, frozen features included, as the objective calls them.

Letters: B batch, H and W pixels, N logits per image.

Source: arXiv 2301.09515 (StyleGAN-T), section 3.2, for the discriminator on frozen features.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from eqjax import config_fields, nets
from eqjax.tokenizer.discriminator import FeatureDiscriminator, PatchDiscriminator
from eqjax.training import fields
from eqjax.typing import AnyArray, Config, Params, PRNGKey

# {"params", "spectral"}: parameters, and the vectors of the spectral norm.
Variables: TypeAlias = Mapping[str, Any]
# Parameters of the frozen networks, by name.
FrozenParams: TypeAlias = Mapping[str, Any]


@runtime_checkable
class Discriminator(Protocol):
    """Maps images to logits, large for real ones."""

    def init(self, key: PRNGKey, height: int, width: int) -> dict[str, Any]:
        """Returns fresh variables {"params", "spectral"} for images of height × width pixels."""
        ...

    def __call__(
        self, frozen: FrozenParams, variables: Variables, images: Float[jax.Array, "B H W 3"], key: PRNGKey | None
    ) -> tuple[Float[jax.Array, "B ..."], Any]:
        """Returns the logits of images in [-1, 1], and the spectral vectors after one power iteration."""
        ...


@dataclasses.dataclass(frozen=True)
class DinoDiscriminator:
    """Heads on intermediate features of a frozen vision transformer, which takes squares of its own size.

    Attributes:
      backbone: the transformer; its parameters are `frozen["dino"]`.
      heads: one head per intermediate feature.
    """

    backbone: nets.ViT
    heads: FeatureDiscriminator

    def init(self, key: PRNGKey, height: int, width: int) -> dict[str, Any]:
        """Returns fresh variables {"params", "spectral"}; the size of the images does not matter."""
        del height, width
        return self.heads.init_variables(key)

    def __call__(
        self, frozen: FrozenParams, variables: Variables, images: Float[jax.Array, "B H W 3"], key: PRNGKey | None
    ) -> tuple[Float[jax.Array, "B N"], Any]:
        """Returns logits, and the spectral vectors after one power iteration.

        Args:
          frozen: parameters of the frozen networks.
          variables: {"params", "spectral"} of the heads.
          images: images in [-1, 1].
          key: chooses between a crop and a resize of larger images; None: always a resize.
        """
        features: Any = nets.dino_features(frozen["dino"], self._fit(images, key), self.backbone)
        variables = {"params": variables["params"], "spectral": variables["spectral"]}
        logits, changed = self.heads.apply(variables, jnp.stack(features), mutable=["spectral"])
        return logits, changed["spectral"]

    def _fit(self, images: Float[jax.Array, "B H W 3"], key: PRNGKey | None) -> Float[AnyArray, "B S S 3"]:
        """Crops larger images, or (the whole batch with probability ½, and without a key) resizes them."""
        side = self.backbone.grid * self.backbone.patch_size
        slack_y, slack_x = images.shape[1] - side, images.shape[2] - side
        if key is None or slack_y <= 0 or slack_x < 0:
            return nets.dino_resize(images, side)
        crop_key, y_key, x_key = jax.random.split(key, 3)
        y, x = (jax.random.randint(k, (), 0, n + 1, jnp.int32) for k, n in ((y_key, slack_y), (x_key, slack_x)))
        start = (0, y, x, 0)
        return jax.lax.cond(
            jax.random.bernoulli(crop_key),
            lambda: jax.lax.dynamic_slice(images, start, (images.shape[0], side, side, 3)),
            lambda: nets.dino_resize(images, side),
        )


@dataclasses.dataclass(frozen=True)
class PatchGanDiscriminator:
    """PatchGAN, which needs no frozen network; its spectral vectors are an empty tree with norm="batch".

    Attributes:
      network: the module.
    """

    network: PatchDiscriminator

    def init(self, key: PRNGKey, height: int, width: int) -> dict[str, Any]:
        """Returns fresh variables {"params", "spectral"} for images of height × width pixels.

        Raises:
          ValueError: the images are too small.
        """
        least = 2 ** (self.network.num_layers + 1)
        if min(height, width) < least:
            raise ValueError(
                f"discriminator.num_layers={self.network.num_layers} needs images of at least {least} × {least} "
                f"pixels; these are {height} × {width}: lower num_layers, or enlarge data.height and data.width."
            )
        return {"spectral": {}, **self.network.init(key, jnp.zeros((1, height, width, 3)))}

    def __call__(
        self, frozen: FrozenParams, variables: Variables, images: Float[jax.Array, "B H W 3"], key: PRNGKey | None
    ) -> tuple[Float[jax.Array, "B h w"], Any]:
        """Returns logits of patches, and the spectral vectors after one power iteration."""
        del frozen, key
        variables = {"params": variables["params"], "spectral": variables["spectral"]}
        logits, changed = self.network.apply(variables, images, mutable=["spectral"])
        return logits, changed.get("spectral", {})


def make_discriminator(
    config: Config, dtype: DTypeLike = jnp.float32, load_network: Callable[..., tuple[Any, Params]] = nets.load
) -> tuple[Discriminator, dict[str, Params]]:
    """Returns the discriminator of a configuration, and the parameters of its frozen network by name.

    Args:
      config: `fields.DISCRIMINATOR`.
      dtype: compute dtype.
      load_network: `nets.load`, or a function in its place.

    Raises:
      ValueError: a field is unknown or out of range.
      FileNotFoundError: the file of the frozen network is missing.
    """
    config_fields.check(config, fields.DISCRIMINATOR, "a discriminator's configuration", "discriminator.")
    if config.kind == "patch":
        return PatchGanDiscriminator(PatchDiscriminator(config.channels, config.num_layers, config.norm, dtype)), {}
    network, params = load_network("dino", dtype=dtype)
    backbone: Any = network
    heads = FeatureDiscriminator(backbone.width, len(backbone.intermediate_layers), dtype=dtype)
    return DinoDiscriminator(backbone, heads), {"dino": params}
