"""The encoder: an image to one vector per column.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1.
"""

import flax.linen as nn
import jax.numpy as jnp

from eqjax.tokenizer.layers import AttentionBlock, Conv, Down, ResBlock, make_norm, space_to_depth
from eqjax.tokenizer.levels import LevelStack


class Encoder(nn.Module):
    """Images to column features, before the projection to the latent size."""

    levels: LevelStack
    z_channels: int
    norm: str = "group"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images):
        """[B, H, W, 3] in [-1, 1] → [B, L, z_channels · h], h the height of the last level."""
        kind = dict(norm=self.norm, dtype=self.dtype)
        x = space_to_depth(images, (self.levels.patch_size,) * 2)
        x = Conv(self.levels.channels, dtype=self.dtype, name="conv_in")(x)
        for i, level in enumerate(self.levels.levels):
            for j in range(self.levels.num_res_blocks):
                x = ResBlock(level.width, **kind, name=f"level{i}_block{j}")(x)
                if level.attends:
                    x = AttentionBlock(level.window, **kind, name=f"level{i}_attention{j}")(x)
            if level.down is not None:
                x = Down(level.down, dtype=self.dtype, name=f"level{i}_down")(x)
        x = mid(x, self.levels, kind)
        x = nn.silu(make_norm(self.norm, x.shape[-1], self.dtype, "norm_out")(x))
        x = Conv(self.z_channels, dtype=self.dtype, name="conv_out")(x)  # [B, h, L, z]
        x = to_columns(x)  # [B, L, z·h]
        return Conv(x.shape[-1], (3,), dtype=self.dtype, name="columns")(x)


def mid(x, levels, kind):
    """ResBlock, attention, ResBlock at the lowest resolution; called inside a compact module."""
    level = levels.levels[-1]
    x = ResBlock(level.width, **kind, name="mid_block0")(x)
    x = AttentionBlock(level.window, **kind, name="mid_attention")(x)
    return ResBlock(level.width, **kind, name="mid_block1")(x)


def to_columns(x):
    """[B, h, w, C] → [B, w, C·h]: the channel index major, the row index minor."""
    b, h, w, c = x.shape
    return x.transpose(0, 2, 3, 1).reshape(b, w, c * h)


def from_columns(x, h):
    """The inverse of `to_columns`: [B, w, C·h] → [B, h, w, C]."""
    b, w, ch = x.shape
    return x.reshape(b, w, ch // h, h).transpose(0, 3, 1, 2)
