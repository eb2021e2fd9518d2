"""Inception v3 as FID uses it: the network of 2015-12-05 with 1008 outputs.

It differs from the usual Inception v3: average pooling leaves padding out of the count, the last block
pools by maximum, and images are resized as TensorFlow 1 did.

Source: Szegedy et al., arXiv 1512.00567. FID: arXiv 1706.08500. sFID: arXiv 2103.03841.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from eqjax.nets.resize import resize

_SIDE = 299
_SPATIAL_CHANNELS = 7


@flax.struct.dataclass
class InceptionFeatures:
    """What metrics read, float32.

    Attributes:
      pool: [B, 2048], of FID, KID, precision and recall.
      logits: [B, 1008], without the last layer's bias, of the Inception Score.
      spatial: [B, 2023], of sFID: the first 7 channels of mixed_6d's 1×1 convolution (mixed_6/conv in
        TensorFlow), flattened as height, width, channel.
    """

    pool: jax.Array
    logits: jax.Array
    spatial: jax.Array


class ConvNorm(nn.Module):
    """Convolution without bias, normalization by recorded statistics, ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, h, w, C] → [B, h', w', features]."""
        # Highest precision: metrics are compared with those of others, and accelerators round float32 otherwise.
        exact = dict(use_bias=False, dtype=self.dtype, precision="highest")
        h = nn.Conv(self.features, self.kernel, self.stride, self.padding, **exact, name="conv")(x)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        values = {"scale": ones, "bias": zeros, "mean": zeros, "variance": ones}
        p = {name: self.param(name, init, (self.features,)) for name, init in values.items()}
        scale = p["scale"] * jax.lax.rsqrt(p["variance"] + 1e-3)
        return nn.relu(h * scale.astype(self.dtype) + (p["bias"] - p["mean"] * scale).astype(self.dtype))


class Mixed(nn.Module):
    """Branches side by side, their outputs joined along channels.

    Attributes:
      branches: per branch, its convolutions (name, features, kernel[, stride]), one after another. A
        tuple of two in place of the last one: both see the same input. A stride goes without padding.
      pool: "average" or "max", followed by a convolution of `pool_features`; "reduce" is max pooling of
        stride 2 and nothing else.
    """

    branches: tuple
    pool: str
    pool_features: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, h, w, C] → [B, h', w', C'], and the output of the first branch."""
        outputs = [out for branch in self.branches for out in self._branch(x, branch)]
        if self.pool == "reduce":
            pooled = nn.max_pool(x, (3, 3), (2, 2))
        elif self.pool == "max":
            pooled = nn.max_pool(x, (3, 3), padding="SAME")
        else:
            pooled = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
        if self.pool_features:
            pooled = self._conv(pooled, "branch_pool", self.pool_features, (1, 1))
        return jnp.concatenate([*outputs, pooled], axis=-1), outputs[0]

    def _branch(self, x, branch):
        for layer in branch:
            if not isinstance(layer[0], str):
                return [self._conv(x, *twin) for twin in layer]
            x = self._conv(x, *layer)
        return [x]

    def _conv(self, x, name, features, kernel, stride=1):
        padding = "SAME" if stride == 1 else "VALID"
        return ConvNorm(features, kernel, stride, padding, self.dtype, name=name)(x)


