"""Building blocks of the column tokenizer. Feature maps are [B, h, w, C].

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1; the
residual down- and upsampling is that of deep-compression autoencoders, arXiv 2410.10733.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from eqjax.tokenizer.attention import column_attention

NORMS = ("group", "pixel")

# The channels of one position can all be small at once: dividing by less would make gradients spike.
_LOCAL_EPSILON = 1e-2


def torch_kernel_init(key, shape, dtype=jnp.float32):
    """Uniform in ±1/sqrt(fan_in): PyTorch's default for convolution kernels."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)


def torch_bias_init(fan_in):
    """Returns an initializer, uniform in ±1/sqrt(fan_in): PyTorch's default for biases."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """Convolution of stride 1 with reflect padding, in two dimensions or along columns.

    Fields: features (output channels), kernel (rows and columns, or columns), dtype (compute).
    """

    features: int
    kernel: tuple[int, ...] = (3, 3)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, …, C] → [B, …, features], same height and width."""
        fan_in = math.prod(self.kernel) * x.shape[-1]
        conv = nn.Conv(
            self.features,
            self.kernel,
            padding="REFLECT" if max(self.kernel) > 1 else "VALID",
            dtype=self.dtype,
            kernel_init=torch_kernel_init,
            bias_init=torch_bias_init(fan_in),
        )
        # nn.Conv lives in the scope of this module, so that parameters are conv/kernel, conv/bias
        # without a second level.
        nn.share_scope(self, conv)
        return conv(x)


def make_norm(kind, channels, dtype, name):
    """The normalization layer called `kind`: statistics in float32, affine.

    "group" is the published one: GroupNorm over the whole image, 32 groups. Widths that 32 does not
    divide, which the published one cannot have, get groups of 4 channels: a group of one would lose
    the mean of its channel. "pixel" (root mean square over channels) sees one position alone, which
    keeps the tokenizer local.
    """
    if kind == "group":
        groups = 32 if channels % 32 == 0 else max(1, channels // 4)
        return nn.GroupNorm(groups, epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)
    return nn.RMSNorm(epsilon=_LOCAL_EPSILON, dtype=dtype, name=name)


class ResBlock(nn.Module):
    """norm → silu → conv → norm → silu → conv, plus the input (projected where widths differ)."""

    features: int
    norm: str = "group"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, h, w, C] → [B, h, w, features]."""
        h = nn.silu(make_norm(self.norm, x.shape[-1], self.dtype, "norm1")(x))
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        h = nn.silu(make_norm(self.norm, self.features, self.dtype, "norm2")(h))
        h = Conv(self.features, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), dtype=self.dtype, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """norm → single-head attention over positions → projection, plus the input.

    Fields: window, in feature columns to either side; None attends to the whole image.
    """

    window: int | None = None
    norm: str = "group"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, h, w, C] → the same shape."""
        c = x.shape[-1]
        h = make_norm(self.norm, c, self.dtype, "norm")(x)
        query, key, value = (Conv(c, (1, 1), dtype=self.dtype, name=name)(h) for name in ("query", "key", "value"))
        h = column_attention(query, key, value, window=self.window)
        return x + Conv(c, (1, 1), dtype=self.dtype, name="out")(h)


class Down(nn.Module):
    """Residual downsampling by `stride` (rows, columns): conv and space-to-depth, plus means."""

    stride: tuple[int, int] = (2, 2)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, h, w, C] → [B, h / stride[0], w / stride[1], C]."""
        ratio = math.prod(self.stride)
        main = Conv(x.shape[-1] // ratio, dtype=self.dtype, name="conv")(x)
        skip = space_to_depth(x, self.stride)
        skip = skip.reshape(*skip.shape[:-1], -1, ratio).mean(-1)
        return space_to_depth(main, self.stride) + skip


class Up(nn.Module):
    """Residual upsampling by `stride` (rows, columns): conv and depth-to-space, plus repeats."""

    stride: tuple[int, int] = (2, 2)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, h, w, C] → [B, h · stride[0], w · stride[1], C]."""
        ratio = math.prod(self.stride)
        main = Conv(x.shape[-1] * ratio, dtype=self.dtype, name="conv")(x)
        return depth_to_space(main + jnp.repeat(x, ratio, axis=-1), self.stride)


def space_to_depth(x, stride):
    """[B, h, w, C] → [B, h/sh, w/sw, C·sh·sw]; channel c·sh·sw + i·sw + j holds offset (i, j)."""
    b, h, w, c = x.shape
    sh, sw = stride
    x = x.reshape(b, h // sh, sh, w // sw, sw, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, h // sh, w // sw, c * sh * sw)


def depth_to_space(x, stride):
    """The inverse of `space_to_depth`: [B, h, w, C·sh·sw] → [B, h·sh, w·sw, C]."""
    b, h, w, c = x.shape
    sh, sw = stride
    x = x.reshape(b, h, w, c // (sh * sw), sh, sw).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, h * sh, w * sw, c // (sh * sw))
