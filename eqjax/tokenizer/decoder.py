"""The decoder: column vectors to an image, and the head that predicts semantic features.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from eqjax.tokenizer.encoder import from_columns, mid
from eqjax.tokenizer.layers import AttentionBlock, Conv, Down, ResBlock, Up, depth_to_space, make_norm
from eqjax.tokenizer.levels import LevelStack


class Decoder(nn.Module):
    """Column features to images, and the feature map that the semantic head reads."""

    levels: LevelStack
    norm: str = "group"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, columns):
        """[B, L, z·h] → images [B, H, W, 3] (not clipped), semantic map [B, h, L, C]."""
        kind = dict(norm=self.norm, dtype=self.dtype)
        levels = self.levels.levels
        x = Conv(columns.shape[-1], (3,), dtype=self.dtype, name="columns")(columns)
        x = from_columns(x, self.levels.height)  # [B, h, L, z]
        x = Conv(levels[-1].width, dtype=self.dtype, name="conv_in")(x)
        x = mid(x, self.levels, kind)
        semantic_map = None
        for i in reversed(range(len(levels))):
            level = levels[i]
            for j in range(self.levels.num_res_blocks + 1):
                x = ResBlock(level.width, **kind, name=f"level{i}_block{j}")(x)
                if level.attends:
                    x = AttentionBlock(level.window, **kind, name=f"level{i}_attention{j}")(x)
            if semantic_map is None:
                semantic_map = x
            if i > 0:
                # The reference doubles columns on the way up where i ≤ square_downsamples, that
                # is exactly where the encoder halved them between levels i − 1 and i.
                x = Up(levels[i - 1].down, dtype=self.dtype, name=f"level{i}_up")(x)
        x = nn.silu(make_norm(self.norm, x.shape[-1], self.dtype, "norm_out")(x))
        patch = self.levels.patch_size
        x = Conv(3 * patch**2, dtype=self.dtype, name="conv_out")(x)
        images = depth_to_space(x, (patch, patch))
        return images.astype(jnp.float32), semantic_map


@dataclasses.dataclass(frozen=True)
class SemanticConfig:
    """Fields of the semantic head.

    Attributes:
      channels: base width; the map that it reads has channels · channel_multipliers[0] channels.
      channel_multipliers: one per level.
      num_res_blocks: ResBlocks per level.
      out_channels: channels of the predicted features (768 for DINOv2 ViT-B/14).
      downsamples: number of levels that halve rows and columns.
    """

    channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    out_channels: int
    downsamples: int

    @property
    def widths(self):
        """Output channels per level."""
        multipliers = (*self.channel_multipliers[1:], self.out_channels // self.channels)
        return tuple(self.channels * m for m in multipliers)


class SemanticHead(nn.Module):
    """Predicts semantic features of the image from the decoder's map at column resolution."""

    config: SemanticConfig
    norm: str = "group"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, h, w, C] → [B, h', w', out_channels]."""
        for i, width in enumerate(self.config.widths):
            for j in range(self.config.num_res_blocks):
                x = ResBlock(width, self.norm, self.dtype, name=f"level{i}_block{j}")(x)
            if i < self.config.downsamples:
                x = Down((2, 2), dtype=self.dtype, name=f"level{i}_down")(x)
        x = nn.silu(make_norm(self.norm, x.shape[-1], self.dtype, "norm_out")(x))
        x = Conv(self.config.out_channels, dtype=self.dtype, name="conv_out")(x)
        return x.astype(jnp.float32)
