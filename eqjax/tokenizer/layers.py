"""Building blocks of the column tokenizer.

Letters: B images, h and w rows and columns of a feature map, C channels.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1; the
residual down- and upsampling is that of deep-compression autoencoders, arXiv 2410.10733.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from eqjax.tokenizer.attention import column_attention
from eqjax.tokenizer.filters import Filter, extend
from eqjax.typing import PRNGKey, Scalar

# The channels of one position can all be small at once: dividing by less would make gradients spike.
_LOCAL_EPSILON = 1e-2


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """What all layers of a tokenizer have in common. The fields are those of `eqjax.Tokenizer` with the same names.

    Attributes:
      norm: kind of the norms, "group" or "pixel".
      padding: how maps continue beyond the image to the left and right, "reflect" or "circular".
      resample: resampling along the width, "shuffle" as published, or alias-free with filters, "kaiser" or "fft".
      dtype: compute dtype.
    """

    norm: str = "group"
    padding: str = "reflect"
    resample: str = "shuffle"
    dtype: DTypeLike = jnp.float32

    def filter(self, kind: str, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B h w2 C"]:
        """Applies one of `eqjax.tokenizer.filters` to a map; to be called inside a compact module."""
        return Filter(kind, self.resample, self.padding)(x)


def torch_kernel_init(key: PRNGKey, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draws a kernel uniformly from ±1/sqrt(fan_in): PyTorch's default for convolutions."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, tuple(shape), dtype)


def torch_bias_init(fan_in: int) -> Callable[..., jax.Array]:
    """Returns an initializer, uniform in ±1/sqrt(fan_in): PyTorch's default for biases."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: PRNGKey, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """Convolution of stride 1 over rows and columns or over columns alone.

    Rows are mirrored at their ends, columns are padded as the options say.

    Attributes:
      features: output channels.
      kernel: rows and columns, or columns.
      options: padding and compute dtype.
    """

    features: int
    kernel: Sequence[int] = (3, 3)
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B *size C"], width: Scalar | None = None
    ) -> Float[jax.Array, "B *size {self.features}"]:
        """Maps [B, …, C] to [B, …, features], same height and width.

        Args:
          x: feature map.
          width: columns of the map that belong to the image, at whose end the padding begins; None: all.
        """
        fan_in, padding = math.prod(self.kernel) * x.shape[-1], "VALID"
        if max(self.kernel) > 1 and self.options.padding == "circular":
            x = extend(x, 1, 1, "circular", width)
            x = jnp.pad(x, [(0, 0), *[(1, 1)] * (x.ndim - 3), (0, 0), (0, 0)], mode="reflect")
        elif max(self.kernel) > 1:
            padding, x = "REFLECT", x if width is None else _reflect(x, width)
        conv = nn.Conv(
            self.features,
            tuple(self.kernel),
            padding=padding,
            dtype=self.options.dtype,
            kernel_init=torch_kernel_init,
            bias_init=torch_bias_init(fan_in),
        )
        # nn.Conv shares the scope of this module, so that parameters are conv/kernel, conv/bias
        # without a second level.
        nn.share_scope(self, conv)
        return conv(x)


def _reflect(x: Float[jax.Array, "B *size C"], width: Scalar) -> Float[jax.Array, "B *size C"]:
    """Mirrors the last column but one of an image `width` columns wide into the column behind its end, if there is one.

    It is the one column of padding that a kernel of 3 sees.
    """
    mirrored = jax.lax.dynamic_index_in_dim(x, jnp.maximum(width - 2, 0), -2)
    behind = jnp.arange(x.shape[-2]) == width
    return jnp.where(jax.lax.broadcast_to_rank(behind[:, None], x.ndim), mirrored, x)


def normalize(
    x: Float[jax.Array, "B *size C"], kind: str, dtype: DTypeLike, name: str
) -> Float[jax.Array, "B *size C"]:
    """Applies the normalization layer of a kind; to be called inside a compact module.

    "group" is the published one: GroupNorm over the whole image, 32 groups. A number of channels that 32
    does not divide, which the published one cannot have, gets groups of 4 channels: a group of one would
    lose the mean of its channel. "pixel" (root mean square over channels) sees one position alone, which
    keeps the tokenizer local. Statistics are float32, and both have learned scales.

    Args:
      x: feature map.
      kind: "group" or "pixel".
      dtype: dtype of the result.
      name: name of the layer.

    Returns:
      The normalized map.
    """
    if kind == "group":
        groups = 32 if x.shape[-1] % 32 == 0 else max(1, x.shape[-1] // 4)
        layer = nn.GroupNorm(groups, epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)
    else:
        layer = nn.RMSNorm(epsilon=_LOCAL_EPSILON, dtype=dtype, name=name)
    with jax.numpy_dtype_promotion("standard"):  # Flax promotes bfloat16 to float32 for the statistics.
        return layer(x)


def activate(
    x: Float[jax.Array, "B h w C"], options: LayerOptions, filtered: bool, name: str
) -> Float[jax.Array, "B h w C"]:
    """Applies a norm and silu; to be called inside a compact module.

    Args:
      x: feature map.
      options: what all layers have in common.
      filtered: whether to compute both at twice the rate along the width, if the options are alias-free.
      name: name of the norm.
    """
    if options.resample == "shuffle" or not filtered:
        return nn.silu(normalize(x, options.norm, options.dtype, name))
    x = options.filter("interpolate", x)
    return options.filter("decimate", nn.silu(normalize(x, options.norm, options.dtype, name)))


class ResBlock(nn.Module):
    """Residual block: norm → silu → conv → norm → silu → conv, plus the input (projected if widths differ).

    Attributes:
      features: output channels.
      options: what all layers have in common.
      filtered: whether nonlinearities are filtered, if the options are alias-free.
    """

    features: int
    options: LayerOptions = LayerOptions()
    filtered: bool = False

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B h w {self.features}"]:
        """Maps [B, h, w, C] to [B, h, w, features]."""
        h = activate(x, self.options, self.filtered, "norm1")
        h = Conv(self.features, options=self.options, name="conv1")(h)
        h = activate(h, self.options, self.filtered, "norm2")
        h = Conv(self.features, options=self.options, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), self.options, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Residual attention: norm → single-head attention over positions → projection, plus the input.

    Attributes:
      window: columns of the map to either side that a position attends to; None: all.
      options: what all layers have in common.
      filtered: whether attention is computed at twice the rate and filtered, if the options are alias-free.
    """

    window: int | None = None
    options: LayerOptions = LayerOptions()
    filtered: bool = False

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"], width: Scalar | None = None) -> Float[jax.Array, "B h w C"]:
        """Maps [B, h, w, C] to the same shape.

        Args:
          x: feature map.
          width: columns of the map that belong to the image, which alone are attended to; None: all.
        """
        c, options = x.shape[-1], self.options
        filtered = self.filtered and options.resample != "shuffle"
        h = options.filter("interpolate", x) if filtered else x
        h = normalize(h, options.norm, options.dtype, "norm")
        maps = [Conv(c, (1, 1), options, name=name)(h) for name in ("query", "key", "value")]
        if filtered:  # Whole positions attend to whole ones, half-way ones to half-way ones: two images of the batch.
            maps = [jnp.concatenate([a[:, :, ::2], a[:, :, 1::2]]) for a in maps]
        h = column_attention(*maps, window=self.window, width=width, circular=options.padding == "circular")
        if filtered:
            h = options.filter("decimate", jnp.stack(jnp.split(h, 2), axis=3).reshape(*x.shape[:2], -1, c))
        return x + Conv(c, (1, 1), options, name="out")(h)


