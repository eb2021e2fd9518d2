"""The decoder: column vectors to an image, and the head that predicts semantic features.

Letters: B images, H and W their height and width, L columns, h rows of the last level, C channels.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from eqjax.config_fields import checked
from eqjax.module_fields import SEMANTIC
from eqjax.tokenizer.encoder import from_columns, mid
from eqjax.tokenizer.layers import AttentionBlock, Conv, Down, LayerOptions, ResBlock, Up, activate, depth_to_space
from eqjax.tokenizer.levels import LevelStack


class Decoder(nn.Module):
    """Column features to images, and the feature map that the semantic head reads.

    Attributes:
      stack: the resolution levels.
      options: what all layers have in common.
    """

    stack: LevelStack
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(
        self, columns: Float[jax.Array, "B L zh"]
    ) -> tuple[Float[jax.Array, "B H W 3"], Float[jax.Array, "B h L C"]]:
        """Maps columns [B, L, z·h] to images (float32, not clipped) and the semantic map [B, h, L, C]."""
        levels, patch, options = self.stack.levels, self.stack.patch_size, self.options
        x = Conv(columns.shape[-1], (3,), options, name="columns")(columns)
        x = from_columns(x, self.stack.heights[-1])  # [B, h, L, z]
        x = Conv(levels[-1].width, options=options, name="conv_in")(x)
        x = semantic_map = mid(x, levels[-1], options)
        for i in reversed(range(len(levels))):
            level = levels[i]
            for j in range(self.stack.num_res_blocks + 1):
                x = ResBlock(level.width, options, level.filtered, name=f"level{i}_block{j}")(x)
                if level.attends:
                    x = AttentionBlock(level.window, options, level.filtered, name=f"level{i}_attention{j}")(x)
            if i == len(levels) - 1:
                semantic_map = x
            if i > 0:
                # The reference doubles columns on the way up where i ≤ square_downsamples, which
                # is exactly where the encoder halved them between levels i − 1 and i.
                x = Up(levels[i - 1].down, options, name=f"level{i}_up")(x)
        x = activate(x, options, levels[0].filtered, "norm_out")
        refine = self.stack.refine_channels
        if refine is None:
            x = Conv(3 * patch**2, options=options, name="conv_out")(x)
            images = depth_to_space(x, (patch, patch))
        else:
            x = Conv(refine * patch**2, (1, 1), options, name="conv_out")(x)
            images = Refine(options=options, name="refine")(depth_to_space(x, (patch, patch)))
        return images.astype(jnp.float32), semantic_map


class Refine(nn.Module):
    """Features at the image's resolution to an image: one residual block and a convolution to RGB.

    Convolutions that reach across patches join them: a decoder that writes every patch from one position
    leaves visible borders. The features are few, as they cost memory traffic at every pixel, and have no norm.

    Attributes:
      options: what all layers have in common.
    """

    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B H W C"]) -> Float[jax.Array, "B H W 3"]:
        """Maps features [B, H, W, C] to images [B, H, W, 3]."""
        h = Conv(2 * x.shape[-1], options=self.options, name="conv1")(nn.silu(x))
        h = Conv(x.shape[-1], options=self.options, name="conv2")(nn.silu(h))
        return Conv(3, options=self.options, name="conv_out")(x + h)


@dataclasses.dataclass(frozen=True)
class SemanticConfig:
    """Fields of the semantic head.

    Attributes:
      channels: base width; the map that the head reads has channels · channel_multipliers[0] channels.
      channel_multipliers: one per level.
      num_res_blocks: ResBlocks per level.
      out_channels: channels of the predicted features (768 for DINOv2 ViT-B/14).
      downsamples: number of levels that halve rows and columns.

    Raises:
      TypeError: a field is of another type.
      ValueError: a field is out of range.
    """

    channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    out_channels: int
    downsamples: int

    def __post_init__(self) -> None:
        for name, value in checked(vars(self), SEMANTIC).items():
            object.__setattr__(self, name, value)

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of every level."""
        multipliers = (*self.channel_multipliers[1:], self.out_channels // self.channels)
        return tuple(self.channels * m for m in multipliers)


class SemanticHead(nn.Module):
    """Predicts semantic features of the image from the decoder's map at column resolution.

    Attributes:
      config: its sizes.
      options: what all layers have in common.
      filtered: whether nonlinearities are filtered, if the options are alias-free.
    """

    config: SemanticConfig
    options: LayerOptions = LayerOptions()
    filtered: bool = False

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h L C"]) -> Float[jax.Array, "B h2 L2 {self.config.out_channels}"]:
        """Maps the decoder's semantic map to features [B, h', L', out_channels], float32."""
        for i, width in enumerate(self.config.widths):
            for j in range(self.config.num_res_blocks):
                x = ResBlock(width, self.options, self.filtered, name=f"level{i}_block{j}")(x)
            if i < self.config.downsamples:
                x = Down((2, 2), self.options, name=f"level{i}_down")(x)
        x = activate(x, self.options, self.filtered, "norm_out")
        x = Conv(self.config.out_channels, options=self.options, name="conv_out")(x)
        return x.astype(jnp.float32)
