"""A vision transformer for DINO S/16 (the discriminator's backbone) and DINOv2 B/14 (the semantic target).

Letters: B images, H and W their height and width, T tokens, N patches, C width, h and w rows and
columns of patches.

Source: ViT: arXiv 2010.11929. DINO: arXiv 2104.14294. DINOv2: arXiv 2304.07193.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float
import numpy as np

from eqjax.nets.resize import resize
from eqjax.precision import Float32Products
from eqjax.typing import AnyArray, Params, PRNGKey

# Mean and standard deviation of ImageNet's images in [0, 1], [1, 1, 1, 3].
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)[None, None, None]
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)[None, None, None]


class Block(nn.Module):
    """Transformer block: x + attention(norm(x)), then x + mlp(norm(x)); `layer_scale` scales branches per channel.

    Attributes:
      num_heads: attention heads.
      layer_scale: whether branches have learned scales.
      approximate_gelu: whether GELU is computed by tanh.
      dtype: compute dtype of the branches.
    """

    num_heads: int
    layer_scale: bool
    approximate_gelu: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B T C"], _: None
    ) -> tuple[Float[jax.Array, "B T C"], Float[jax.Array, "B T C"]]:
        """Maps float32 tokens to new ones, returned twice: for the next block and as intermediate features."""
        width = x.shape[-1]
        # Branches may be in bfloat16; x is float32, and so is the sum.
        h = self._normalize(x, "norm1")
        qkv = self._linear((3, self.num_heads, width // self.num_heads), "qkv")(h)  # [B, T, 3, heads, d]
        with jax.numpy_dtype_promotion("standard"):  # JAX promotes bfloat16 to float32 for the softmax.
            h = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))
        x = x + self._scale("scale1", self._linear(width, "out", (-2, -1))(h))
        h = self._linear(4 * width, "mlp_in")(self._normalize(x, "norm2"))
        h = self._linear(width, "mlp_out")(nn.gelu(h, approximate=self.approximate_gelu))
        x = x + self._scale("scale2", h)
        return x, x

    def _normalize(self, x: Float[jax.Array, "B T C"], name: str) -> Float[jax.Array, "B T C"]:
        layer = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, use_fast_variance=False, name=name)
        with jax.numpy_dtype_promotion("standard"):  # Flax computes statistics in float32 for any dtype.
            return layer(x)

    def _linear(self, features: int | Sequence[int], name: str, axis: int | Sequence[int] = -1) -> nn.DenseGeneral:
        return nn.DenseGeneral(features, axis=axis, dtype=self.dtype, name=name)

    def _scale(self, name: str, branch: Float[jax.Array, "B T C"]) -> Float[jax.Array, "B T C"]:
        branch = branch.astype(jnp.float32)
        if not self.layer_scale:
            return branch
        return branch * self.param(name, nn.initializers.ones, branch.shape[-1:])[None, None]


class ViT(Float32Products):
    """A vision transformer with a class token and learned positions.

    Attributes:
      width: C.
      depth: number of blocks.
      num_heads: attention heads of every block.
      patch_size: side of a patch in pixels.
      grid: side of the square of patches that has positions; for other sizes they are resampled.
      intermediate_layers: numbers of blocks after which tokens are returned (0: before the first); empty:
        the output alone is returned.
      layer_scale: whether the blocks' branches have learned scales.
      approximate_gelu: whether GELU is computed by tanh.
      dtype: compute dtype of products and of norms' outputs; parameters, statistics and residual stream are
        float32.
    """

    width: int
    depth: int
    num_heads: int
    patch_size: int
    grid: int
    intermediate_layers: Sequence[int] = ()
    layer_scale: bool = False
    approximate_gelu: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B H W 3"]
    ) -> Float[jax.Array, "B h w C"] | tuple[Float[jax.Array, "B N C"], ...]:
        """Maps normalized images, sides divisible by `patch_size`, to float32 tokens.

        Returns:
          With `intermediate_layers`, a tuple of [B, N, C]: patch tokens plus the class token. Otherwise
          normalized patch tokens [B, h, w, C].

        Raises:
          ValueError: `patch_size` does not divide a side.
        """
        p = self.patch_size
        if x.shape[1] % p or x.shape[2] % p:
            raise ValueError(
                f"images of {x.shape[1]}×{x.shape[2]} pixels do not divide into patches of {p}×{p}; resize them."
            )
        b, h, w = len(x), x.shape[1] // p, x.shape[2] // p
        # A product, as the gradient of a convolution of stride p spends p² times the work on zeros.
        x = x.reshape(b, h, p, w, p, 3).swapaxes(2, 3)  # [B, h, w, p, p, 3]
        x = nn.DenseGeneral(self.width, axis=(-3, -2, -1), dtype=self.dtype, name="patches")(x)  # [B, h, w, C]
        class_token = self.param("class_token", nn.initializers.normal(1e-6), (1, self.width))
        positions = self.param("positions", nn.initializers.normal(0.02), (1 + self.grid**2, self.width))
        patches = x.reshape(b, h * w, -1).astype(jnp.float32)
        x = jnp.concatenate([jnp.broadcast_to(class_token[None], (b, 1, self.width)), patches], axis=1)
        x = x + resample_positions(positions, (h, w))[None]  # [B, 1 + N, C]
        start = x
        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
        x, after = blocks(self.num_heads, self.layer_scale, self.approximate_gelu, self.dtype, name="blocks")(x, None)
        if self.intermediate_layers:
            chosen = (after[i - 1] if i else start for i in self.intermediate_layers)
            return tuple(tokens[:, 1:] + tokens[:, :1] for tokens in chosen)  # each [B, N, C]
        x = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name="norm")(x[:, 1:])
        return x.reshape(b, h, w, self.width)

    def init_params(self, key: PRNGKey) -> Params:
        """Returns new parameters, float32."""
        side = self.grid * self.patch_size
        return self.init(key, jnp.zeros((1, side, side, 3)))["params"]


DINO_S16 = ViT(
    width=384,
    depth=12,
    num_heads=6,
    patch_size=16,
    grid=14,
    intermediate_layers=(0, 3, 6, 9, 12),
    approximate_gelu=True,
)
DINOV2_B14 = ViT(width=768, depth=12, num_heads=12, patch_size=14, grid=37, layer_scale=True)


def dino_features(
    params: Params, images: Float[AnyArray, "B H W 3"], module: ViT = DINO_S16
) -> tuple[Float[jax.Array, "B N C"], ...]:
    """Computes the intermediate DINO features that the discriminator classifies.

    Gradients flow to the images and not to the parameters.

    Args:
      params: parameters of `module`, from `eqjax.nets.load("dino")`.
      images: in [-1, 1]; other sizes than 224×224 pass `dino_resize`.
      module: a `ViT` with intermediate layers.

    Returns:
      Features before the first block and after blocks 3, 6, 9 and 12, float32 [B, 196, C] each.
    """
    side = module.grid * module.patch_size
    features: Any = module.apply({"params": jax.lax.stop_gradient(params)}, _standardize(dino_resize(images, side)))
    return features


def dino_resize(images: Float[AnyArray, "B H W 3"], side: int = 224) -> Float[AnyArray, "B {side} {side} 3"]:
    """Resizes images to squares: by area if they are higher, otherwise bicubically; such squares stay as they are."""
    if images.shape[1:3] == (side, side):
        return images
    return resize(images, (side, side), "area" if images.shape[1] > side else "bicubic")


def dinov2_targets(
    params: Params, images: Float[AnyArray, "B H W 3"], module: ViT = DINOV2_B14
) -> Float[jax.Array, "B h w C"]:
    """Computes the targets of the semantic head: DINOv2's patch tokens, one per 16×16 pixels.

    Args:
      params: parameters of `module`, from `eqjax.nets.load("dinov2")`.
      images: in [-1, 1]; they are resized bicubically so that 16 pixels become a patch of 14.
      module: a `ViT` without intermediate layers.

    Returns:
      Tokens, float32 [B, H/16, W/16, C], through which no gradient flows.

    Raises:
      ValueError: 16 does not divide a side.
    """
    height, width = images.shape[1:3]
    if height % 16 or width % 16:
        raise ValueError(
            f"images of {height}×{width} pixels: DINOv2's targets need sides that 16 divides; resize them."
        )
    size = (height // 16 * module.patch_size, width // 16 * module.patch_size)
    tokens: Any = module.apply({"params": params}, resize(_standardize(images), size, "bicubic"))
    return jax.lax.stop_gradient(tokens)


def resample_positions(positions: Float[AnyArray, "P C"], size: Sequence[int]) -> Float[AnyArray, "P2 C"]:
    """Resamples position embeddings of a square of patches to another rectangle (antialiased bicubic).

    Args:
      positions: [1 + side², C], the class token's first, which is kept.
      size: rows h and columns w of patches.

    Returns:
      [1 + h·w, C]; `positions` itself if the size is its own.
    """
    side, width = round((len(positions) - 1) ** 0.5), positions.shape[-1]
    if (side, side) == tuple(size):
        return positions
    square = resize(positions[1:].reshape(1, side, side, width), size, "bicubic_antialias")
    return jnp.concatenate([positions[:1], square.reshape(-1, width)])


def _standardize(images: Float[AnyArray, "B H W 3"]) -> Float[jax.Array, "B H W 3"]:
    """Maps [-1, 1] to mean 0 and standard deviation 1 over ImageNet."""
    return ((jnp.asarray(images).astype(jnp.float32) + 1) / 2 - _MEAN) / _DEVIATION
