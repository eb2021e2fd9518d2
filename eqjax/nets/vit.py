"""One vision transformer that serves DINO S/16 (a critic's eyes) and DINOv2 B/14 (a semantic target).

Letters: B images, N patches, C width, h and w rows and columns of patches.

Source: ViT: arXiv 2010.11929. DINO: arXiv 2104.14294. DINOv2: arXiv 2304.07193.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from eqjax.nets.resize import resize

# Mean and deviation of ImageNet's images in [0, 1].
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), each branch scaled per channel if `layer_scale`."""

    num_heads: int
    layer_scale: bool
    approximate_gelu: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, _):
        """Tokens [B, 1 + N, C] float32 → the same, twice: to carry on with, and to collect."""
        width = x.shape[-1]
        # Branches may be in bfloat16; x is float32, and so is the sum.
        h = self._norm("norm1")(x)
        qkv = self._linear((3, self.num_heads, width // self.num_heads), "qkv")(h)  # [B, 1 + N, 3, heads, d]
        h = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))
        x = x + self._scale("scale1", self._linear(width, "out", (-2, -1))(h))
        h = self._linear(4 * width, "mlp_in")(self._norm("norm2")(x))
        h = self._linear(width, "mlp_out")(nn.gelu(h, approximate=self.approximate_gelu))
        x = x + self._scale("scale2", h)
        return x, x

    def _norm(self, name):
        return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, use_fast_variance=False, name=name)

    def _linear(self, features, name, axis=-1):
        return nn.DenseGeneral(features, axis=axis, dtype=self.dtype, name=name)

    def _scale(self, name, x):
        return x * self.param(name, nn.initializers.ones, x.shape[-1:]) if self.layer_scale else x


class ViT(nn.Module):
    """A vision transformer with a class token and learned positions.

    Attributes:
      width, depth, num_heads: C, number of blocks, heads of each.
      patch_size: pixels along the side of a patch.
      grid: side of the square of patches that has positions; for others they are resampled.
      readouts: after how many blocks to read tokens (0: before the first); empty: the output alone.
      layer_scale: learned scales of the blocks' branches.
      approximate_gelu: by tanh, or exact.
      dtype: of products and norms' outputs; parameters, statistics and residual stream are float32.
    """

    width: int
    depth: int
    num_heads: int
    patch_size: int
    grid: int
    readouts: tuple[int, ...] = ()
    layer_scale: bool = False
    approximate_gelu: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Normalised images [B, H, W, 3], sides divisible by `patch_size`, → float32 tokens.

        Returns:
          With `readouts`, a tuple of [B, N, C]: patch tokens plus the class token. Otherwise
          normalized patch tokens [B, h, w, C].
        """
        p = self.patch_size
        if x.shape[1] % p or x.shape[2] % p:
            raise ValueError(f"images of {x.shape[1]}×{x.shape[2]} pixels do not divide into patches of {p}×{p}.")
        b, h, w = len(x), x.shape[1] // p, x.shape[2] // p
        # A product, as the gradient of a convolution of stride p spends p² times the work on zeros.
        x = x.reshape(b, h, p, w, p, 3).swapaxes(2, 3)  # [B, h, w, p, p, 3]
        x = nn.DenseGeneral(self.width, axis=(-3, -2, -1), dtype=self.dtype, name="patches")(x)  # [B, h, w, C]
        class_token = self.param("class_token", nn.initializers.normal(1e-6), (1, self.width))
        positions = self.param("positions", nn.initializers.normal(0.02), (1 + self.grid**2, self.width))
        x = jnp.concatenate([jnp.broadcast_to(class_token, (b, 1, self.width)), x.reshape(b, h * w, -1)], axis=1)
        x = x + resample_positions(positions, (h, w))  # [B, 1 + N, C]
        start = x
        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
        x, after = blocks(self.num_heads, self.layer_scale, self.approximate_gelu, self.dtype, name="blocks")(x, None)
        if self.readouts:
            chosen = (after[i - 1] if i else start for i in self.readouts)
            return tuple(tokens[:, 1:] + tokens[:, :1] for tokens in chosen)  # each [B, N, C]
        x = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name="norm")(x[:, 1:])
        return x.reshape(b, h, w, self.width)

    def init_params(self, key):
        """New parameters (float32)."""
        side = self.grid * self.patch_size
        return self.init(key, jnp.zeros((1, side, side, 3)))["params"]


DINO_S16 = ViT(
    width=384, depth=12, num_heads=6, patch_size=16, grid=14, readouts=(0, 3, 6, 9, 12), approximate_gelu=True
)
DINOV2_B14 = ViT(width=768, depth=12, num_heads=12, patch_size=14, grid=37, layer_scale=True)


def dino_features(params, images, module=DINO_S16):
    """What the critic sees: five readouts of DINO; gradients flow to the images alone.

    Args:
      params: of `module`, from `eqjax.nets.load("dino")`.
      images: [B, H, W, 3] in [-1, 1]; other sizes than 224×224 pass `dino_resize`.
      module: a `ViT` with readouts.

    Returns:
      Tuple of float32 [B, 196, C], before the first block and after blocks 3, 6, 9 and 12.
    """
    side = module.grid * module.patch_size
    images = _standardize(dino_resize(images, side))
    return module.apply({"params": jax.lax.stop_gradient(params)}, images)


def dino_resize(images, side=224):
    """Images [B, H, W, 3] → [B, side, side, 3]: by area where they are higher, else bicubic."""
    if images.shape[1:3] == (side, side):
        return images
    return resize(images, (side, side), "area" if images.shape[1] > side else "bicubic")


def dinov2_targets(params, images, module=DINOV2_B14):
    """What the semantic head should predict: DINOv2's patch tokens, one per 16×16 pixels; a constant.

    Args:
      params: of `module`, from `eqjax.nets.load("dinov2")`.
      images: [B, H, W, 3] in [-1, 1]; they are resized bicubically so that 16 pixels become a patch
        of 14.
      module: a `ViT` without readouts.

    Returns:
      float32 [B, H/16, W/16, C], through which no gradient flows.

    Raises:
      ValueError: a side that 16 does not divide.
    """
    height, width = images.shape[1:3]
    if height % 16 or width % 16:
        raise ValueError(f"images of {height}×{width} pixels: DINOv2's targets need sides that 16 divides.")
    size = (height // 16 * module.patch_size, width // 16 * module.patch_size)
    images = resize(_standardize(images), size, "bicubic")
    return jax.lax.stop_gradient(module.apply({"params": params}, images))


def resample_positions(positions, size):
    """Position embeddings of a square of patches → of another rectangle (antialiased bicubic).

    Args:
      positions: [1 + side², C], the class token's first, which is kept.
      size: rows and columns of patches, (h, w).

    Returns:
      [1 + h·w, C].
    """
    side, width = round((len(positions) - 1) ** 0.5), positions.shape[-1]
    if (side, side) == tuple(size):
        return positions
    square = resize(positions[1:].reshape(1, side, side, width), size, "bicubic_antialias")
    return jnp.concatenate([positions[:1], square.reshape(-1, width)])


def _standardize(images):
    """[-1, 1] → mean 0 and deviation 1 over ImageNet."""
    return ((images.astype(jnp.float32) + 1) / 2 - _MEAN) / _DEVIATION