class Down(nn.Module):
    """Residual downsampling: convolution and space-to-depth, plus means of the input.

    Alias-free, both lose the upper half of their frequencies first: channels then hold the same band-limited map at
    two offsets. Parameters have the same shapes.

    Attributes:
      stride: rows and columns.
      options: what all layers have in common.
    """

    stride: tuple[int, int] = (2, 2)
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B h2 w2 C"]:
        """Maps [B, h, w, C] to [B, h / stride[0], w / stride[1], C]."""
        ratio = math.prod(self.stride)
        main = Conv(x.shape[-1] // ratio, options=self.options, name="conv")(x)
        if self.options.resample != "shuffle" and self.stride[1] > 1:
            main, x = self.options.filter("low_pass", main), self.options.filter("low_pass", x)
        skip = space_to_depth(x, self.stride)
        skip = skip.reshape(*skip.shape[:-1], -1, ratio).mean(-1)
        return space_to_depth(main, self.stride) + skip


class Up(nn.Module):
    """Residual upsampling: convolution and depth-to-space, plus repeats of the input.

    Alias-free, the result loses the upper half of its frequencies: it is the mean of two maps, each upsampled ideally
    from its channels, half a position apart. Parameters have the same shapes.

    Attributes:
      stride: rows and columns.
      options: what all layers have in common.
    """

    stride: tuple[int, int] = (2, 2)
    options: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B h2 w2 C"]:
        """Maps [B, h, w, C] to [B, h · stride[0], w · stride[1], C]."""
        ratio = math.prod(self.stride)
        main = Conv(x.shape[-1] * ratio, options=self.options, name="conv")(x)
        x = depth_to_space(main + jnp.repeat(x, ratio, axis=-1), self.stride)
        if self.options.resample != "shuffle" and self.stride[1] > 1:
            x = self.options.filter("low_pass", x)
        return x


def space_to_depth(x: Shaped[jax.Array, "B h w C"], stride: tuple[int, int]) -> Shaped[jax.Array, "B h2 w2 C2"]:
    """Moves blocks of positions into channels; `depth_to_space` is the inverse.

    Args:
      x: feature map.
      stride: rows sh and columns sw of a block.

    Returns:
      [B, h/sh, w/sw, C·sh·sw]; channel c·sh·sw + i·sw + j holds offset (i, j).
    """
    b, h, w, c = x.shape
    sh, sw = stride
    x = x.reshape(b, h // sh, sh, w // sw, sw, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, h // sh, w // sw, c * sh * sw)


def depth_to_space(x: Shaped[jax.Array, "B h w C"], stride: tuple[int, int]) -> Shaped[jax.Array, "B h2 w2 C2"]:
    """Moves channels into blocks of positions, the inverse of `space_to_depth`.

    Args:
      x: feature map, [B, h, w, C·sh·sw].
      stride: rows sh and columns sw of a block.

    Returns:
      [B, h·sh, w·sw, C].
    """
    b, h, w, c = x.shape
    sh, sw = stride
    x = x.reshape(b, h, w, c // (sh * sw), sh, sw).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, h * sh, w * sw, c // (sh * sw))
