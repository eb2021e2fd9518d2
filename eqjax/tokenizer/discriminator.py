"""Discriminators: real images or reconstructions to logits.

`FeatureDiscriminator` has one small head on each intermediate feature map of a frozen vision transformer;
`PatchDiscriminator` classifies overlapping patches of pixels and needs no pretrained network. Both normalize by the
statistics of the batch they see and keep no running averages. Statistics are those of the global batch, or of
fixed groups of its images, so they do not depend on the number of devices. `PatchDiscriminator(norm="spectral")` has
none: statistics of a batch of reconstructions hide that they have less detail than a batch of images.

The vectors of the spectral norm's power iteration are the collection "spectral": apply with
`mutable=["spectral"]` to advance them.

Letters: B images, N tokens, C channels, K heads.

Source: arXiv 2301.09515 (StyleGAN-T), section 3.2; PatchGAN, arXiv 1611.07004, section 3.2.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from eqjax.precision import Float32Products
from eqjax.tokenizer.layers import torch_bias_init, torch_kernel_init
from eqjax.typing import AnyArray, Params, PRNGKey


class BatchStatistics(nn.Module):
    """Affine normalization over images and positions of a batch, in groups of images.

    Attributes:
      group_size: largest number of images per group; None: the whole batch is one group.
      epsilon: added to the (biased) variance.
    """

    group_size: int | None = None
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B *N C"]) -> Float[jax.Array, "B *N C"]:
        """Normalizes [B, …, C], in float32 inside."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        grouped = x.astype(jnp.float32).reshape(num_groups(x.shape[0], self.group_size), -1, x.shape[-1])
        mean = grouped.mean(axis=1, keepdims=True)
        variance = jnp.square(grouped - mean).mean(axis=1, keepdims=True)
        normal = (grouped - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return (normal * scale[None, None] + bias[None, None]).reshape(x.shape).astype(x.dtype)


def num_groups(batch: int, group_size: int | None) -> int:
    """Returns the fewest equal groups of at most `group_size` of `batch` images (None: one group).

    Example:
      >>> num_groups(12, 8), num_groups(7, 4), num_groups(12, None)
      (2, 7, 1)
    """
    least = 1 if group_size is None else -(-batch // group_size)
    return next(groups for groups in range(least, batch + 1) if batch % groups == 0)


class SpectralModule(nn.Module):
    """A module whose kernel is divided by an estimate of its largest singular value.

    The estimate is one power iteration from the stored vector u, which the collection "spectral" holds; no
    gradient passes through the vectors.

    Source: Spectral Normalization for GANs, arXiv 1802.05957, section 2 and appendix A.
    """

    def _normalized(self, kernel: Float[jax.Array, "*K C F"]) -> Float[jax.Array, "*K C F"]:
        """Returns the kernel over the estimate, and advances u if the collection is mutable."""
        matrix = kernel.reshape(-1, kernel.shape[-1])
        u = self.variable("spectral", "u", self._init_vector, kernel.shape[-1])
        fixed = jax.lax.stop_gradient(matrix)
        right = _unit(fixed @ u.value)
        left = _unit(right @ fixed)
        if self.is_mutable_collection("spectral") and not self.is_initializing():
            u.value = left
        return kernel / (right @ matrix @ left)

    def _init_vector(self, features: int) -> Float[jax.Array, "F"]:
        return _unit(jax.random.normal(self.make_rng("params"), (features,), jnp.float32))


class SpectralConv(SpectralModule):
    """Convolution along tokens with a normalized kernel.

    Attributes:
      features: output channels.
      width: kernel size in tokens; the token before the first is the last one.
      dtype: compute dtype of the convolution.
    """

    features: int
    width: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B N C"]) -> Float[jax.Array, "B N {self.features}"]:
        """Maps tokens [B, N, C] to [B, N, features]."""
        kernel = self.param("kernel", torch_kernel_init, (self.width, x.shape[-1], self.features))
        bias = self.param("bias", torch_bias_init(self.width * x.shape[-1]), (self.features,))
        kernel = self._normalized(kernel).astype(self.dtype)
        left_pad = (self.width - 1) // 2
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (left_pad, self.width - 1 - left_pad), (0, 0)), mode="wrap")
        x = jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC"))
        return x + bias.astype(self.dtype)[None, None]


