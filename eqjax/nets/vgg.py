"""The convolutions of VGG16, read at five depths.

Source: Simonyan and Zisserman, arXiv 1409.1556, configuration D.
"""

import flax.linen as nn
import jax.numpy as jnp


class VGG16(nn.Module):
    """Features after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    Attributes:
      widths: per stage, the channels of its convolutions; stages are separated by max pooling.
      dtype: of the computation; parameters are float32.
    """

    widths: tuple[tuple[int, ...], ...] = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Normalised images [B, H, W, 3] → five maps, [B, H, W, 64] … [B, H/16, W/16, 512]."""
        features, layer = [], 0
        for stage, widths in enumerate(self.widths):
            if stage:
                x = nn.max_pool(x, (2, 2), (2, 2))
                layer += 1
            for width in widths:
                # Numbered as torchvision numbers layers, which counts nonlinearities and pooling.
                x = nn.relu(nn.Conv(width, (3, 3), padding=1, dtype=self.dtype, name=f"conv{layer}")(x))
                layer += 2
            features.append(x)  # [B, H / 2^stage, W / 2^stage, width]
        return tuple(features)
