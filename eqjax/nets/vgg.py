"""The convolutions of VGG16, with the features at each of its five resolutions.

Source: Simonyan and Zisserman, arXiv 1409.1556, configuration D.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from eqjax.precision import Float32Products


class VGG16(Float32Products):
    """Features after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    Attributes:
      widths: channels of the convolutions of every resolution; max pooling separates them.
      dtype: compute dtype; parameters are float32.
    """

    widths: Sequence[Sequence[int]] = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B H W 3"]) -> tuple[Float[jax.Array, "B _ _ _"], ...]:
        """Maps normalized images to one feature map per resolution, [B, H, W, 64] … [B, H/16, W/16, 512]."""
        features, layer = [], 0
        for i, widths in enumerate(self.widths):
            if i:
                x = nn.max_pool(x, (2, 2), (2, 2))
                layer += 1
            for width in widths:
                # Numbered as torchvision numbers layers, which counts nonlinearities and pooling.
                x = nn.relu(nn.Conv(width, (3, 3), padding=1, dtype=self.dtype, name=f"conv{layer}")(x))
                layer += 2
            features.append(x)  # [B, H / 2^i, W / 2^i, width]
        return tuple(features)