def _block_5(pool_features):
    """5×5 and double 3×3 branches at 35×35."""
    return dict(
        branches=(
            (("branch1x1", 64, (1, 1)),),
            (("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
            (("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))),
        ),
        pool="average",
        pool_features=pool_features,
    )


def _block_6(inner):
    """Branches of 7×7 convolutions, taken apart into rows and columns, at 17×17."""
    row, column = (1, 7), (7, 1)
    double = [("branch7x7dbl_1", inner, (1, 1))]
    double += [(f"branch7x7dbl_{i}", 192 if i == 5 else inner, (row, column)[i % 2 == 0]) for i in range(2, 6)]
    return dict(
        branches=(
            (("branch1x1", 192, (1, 1)),),
            (("branch7x7_1", inner, (1, 1)), ("branch7x7_2", inner, row), ("branch7x7_3", 192, column)),
            tuple(double),
        ),
        pool="average",
        pool_features=192,
    )


def _block_7(pool):
    """Branches that end in a pair of convolutions along rows and columns, at 8×8."""

    def pair(name):
        return (f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))

    return dict(
        branches=(
            (("branch1x1", 320, (1, 1)),),
            (("branch3x3_1", 384, (1, 1)), pair("branch3x3_2")),
            (("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3)), pair("branch3x3dbl_3")),
        ),
        pool=pool,
        pool_features=192,
    )


_REDUCE_6 = dict(
    branches=(
        (("branch3x3", 384, (3, 3), 2),),
        (("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3), 2)),
    ),
    pool="reduce",
)
_REDUCE_7 = dict(
    branches=(
        (("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3), 2)),
        (
            ("branch7x7x3_1", 192, (1, 1)),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, (3, 3), 2),
        ),
    ),
    pool="reduce",
)
_BLOCKS = {
    "5b": _block_5(32),
    "5c": _block_5(64),
    "5d": _block_5(64),
    "6a": _REDUCE_6,
    "6b": _block_6(128),
    "6c": _block_6(160),
    "6d": _block_6(160),
    "6e": _block_6(192),
    "7a": _REDUCE_7,
    "7b": _block_7("average"),
    "7c": _block_7("max"),
}


class Inception(nn.Module):
    """The network; `dtype` is that of the convolutions, parameters and outputs are float32."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Images [B, 299, 299, 3] in about [-1, 1] → `InceptionFeatures`."""
        conv = lambda name, *fields: ConvNorm(*fields, dtype=self.dtype, name=name)  # noqa: E731
        x = conv("conv_1a_3x3", 32, (3, 3), 2, "VALID")(x)  # [B, 149, 149, 32]
        x = conv("conv_2a_3x3", 32, (3, 3), 1, "VALID")(x)  # [B, 147, 147, 32]
        x = conv("conv_2b_3x3", 64, (3, 3))(x)  # [B, 147, 147, 64]
        x = nn.max_pool(x, (3, 3), (2, 2))  # [B, 73, 73, 64]
        x = conv("conv_3b_1x1", 80)(x)  # [B, 73, 73, 80]
        x = conv("conv_4a_3x3", 192, (3, 3), 1, "VALID")(x)  # [B, 71, 71, 192]
        x = nn.max_pool(x, (3, 3), (2, 2))  # [B, 35, 35, 192]
        first_branches = {}
        for name, fields in _BLOCKS.items():
            x, first_branches[name] = Mixed(**fields, dtype=self.dtype, name=f"mixed_{name}")(x)
        pool = x.astype(jnp.float32).mean((1, 2))  # [B, 2048]
        logits = nn.Dense(1008, use_bias=False, precision="highest", name="logits")(pool)  # [B, 1008]
        spatial = first_branches["6d"][..., :_SPATIAL_CHANNELS]  # [B, 17, 17, 7]
        return InceptionFeatures(
            pool=pool,
            logits=logits,
            spatial=spatial.reshape(len(x), -1).astype(jnp.float32),
        )

    def init_params(self, key):
        """New parameters (float32)."""
        return self.init(key, jnp.zeros((1, _SIDE, _SIDE, 3)))["params"]


FID_INCEPTION = Inception()


def inception_features(params, images, module=FID_INCEPTION):
    """Features of images of any size, resized to 299×299 as TensorFlow 1 does.

    Args:
      params: of `module`, from `eqjax.nets.load("inception")`.
      images: [B, H, W, 3], uint8 or numbers in 0 … 255. Published figures are of 8-bit images: round
        before, never truncate.
      module: an `Inception`.

    Returns:
      `InceptionFeatures`.
    """
    images = resize(images, (_SIDE, _SIDE), "bilinear_tf1")
    return module.apply({"params": jax.lax.stop_gradient(params)}, (images - 128) / 128)