class SpectralImageConv(SpectralModule):
    """Convolution of images, 4 × 4 with one pixel of zeros around them, with a normalized kernel.

    Attributes:
      features: output channels.
      stride: pixels between outputs.
      dtype: compute dtype of the convolution.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B H W C"]) -> Float[jax.Array, "B h w {self.features}"]:
        """Maps images [B, H, W, C] to [B, h, w, features]."""
        kernel = self.param("kernel", nn.initializers.normal(0.02), (4, 4, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel, strides = self._normalized(kernel).astype(self.dtype), (self.stride, self.stride)
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel, strides, [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x + bias.astype(self.dtype)[None, None, None]


def _unit(vector: Float[jax.Array, "N"]) -> Float[jax.Array, "N"]:
    return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-12)


class FeatureHead(nn.Module):
    """Small network on the tokens of one intermediate feature map.

    Attributes:
      width: kernel size, in tokens, of the residual layer.
      dtype: compute dtype.
    """

    width: int = 9
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B N C"]) -> Float[jax.Array, "B N"]:
        """Maps tokens [B, N, C] to logits [B, N]."""
        c = x.shape[-1]
        x = SpectralConv(c, 1, self.dtype, name="conv_in")(x)
        x = nn.leaky_relu(BatchStatistics(group_size=8, epsilon=1e-6, name="norm_in")(x), 0.2)
        h = SpectralConv(c, self.width, self.dtype, name="conv")(x)
        h = nn.leaky_relu(BatchStatistics(group_size=8, epsilon=1e-6, name="norm")(h), 0.2)
        x = (h + x) / math.sqrt(2)
        return SpectralConv(1, 1, self.dtype, name="conv_out")(x)[..., 0].astype(jnp.float32)


class FeatureDiscriminator(Float32Products):
    """One head per intermediate feature map of a frozen vision transformer; the heads run as one batch.

    Attributes:
      channels: channels C of the features.
      num_heads: number of feature maps, and of heads.
      width: kernel size, in tokens, of the heads' residual layers.
      dtype: compute dtype; parameters, statistics and logits are float32.
    """

    channels: int = 384
    num_heads: int = 5
    width: int = 9
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def init_params(self, key: PRNGKey) -> Params:
        """Returns new parameters, float32."""
        return self.init_variables(key)["params"]

    @nn.nowrap
    def init_variables(self, key: PRNGKey) -> dict[str, Params]:
        """Returns new parameters and spectral vectors: {"params", "spectral"}."""
        return dict(self.init(key, jnp.zeros((self.num_heads, 1, self.width, self.channels))))

    @nn.compact
    def __call__(self, features: Float[jax.Array, "{self.num_heads} B N C"]) -> Float[jax.Array, "B KN"]:
        """Maps intermediate features [num_heads, B, N, C] to logits [B, num_heads · N]."""
        heads = nn.vmap(
            FeatureHead,
            axis_size=self.num_heads,
            variable_axes={"params": 0, "spectral": 0},
            split_rngs={"params": True},
        )(self.width, self.dtype, name="heads")
        logits = heads(features)  # [K, B, N]
        return jnp.moveaxis(logits, 0, 1).reshape(features.shape[1], -1)


class PatchDiscriminator(Float32Products):
    """PatchGAN: strided convolutions whose every logit sees a patch of pixels (70 × 70 with 3 layers).

    Attributes:
      channels: width after the first layer; doubles with every layer, up to eight times.
      num_layers: layers that halve the image.
      norm: "batch", statistics of the batch after every layer, as in the paper; or "spectral", normalized kernels.
      dtype: compute dtype; parameters, statistics and logits are float32.
    """

    channels: int = 64
    num_layers: int = 3
    norm: str = "batch"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> Float[jax.Array, "B h w"]:
        """Maps images [B, H, W, 3] to logits [B, h, w]."""
        x = self._activate(self._conv(jnp.asarray(images, self.dtype), self.channels, 2, True, "conv0"))
        for i in range(1, self.num_layers + 1):
            stride = 2 if i < self.num_layers else 1
            x = self._conv(x, self.channels * min(2**i, 8), stride, False, f"conv{i}")
            x = self._activate(x if self.norm == "spectral" else BatchStatistics(name=f"norm{i}")(x))
        return self._conv(x, 1, 1, True, "conv_out")[..., 0].astype(jnp.float32)

    def _conv(self, x: jax.Array, features: int, stride: int, use_bias: bool, name: str) -> jax.Array:
        if self.norm == "spectral":
            return SpectralImageConv(features, stride, self.dtype, name=name)(x)
        return nn.Conv(
            features,
            (4, 4),
            (stride, stride),
            padding=1,
            use_bias=use_bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.02),
            bias_init=torch_bias_init(16 * x.shape[-1]),
            name=name,
        )(x)

    def _activate(self, x: jax.Array) -> jax.Array:
        x = nn.leaky_relu(x, 0.2)
        # Kernels of norm 1 never enlarge what passes them, and the activation halves its energy.
        return x * math.sqrt(2) if self.norm == "spectral" else x
