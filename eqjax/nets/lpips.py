"""LPIPS: how different two images look, by the features of VGG16.

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric,
arXiv 1801.03924.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from eqjax.nets.vgg import VGG16

# What its authors subtract from, and divide by, images in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class LPIPS(nn.Module):
    """Weighted squared differences of VGG16's features, each normalized over its channels.

    Attributes:
      widths: of the convolutions, see `VGG16`.
      dtype: of the convolutions; norms, differences and means are float32.
    """

    widths: tuple[tuple[int, ...], ...] = VGG16.widths
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, y):
        """Images [B, H, W, 3] in [-1, 1], both sides at least 16 → distances, float32 [B]."""
        if x.shape != y.shape or min(x.shape[1:3]) < 2 ** (len(self.widths) - 1):
            raise ValueError(
                f"LPIPS compares images of equal shapes with sides of at least {2 ** (len(self.widths) - 1)} pixels, "
                f"got {x.shape} and {y.shape}."
            )
        vgg = VGG16(self.widths, self.dtype, name="vgg")
        # Two passes: where only one of the images is differentiated, only its pass is run backwards.
        distance = jnp.zeros(len(x), jnp.float32)
        for i, (a, b) in enumerate(zip(vgg((x - _SHIFT) / _SCALE), vgg((y - _SHIFT) / _SCALE), strict=True)):
            difference = jnp.square(_normalize(a) - _normalize(b))  # [B, h, w, C]
            distance += nn.Conv(1, (1, 1), use_bias=False, name=f"lin{i}")(difference).mean((1, 2, 3))
        return distance  # [B]

    def init_params(self, key):
        """New parameters (float32)."""
        image = jnp.zeros((1, 16, 16, 3))
        return self.init(key, image, image)["params"]


VGG_LPIPS = LPIPS()


def lpips(params, x, y, module=VGG_LPIPS):
    """LPIPS of pairs of images; gradients flow to the images and not to the parameters.

    Args:
      params: of `module`, from `eqjax.nets.load("lpips")`.
      x, y: [B, H, W, 3] in [-1, 1], sides at least 16 pixels.
      module: an `LPIPS`.

    Returns:
      float32 [B].

    Raises:
      ValueError: shapes that differ, or images too small for the network.
    """
    return module.apply({"params": jax.lax.stop_gradient(params)}, x, y)


def _normalize(x):
    """[B, h, w, C] with length 1 over channels; the gradient is finite where all channels are 0."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    alive = squares > 0
    return x / (jnp.where(alive, jnp.sqrt(jnp.where(alive, squares, 1.0)), 0.0) + 1e-10)
