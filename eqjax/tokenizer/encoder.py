"""The encoder: an image to one vector per column.

Letters: B images, H and W their height and width, L columns, h rows of the last level, C channels.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1.
"""

import flax.linen as nn
import jax
from jaxtyping import Float, Shaped

from eqjax.tokenizer.layers import AttentionBlock, Conv, Down, LayerOptions, ResBlock, activate, space_to_depth
from eqjax.tokenizer.levels import Level, LevelStack


class Encoder(nn.Module):
    """Images to column features, before the projection to the latent size.

    Attributes:
      stack: the resolution levels.
      z_channels: channels of the feature map before it is cut into columns.
      options: what all layers have in common.
    """

    stack: LevelStack
    z_channels: int
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, images: Float[jax.Array, "B H W 3"]) -> Float[jax.Array, "B L zh"]:
        """Maps images in [-1, 1] to columns [B, L, z_channels · h]."""
        options = self.options
        levels, patch = self.stack.levels, self.stack.patch_size
        x = space_to_depth(images, (patch, patch))
        x = Conv(self.stack.channels, options=options, name="conv_in")(x)
        for i, level in enumerate(levels):
            for j in range(self.stack.num_res_blocks):
                x = ResBlock(level.width, options, level.filtered, name=f"level{i}_block{j}")(x)
                if level.attends:
                    x = AttentionBlock(level.window, options, level.filtered, name=f"level{i}_attention{j}")(x)
            if i + 1 < len(levels):
                x = Down(level.down, options, name=f"level{i}_down")(x)
        x = mid(x, levels[-1], options)
        x = activate(x, options, levels[-1].filtered, "norm_out")
        x = Conv(self.z_channels, options=options, name="conv_out")(x)  # [B, h, L, z]
        x = to_columns(x)  # [B, L, z·h]
        return Conv(x.shape[-1], (3,), options, name="columns")(x)


def mid(x: Float[jax.Array, "B h L C"], level: Level, options: LayerOptions) -> Float[jax.Array, "B h L C"]:
    """Applies ResBlock, attention, ResBlock at the last level; to be called inside a compact module."""
    x = ResBlock(level.width, options, level.filtered, name="mid_block0")(x)
    x = AttentionBlock(level.window, options, level.filtered, name="mid_attention")(x)
    return ResBlock(level.width, options, level.filtered, name="mid_block1")(x)


def to_columns(x: Shaped[jax.Array, "B h L C"]) -> Shaped[jax.Array, "B L Ch"]:
    """Joins the rows of a map into one vector [C·h] per column: the channel index major, the row index minor."""
    b, h, w, c = x.shape
    return x.transpose(0, 2, 3, 1).reshape(b, w, c * h)


def from_columns(x: Shaped[jax.Array, "B L Ch"], h: int) -> Shaped[jax.Array, "B {h} L C"]:
    """Splits the vector [C·h] of every column into `h` rows, the inverse of `to_columns`."""
    b, w, ch = x.shape
    return x.reshape(b, w, ch // h, h).transpose(0, 3, 1, 2)
