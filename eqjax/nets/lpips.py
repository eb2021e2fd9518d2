"""LPIPS: a perceptual distance between images, from the features of VGG16.

Letters: B images, H and W their height and width, C channels.

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric,
arXiv 1801.03924.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped
import numpy as np

from eqjax.nets.vgg import VGG16
from eqjax.precision import Float32Products
from eqjax.typing import AnyArray, Params, PRNGKey

# Shift and scale of images in [-1, 1] in the original, [1, 1, 1, 3].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)[None, None, None]
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)[None, None, None]


class LPIPS(Float32Products):
    """Weighted squared differences of VGG16's features, each normalized over its channels.

    Attributes:
      widths: channels of the convolutions, see `VGG16`.
      dtype: compute dtype of the convolutions; norms, differences and means are float32.
    """

    widths: Sequence[Sequence[int]] = VGG16.widths
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Shaped[AnyArray, "..."], y: Shaped[AnyArray, "..."]) -> Float[jax.Array, "B"]:
        """Maps pairs of images [B, H, W, 3] in [-1, 1], sides at least 16, to distances [B], float32.

        Raises:
          ValueError: the shapes differ, or the images are too small for the network.
        """
        smallest = 2 ** (len(self.widths) - 1)
        if x.shape != y.shape or min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"LPIPS compares images of equal shapes with sides of at least {smallest} pixels, "
                f"got {x.shape} and {y.shape}."
            )
        vgg = VGG16(self.widths, self.dtype, name="vgg")
        # Two passes: if only one of the images is differentiated, only its pass is run backwards.
        features = zip(vgg(jnp.asarray((x - _SHIFT) / _SCALE)), vgg(jnp.asarray((y - _SHIFT) / _SCALE)), strict=True)
        distance = jnp.zeros(len(x), jnp.float32)
        for i, (a, b) in enumerate(features):
            difference = jnp.square(_normalize(a) - _normalize(b))  # [B, h, w, C]
            distance += nn.Conv(1, (1, 1), use_bias=False, name=f"lin{i}")(difference).mean((1, 2, 3))
        return distance

    def init_params(self, key: PRNGKey) -> Params:
        """Returns new parameters, float32."""
        image = jnp.zeros((1, 16, 16, 3))
        return self.init(key, image, image)["params"]


VGG_LPIPS = LPIPS()


def lpips(
    params: Params, x: Shaped[AnyArray, "..."], y: Shaped[AnyArray, "..."], module: LPIPS = VGG_LPIPS
) -> Float[jax.Array, "B"]:
    """Computes the LPIPS distance of pairs of images; gradients flow to the images and not to the parameters.

    Args:
      params: parameters of `module`, from `eqjax.nets.load("lpips")`.
      x, y: [B, H, W, 3] in [-1, 1], sides at least 16 pixels.
      module: the network.

    Returns:
      Distances, float32.

    Raises:
      ValueError: the shapes differ, or the images are too small for the network.

    Example:
      >>> from eqjax import nets
      >>> module, params = nets.load("lpips")  # doctest: +SKIP
      >>> nets.lpips(params, jnp.zeros((2, 64, 64, 3)), jnp.ones((2, 64, 64, 3))).shape  # doctest: +SKIP
      (2,)
    """
    distance: Any = module.apply({"params": jax.lax.stop_gradient(params)}, x, y)
    return distance


def _normalize(x: Float[AnyArray, "B h w C"]) -> Float[jax.Array, "B h w C"]:
    """Scales features to length 1 over channels; the gradient is finite where all channels are 0."""
    x = jnp.asarray(x, jnp.float32)
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    nonzero = squares > 0
    return x / (jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squares, 1.0)), 0.0) + 1e-10)
