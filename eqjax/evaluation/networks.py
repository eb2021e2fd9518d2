"""Loaders of the frozen networks behind published metrics: Inception for FID and its family, LPIPS."""

from collections.abc import Callable
import dataclasses
import os
from typing import Any

import jax

from eqjax import nets
from eqjax.evaluation.features import FeatureNetwork
from eqjax.typing import Params, Tree


def inception(folder: str | os.PathLike[str] | None = None) -> FeatureNetwork:
    """Loads FID's Inception network.

    Args:
      folder: folder of the weights; None: `eqjax.addresses.weights_folder()`.

    Raises:
      FileNotFoundError: the weights are missing; the message gives their address.
      FrozenWeightsError: the file is damaged.
    """
    module, params = nets.load("inception", folder)
    return inception_network(module, params)


def inception_network(module: Any, params: Params, name: str = "pt_inception-2015-12-05") -> FeatureNetwork:
    """Returns a `FeatureNetwork` of an Inception module with any weights.

    Args:
      module: an `eqjax.nets.Inception`.
      params: its parameters.
      name: name of the weights in the protocol.
    """

    def apply(params: Params, images: jax.Array) -> dict[str, jax.Array]:
        found: Any = nets.inception_features(params, images, module)
        return {"pool": found.pool, "logits": found.logits, "spatial": found.spatial}

    return FeatureNetwork(apply, params, {"network": name, "resize": "bilinear, 299, as TensorFlow 1"})


@dataclasses.dataclass(frozen=True)
class PerceptualDistance:
    """A perceptual distance with its parameters.

    Attributes:
      apply: traceable function (params, images, reconstructions) → distances [B], for images in [-1, 1].
      params: its parameters.
    """

    apply: Callable[[Tree, jax.Array, jax.Array], jax.Array]
    params: Tree


def lpips(folder: str | os.PathLike[str] | None = None) -> PerceptualDistance:
    """Loads LPIPS.

    Args:
      folder: folder of the weights; None: `eqjax.addresses.weights_folder()`.

    Raises:
      FileNotFoundError: the weights are missing; the message gives their address.
      FrozenWeightsError: the file is damaged.
    """
    module: Any
    module, params = nets.load("lpips", folder)

    def apply(params: Params, images: jax.Array, reconstructions: jax.Array) -> jax.Array:
        distances: Any = nets.lpips(params, images, reconstructions, module)
        return distances

    return PerceptualDistance(apply, params)
