"""The column tokenizer: images to one latent vector per column of pixels, and back.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1.
"""

from collections.abc import Mapping
import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from eqjax.tokenizer.decoder import Decoder, SemanticConfig, SemanticHead
from eqjax.tokenizer.encoder import Encoder
from eqjax.tokenizer.layers import NORMS, Conv
from eqjax.tokenizer.levels import LevelStack
from eqjax.tokenizer.posterior import Posterior

# Top-level parameters that decide the latents; the others decide what they decode to.
ENCODER_PARTS = ("encoder", "quant")


@flax.struct.dataclass
class Decoded:
    """What latents decode to.

    Attributes:
      images: [B, H, W, 3], in [-1, 1] up to overshoot.
      semantic: predicted semantic features [B, h, w, C], or None without a semantic head.
    """

    images: jax.Array
    semantic: jax.Array | None


class Tokenizer(nn.Module):
    """Convolutional autoencoder with one latent vector per column of the image.

    The defaults are the published full size: 256 pixels high, 16-pixel columns, 256 channels.

    Attributes:
      channels: base width.
      channel_multipliers: width of every level over `channels`; levels − 1 downsamplings.
      num_res_blocks: ResBlocks per level of the encoder (the decoder has one more).
      attention_resolutions: image heights at which ResBlocks are followed by attention.
      resolution: image height in pixels.
      z_channels: channels of the feature map before it is cut into columns.
      embed_dim: latent size D.
      square_downsamples: how many of the downsamplings halve columns too; the others halve rows.
      semantic: a `SemanticConfig` or a mapping of its fields; None: no semantic head.
      norm: "group" as published (statistics of the whole image), or "pixel" (of one position).
      attention_window: attention reaches this many latent columns to either side; None: all, as
        published. With norm "pixel" and a window every operation is local: the tokenizer is then
        equivariant to shifts by whole columns away from the borders, and `halo_columns` is known.
      patch_size: the first level works on patches of this many pixels squared instead of pixels; 1 as
        published. Saves the full-resolution levels, which cost a CPU most.
      posterior_std: bound of the posterior's noise level.
      dtype: compute dtype; parameters, norms' statistics and softmax are float32.
    """

    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    resolution: int = 256
    z_channels: int = 256
    embed_dim: int = 256
    square_downsamples: int = 4
    semantic: SemanticConfig | None = None
    norm: str = "group"
    attention_window: int | None = None
    patch_size: int = 1
    posterior_std: float = 2.5
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        # Modules are static arguments of jitted functions, so fields that come from JSON or a
        # config (lists, mappings) are made hashable.
        self.channel_multipliers = tuple(self.channel_multipliers)
        self.attention_resolutions = tuple(self.attention_resolutions)
        if isinstance(self.semantic, Mapping):
            fields = {k: tuple(v) if isinstance(v, list) else v for k, v in self.semantic.items()}
            self.semantic = SemanticConfig(**fields)
        super().__post_init__()
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r} is not one of {NORMS}.")
        self._check_ranges()
        if self.resolution % self.levels.stride[0]:
            raise ValueError(
                f"resolution={self.resolution} is not a multiple of the row stride "
                f"{self.levels.stride[0]} of {len(self.channel_multipliers)} levels on patches of "
                f"{self.patch_size}."
            )
        if self.attention_window is not None and self.attention_window < 0:
            raise ValueError(f"attention_window={self.attention_window} must be ≥ 0 or None.")
        heights = [self.resolution // (self.patch_size * 2**i) for i in range(len(self.channel_multipliers))]
        if unknown := [height for height in self.attention_resolutions if height not in heights]:
            raise ValueError(f"attention_resolutions {unknown} are not among the levels' heights {heights}.")
        for level in self.levels.levels[:-1]:
            if level.width % math.prod(level.down):
                raise ValueError(
                    f"a level of channels · multiplier = {level.width} channels cannot be halved by {level.down}: its "
                    f"channels must be a multiple of {math.prod(level.down)}."
                )

    @nn.nowrap
    def _check_ranges(self):
        for name in ("channels", "num_res_blocks", "resolution", "z_channels", "embed_dim", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be ≥ 1.")
        for name in ("square_downsamples", "posterior_std"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be ≥ 0.")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(f"channel_multipliers={self.channel_multipliers} must be one or more numbers ≥ 1.")

    def setup(self):
        kind = dict(norm=self.norm, dtype=self.dtype)
        self.encoder = Encoder(self.levels, self.z_channels, **kind)
        self.quant = Conv(self.embed_dim, (3,), dtype=self.dtype)
        self.post_quant = Conv(self.z_channels * self.levels.height, (3,), dtype=self.dtype)
        self.decoder = Decoder(self.levels, **kind)
        if self.semantic is not None:
            self.semantic_head = SemanticHead(self.semantic, **kind)

    @property
    def levels(self):
        """The resolution levels, a `LevelStack`."""
        return LevelStack(
            self.channels,
            self.channel_multipliers,
            self.num_res_blocks,
            self.attention_resolutions,
            self.resolution,
            self.square_downsamples,
            self.attention_window,
            self.patch_size,
        )

    @property
    def column_width(self):
        """Pixels per column: image widths are multiples of it."""
        return self.levels.stride[1]

    @property
    def halo_columns(self):
        """Columns on either side of a piece that decide it together with the piece itself.

        Encoding (or decoding) a piece with this many columns around it, and dropping them from the
        result, equals the same piece of the whole. None where every column depends on all.
        """
        return None if self.norm == "group" else self.levels.halo_columns()

    @nn.nowrap
    def init_params(self, key):
        """Fresh parameters (float32)."""
        images = jnp.zeros((1, self.resolution, 2 * self.column_width, 3))
        return self.init({"params": key}, images)["params"]

    def __call__(self, images):
        """Encodes and decodes without noise: [B, H, W, 3] → `Decoded`."""
        return self.decode(self.encode(images).mode())

    def encode(self, images):
        """Images [B, H, W, 3] in [-1, 1] → `Posterior` over latents [B, L, D], L = W / column width.

        Raises:
          ValueError: the shape does not fit `resolution` and the column width.
        """
        self.check_images(images.shape)
        images = jnp.asarray(images, self.dtype)
        latents = self.quant(self.encoder(images))  # [B, L, D]
        return Posterior(latents.astype(jnp.float32), self.posterior_std)

    def decode(self, latents):
        """Latents [B, L, D] (unscaled, as `encode` gives them) → `Decoded`.

        Raises:
          ValueError: the latents are not [B, L ≥ 1, embed_dim].
        """
        self.check_latents(latents.shape)
        latents = jnp.asarray(latents, self.dtype)
        images, semantic_map = self.decoder(self.post_quant(latents))  # [B, H, W, 3], [B, h, L, C]
        if self.semantic is None:
            return Decoded(images, None)
        return Decoded(images, self.semantic_head(semantic_map))

    @nn.nowrap
    def check_latents(self, shape):
        """Refuses a shape of latents that `decode` does not take.

        Raises:
          ValueError: it is not [B, L ≥ 1, embed_dim].
        """
        if len(shape) != 3 or shape[1] < 1 or shape[2] != self.embed_dim:
            raise ValueError(
                f"latents have shape {tuple(shape)}; this tokenizer decodes [batch, columns ≥ 1, "
                f"embed_dim={self.embed_dim}]."
            )

    @nn.nowrap
    def check_images(self, shape):
        """Compares the shape of images with [B, resolution, multiple of column_width, 3].

        Raises:
          ValueError: it does not fit; the message says what would.
        """
        width = self.column_width
        if len(shape) != 4 or shape[3] != 3:
            raise ValueError(f"images have shape {tuple(shape)}; expected [batch, height, width, 3].")
        if shape[1] != self.resolution:
            raise ValueError(
                f"image height {shape[1]} does not fit this tokenizer, which encodes images "
                f"{self.resolution} pixels high; resize them to that height."
            )
        if shape[2] < width or shape[2] % width:
            raise ValueError(
                f"image width {shape[2]} is not a positive multiple of the column width {width}; "
                f"crop or resize to {max(width, shape[2] // width * width)} pixels."
            )
