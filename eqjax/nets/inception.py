"""Inception v3 as FID uses it: the network of 2015-12-05 with 1008 outputs.

It differs from the usual Inception v3: average pooling leaves padding out of the count, the last block
pools by maximum, and images are resized as TensorFlow 1 did.

Letters: B images, H and W their height and width, h and w rows and columns of a feature map, C channels.

Source: Szegedy et al., arXiv 1512.00567. FID: arXiv 1706.08500. sFID: arXiv 2103.03841.
"""

from collections.abc import Sequence
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from eqjax.nets.resize import resize
from eqjax.typing import AnyArray, Params, PRNGKey

_SIDE = 299
_SPATIAL_CHANNELS = 7


@flax.struct.dataclass
class InceptionFeatures:
    """Features and logits that metrics use, float32.

    Attributes:
      pool: pooled features, for FID, KID, precision and recall.
      logits: logits without the last layer's bias, for the Inception Score.
      spatial: spatial features, for sFID: the first 7 channels of mixed_6d's 1×1 convolution (mixed_6/conv in
        TensorFlow), flattened as height, width, channel.
    """

    pool: Float[AnyArray, "B 2048"]
    logits: Float[AnyArray, "B 1008"]
    spatial: Float[AnyArray, "B 2023"]


class ConvNorm(nn.Module):
    """Convolution without bias, normalization by recorded statistics, ReLU.

    Attributes:
      features: output channels.
      kernel: rows and columns.
      stride: stride of both axes.
      padding: "SAME" or "VALID".
      dtype: compute dtype.
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B h2 w2 {self.features}"]:
        """Maps [B, h, w, C] to [B, h', w', features]."""
        # Highest precision: metrics are compared with published ones, and accelerators would round float32 products.
        conv = nn.Conv(
            self.features,
            self.kernel,
            self.stride,
            self.padding,
            use_bias=False,
            dtype=self.dtype,
            precision="highest",
            name="conv",
        )
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        values = {"scale": ones, "bias": zeros, "mean": zeros, "variance": ones}
        p = {name: self.param(name, init, (self.features,)) for name, init in values.items()}
        scale = p["scale"] * jax.lax.rsqrt(p["variance"] + 1e-3)
        shift = p["bias"] - p["mean"] * scale
        scale, shift = (v.astype(self.dtype)[None, None, None] for v in (scale, shift))
        return nn.relu(conv(x) * scale + shift)


class Mixed(nn.Module):
    """Branches side by side, their outputs joined along channels.

    Attributes:
      branches: per branch, its convolutions (name, features, kernel[, stride]), one after another. A
        pair of convolutions in place of the last one sees one input. Convolutions with a stride have no padding.
      pool: "average" or "max", followed by a convolution of `pool_features`; "reduce" is max pooling of
        stride 2 and nothing else.
      pool_features: output channels of the branch with pooling.
      dtype: compute dtype.
    """

    branches: Sequence[Sequence[tuple[Any, ...]]]
    pool: str
    pool_features: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B h w C"]
    ) -> tuple[Float[jax.Array, "B h2 w2 C2"], Float[jax.Array, "B h2 w2 C3"]]:
        """Maps [B, h, w, C] to [B, h', w', C'] and the output of the first branch."""
        outputs = [out for branch in self.branches for out in self._branch(x, branch)]
        if self.pool == "reduce":
            pooled = nn.max_pool(x, (3, 3), (2, 2))
        elif self.pool == "max":
            pooled = nn.max_pool(x, (3, 3), padding="SAME")
        else:
            with jax.numpy_dtype_promotion("standard"):  # Flax divides by counts in float32.
                pooled = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
        if self.pool_features:
            pooled = self._conv(pooled, "branch_pool", self.pool_features, (1, 1))
        return jnp.concatenate([*outputs, pooled], axis=-1), outputs[0]

    def _branch(self, x: jax.Array, branch: Sequence[tuple[Any, ...]]) -> list[jax.Array]:
        for layer in branch:
            if not isinstance(layer[0], str):
                return [self._conv(x, *twin) for twin in layer]
            x = self._conv(x, *layer)
        return [x]

    def _conv(self, x: jax.Array, name: str, features: int, kernel: tuple[int, int], stride: int = 1) -> jax.Array:
        padding = "SAME" if stride == 1 else "VALID"
        return ConvNorm(features, kernel, stride, padding, self.dtype, name=name)(x)


def _block_5(pool_features: int) -> dict[str, Any]:
    """Returns the fields of a block at 35×35: 5×5 and double 3×3 branches."""
    return dict(
        branches=(
            (("branch1x1", 64, (1, 1)),),
            (("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
            (("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))),
        ),
        pool="average",
        pool_features=pool_features,
    )


def _block_6(inner: int) -> dict[str, Any]:
    """Returns the fields of a block at 17×17: branches of 7×7 convolutions, split into rows and columns."""
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


def _block_7(pool: str) -> dict[str, Any]:
    """Returns the fields of a block at 8×8: branches that end in a pair of convolutions along rows and columns."""

    def pair(name: str) -> tuple[Any, ...]:
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


_REDUCE_6: dict[str, Any] = dict(
    branches=(
        (("branch3x3", 384, (3, 3), 2),),
        (("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3), 2)),
    ),
    pool="reduce",
)
_REDUCE_7: dict[str, Any] = dict(
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
_BLOCKS: dict[str, dict[str, Any]] = {
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
    """Inception v3 from images to the features and logits of metrics.

    Attributes:
      dtype: compute dtype of the convolutions; parameters and outputs are float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B H W 3"]) -> InceptionFeatures:
        """Maps images in about [-1, 1], from `inception_inputs`, to features."""
        conv = functools.partial(ConvNorm, dtype=self.dtype)
        x = conv(32, (3, 3), 2, "VALID", name="conv_1a_3x3")(x)  # [B, 149, 149, 32]
        x = conv(32, (3, 3), 1, "VALID", name="conv_2a_3x3")(x)  # [B, 147, 147, 32]
        x = conv(64, (3, 3), name="conv_2b_3x3")(x)  # [B, 147, 147, 64]
        x = nn.max_pool(x, (3, 3), (2, 2))  # [B, 73, 73, 64]
        x = conv(80, name="conv_3b_1x1")(x)  # [B, 73, 73, 80]
        x = conv(192, (3, 3), 1, "VALID", name="conv_4a_3x3")(x)  # [B, 71, 71, 192]
        x = nn.max_pool(x, (3, 3), (2, 2))  # [B, 35, 35, 192]
        first_branches = {}
        for name, fields in _BLOCKS.items():
            x, first_branches[name] = Mixed(**fields, dtype=self.dtype, name=f"mixed_{name}")(x)
        pool = x.astype(jnp.float32).mean((1, 2))  # [B, 2048]
        logits = nn.Dense(1008, use_bias=False, precision="highest", name="logits")(pool)  # [B, 1008]
        spatial = first_branches["6d"][..., :_SPATIAL_CHANNELS]  # [B, 17, 17, 7]
        return InceptionFeatures(pool=pool, logits=logits, spatial=spatial.reshape(len(x), -1).astype(jnp.float32))

    def init_params(self, key: PRNGKey) -> Params:
        """Returns new parameters, float32."""
        return self.init(key, jnp.zeros((1, _SIDE, _SIDE, 3)))["params"]


FID_INCEPTION = Inception()


def inception_features(
    params: Params, images: Shaped[AnyArray, "B H W 3"], module: Inception = FID_INCEPTION
) -> InceptionFeatures:
    """Computes Inception's features of images of any size.

    Args:
      params: parameters of `module`, from `eqjax.nets.load("inception")`.
      images: uint8, or floats in 0 … 255. Published figures are of 8-bit images: round before, never truncate.
      module: the network.

    Returns:
      Features and logits; no gradient flows to the parameters.
    """
    features: Any = module.apply({"params": jax.lax.stop_gradient(params)}, inception_inputs(images))
    return features


def inception_inputs(images: Shaped[AnyArray, "B H W 3"]) -> Float[jax.Array, "B 299 299 3"]:
    """Resizes images in 0 … 255 to 299×299 as TensorFlow 1 does, and scales them to about [-1, 1]."""
    return (resize(images, (_SIDE, _SIDE), "bilinear_tf1") - 128) / 128
