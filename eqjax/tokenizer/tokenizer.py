"""The column tokenizer: images to one latent vector per column of pixels, and back.

Letters: B images, H and W their height and width, L columns, D latent size.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from eqjax.config_fields import checked
from eqjax.module_fields import TOKENIZER
from eqjax.tokenizer.decoder import Decoder, SemanticConfig, SemanticHead
from eqjax.tokenizer.encoder import Encoder
from eqjax.tokenizer.layers import Conv, LayerOptions
from eqjax.tokenizer.levels import LevelStack
from eqjax.tokenizer.posterior import Posterior
from eqjax.typing import AnyArray, Params, PRNGKey

# Top-level parameters that determine the latents; the others determine how latents are decoded.
ENCODER_PARTS = ("encoder", "quant")


@flax.struct.dataclass
class Decoded:
    """The result of decoding latents.

    Attributes:
      images: in [-1, 1] up to overshoot.
      semantic: predicted semantic features, or None without a semantic head.
    """

    images: Float[AnyArray, "B H W 3"]
    semantic: Float[AnyArray, "B h w C"] | None


class Tokenizer(nn.Module):
    """Convolutional autoencoder with one latent vector per column of the image.

    The defaults are the published full size: 256 pixels high, 16-pixel columns, 256 channels.

    Attributes:
      channels: base width.
      channel_multipliers: width of every level over `channels`; one downsampling between two levels.
      num_res_blocks: ResBlocks per level of the encoder (the decoder has one more).
      attention_resolutions: image heights at which ResBlocks are followed by attention.
      resolution: image height in pixels.
      z_channels: channels of the feature map before it is cut into columns.
      embed_dim: latent size D.
      square_downsamples: number of downsamplings that halve rows and columns; the later ones halve rows.
      semantic: a `SemanticConfig` or a mapping of its fields; None: no semantic head.
      norm: "group" as published (statistics of the whole image), or "pixel" (of one position).
      attention_window: latent columns to either side that attention reaches; None: all, as published.
        With norm "pixel" and a window every operation is local: the tokenizer is then equivariant to
        shifts by whole columns away from the borders, and `halo_columns` is known.
      patch_size: side of the square patches that the first level works on; 1 as published. Larger patches
        save the full-resolution levels, which cost a CPU most.
      refine_channels: features per pixel of a residual block at the image's resolution that ends the decoder
        and joins its patches; None: no such block, as published.
      padding: how the image continues beyond its left and right ends: "reflect" as published, or "circular", for
        panoramas that close. Every column then depends on both ends, and `halo_columns` is None.
      resample: resampling along the width: "shuffle" as published, or alias-free, with "kaiser" or "fft" filters
        around every change of rate and every nonlinearity between (`eqjax.tokenizer.filters`). Latents then move
        with the image by fractions of a column, too. "kaiser" filters are finite, so tiles equal the whole; "fft"
        ones are ideal and see the whole width, so they need padding="circular". Parameters have the same shapes, and
        compute something else.
      posterior_std: bound of the posterior's noise level.
      dtype: compute dtype; parameters, norms' statistics and softmax are float32.

    Raises:
      TypeError: a field is of another type.
      ValueError: a field is out of range, or fields contradict each other.

    Example:
      >>> import jax
      >>> tokenizer = Tokenizer(
      ...     channels=8, channel_multipliers=(1, 1), num_res_blocks=1, attention_resolutions=(), resolution=16,
      ...     z_channels=2, embed_dim=4,
      ... )
      >>> params = jax.jit(tokenizer.init_params)(jax.random.key(0))
      >>> images = jnp.zeros((1, 16, 32, 3))
      >>> apply = jax.jit(tokenizer.apply, static_argnames="method")
      >>> posterior = apply({"params": params}, images, method="encode")
      >>> posterior.mean.shape  # One latent vector per column of 2 pixels.
      (1, 16, 4)
      >>> apply({"params": params}, posterior.mode(), method="decode").images.shape
      (1, 16, 32, 3)
    """

    channels: int = 128
    channel_multipliers: Sequence[int] = (1, 1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    resolution: int = 256
    z_channels: int = 256
    embed_dim: int = 256
    square_downsamples: int = 4
    semantic: SemanticConfig | Mapping[str, Any] | None = None
    norm: str = "group"
    attention_window: int | None = None
    patch_size: int = 1
    refine_channels: int | None = None
    padding: str = "reflect"
    resample: str = "shuffle"
    posterior_std: float = 2.5
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        # Modules are static arguments of jitted functions, so fields that come from JSON or a config (lists, mappings)
        # are made hashable.
        values = dict(vars(self))
        if isinstance(self.semantic, SemanticConfig):
            del values["semantic"]  # It has checked itself.
        for name, value in checked(values, TOKENIZER).items():
            setattr(self, name, SemanticConfig(**value) if name == "semantic" and value is not None else value)
        super().__post_init__()
        self._check_levels()

    @nn.nowrap
    def _check_levels(self) -> None:
        """Checks that the fields fit each other, and give whole resolution levels."""
        if self.resample == "fft" and self.padding != "circular":
            raise ValueError(
                f"resample='fft' wraps around at the ends of an image, and padding={self.padding!r} does not: set "
                "padding='circular', or resample='kaiser'."
            )
        stack = self.level_stack
        if self.resolution % stack.stride[0]:
            raise ValueError(
                f"resolution={self.resolution} is not a multiple of the row stride {stack.stride[0]} of "
                f"{len(self.channel_multipliers)} levels on patches of {self.patch_size}."
            )
        if unknown := [height for height in self.attention_resolutions if height not in stack.heights]:
            raise ValueError(
                f"attention_resolutions {unknown} are not among the levels' heights {list(stack.heights)}."
            )
        for level in stack.levels:
            if level.width % math.prod(level.down):
                raise ValueError(
                    f"a level of channels · multiplier = {level.width} channels cannot be halved by {level.down}: its "
                    f"channels must be a multiple of {math.prod(level.down)}."
                )

    def setup(self) -> None:
        stack, options = self.level_stack, LayerOptions(self.norm, self.padding, self.resample, self.dtype)
        self.encoder = Encoder(stack, self.z_channels, options)
        self.quant = Conv(self.embed_dim, (3,), options)
        self.post_quant = Conv(self.z_channels * stack.heights[-1], (3,), options)
        self.decoder = Decoder(stack, options)
        if isinstance(self.semantic, SemanticConfig):
            self.semantic_head = SemanticHead(self.semantic, options, stack.levels[-1].filtered)

    @property
    def level_stack(self) -> LevelStack:
        """The resolution levels."""
        return LevelStack(
            self.channels,
            tuple(self.channel_multipliers),
            self.num_res_blocks,
            tuple(self.attention_resolutions),
            self.resolution,
            self.square_downsamples,
            self.attention_window,
            self.patch_size,
            self.refine_channels,
            self.resample,
        )

    @property
    def column_width(self) -> int:
        """Pixels per column: image widths are multiples of it."""
        return self.level_stack.stride[1]

    @property
    def halo_columns(self) -> int | None:
        """Number of columns on either side of a tile that its result depends on.

        Encoding (or decoding) a tile with this many columns around it, and dropping them from the
        result, equals the same part of the whole. None if every column depends on all.
        """
        local = self.norm != "group" and self.padding != "circular"
        return self.level_stack.halo_columns() if local else None

    @nn.nowrap
    def last_layer(self, params: Params) -> Params:
        """Returns the kernel and bias of the decoder's last convolution, which writes the image."""
        decoder = params["decoder"]
        return (decoder if self.refine_channels is None else decoder["refine"])["conv_out"]

    @nn.nowrap
    def init_params(self, key: PRNGKey) -> Params:
        """Returns new parameters, float32."""
        images = jnp.zeros((1, self.resolution, 2 * self.column_width, 3))
        return self.init({"params": key}, images)["params"]

    def __call__(self, images: Shaped[AnyArray, "..."]) -> Decoded:
        """Encodes and decodes images [B, H, W, 3] without noise."""
        return self.decode(self.encode(images).mode())

    def encode(self, images: Shaped[AnyArray, "..."]) -> Posterior:
        """Encodes images to a posterior over latents [B, L, D], L = W / `column_width`.

        Args:
          images: [B, H, W, 3] in [-1, 1].

        Returns:
          The posterior, float32.

        Raises:
          ValueError: the shape does not fit `resolution` and the column width.
        """
        self.check_images(images.shape)
        latents = self.quant(self.encoder(jnp.asarray(images, self.dtype)))  # [B, L, D]
        return Posterior(latents.astype(jnp.float32), self.posterior_std)

    def decode(self, latents: Shaped[AnyArray, "..."]) -> Decoded:
        """Decodes latents to images and, with a semantic head, to semantic features.

        Args:
          latents: [B, L, D], unscaled, as `encode` returns them.

        Returns:
          Images [B, H, W, 3] and features, float32.

        Raises:
          ValueError: the latents are not [B, L ≥ 1, embed_dim].
        """
        self.check_latents(latents.shape)
        columns = self.post_quant(jnp.asarray(latents, self.dtype))  # [B, L, z·h]
        images, semantic_map = self.decoder(columns)  # [B, H, W, 3], [B, h, L, C]
        return Decoded(images, None if self.semantic is None else self.semantic_head(semantic_map))

    @nn.nowrap
    def check_latents(self, shape: Sequence[int]) -> None:
        """Checks a shape of latents before `decode`.

        Raises:
          ValueError: it is not [B, L ≥ 1, embed_dim].
        """
        if len(shape) != 3 or not shape[0] or not shape[1] or shape[2] != self.embed_dim:
            raise ValueError(
                f"latents have shape {tuple(shape)}; this tokenizer decodes [batch ≥ 1, columns ≥ 1, "
                f"embed_dim={self.embed_dim}]."
            )

    @nn.nowrap
    def check_images(self, shape: Sequence[int]) -> None:
        """Checks a shape of images before `encode`.

        Raises:
          ValueError: it is not [B, resolution, a multiple of column_width, 3]; the message names the
            nearest size that fits.
        """
        width = self.column_width
        if len(shape) != 4 or shape[3] != 3 or not shape[0]:
            raise ValueError(f"images have shape {tuple(shape)}; expected [batch ≥ 1, height, width, 3].")
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
