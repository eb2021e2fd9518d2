"""The transformer block of the generator: windowed causal self-attention, cross-attention, MLP.

Letters: B batch, L columns, T condition tokens, E width, H heads, d head size, R slots of the KV cache.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.2; pre-norm transformer blocks:
arXiv 1706.03762.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, TypeAlias

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float
import numpy as np

from eqjax import sharding
from eqjax.generator.rope import Angles, rotate
from eqjax.typing import AnyArray, Scalar

xavier = nn.initializers.xavier_uniform()

# Keys and values of the condition tokens in one layer.
KeysValues: TypeAlias = tuple[Float[jax.Array, "B T H d"], Float[jax.Array, "B T H d"]]


@flax.struct.dataclass
class KVCache:
    """Rolling KV cache of self-attention: keys and values of the last R columns in every layer.

    Column k is stored in slot k mod R.

    Attributes:
      keys: rotated keys.
      values: values.
    """

    keys: Float[jax.Array, "depth B R H d"]
    values: Float[jax.Array, "depth B R H d"]


class LayerNorm(nn.Module):
    """Norm over channels with float32 statistics, whose variance is computed in the accurate two-pass form.

    The order of the products matters on a GPU: (x − mean) · 1/deviation first, then scale and bias. Its compiler then
    recognizes the norm and computes it in one kernel, together with what follows; `flax.linen.LayerNorm` multiplies
    scale and 1/deviation first, which takes three.

    Attributes:
      epsilon: added to the variance.
      dtype: of the output.
      affine: whether there are a learned scale and bias.
    """

    epsilon: float
    dtype: DTypeLike = jnp.float32
    affine: bool = True

    @nn.compact
    def __call__(self, x: Float[jax.Array, "... C"]) -> Float[jax.Array, "... C"]:
        """Normalizes the last axis."""
        affine = ()
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
            affine = scale, self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return _recomputed(functools.partial(normalize, self.epsilon, self.dtype))(x, *affine)


def normalize(
    epsilon: float,
    dtype: DTypeLike,
    x: Float[jax.Array, "... C"],
    scale: Float[jax.Array, "C"] | None = None,
    bias: Float[jax.Array, "C"] | None = None,
) -> Float[jax.Array, "... C"]:
    """Returns values normalized over their last axis, as `LayerNorm` does."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)
    if scale is not None and bias is not None:
        y = y * jax.lax.broadcast_to_rank(scale, y.ndim) + jax.lax.broadcast_to_rank(bias, y.ndim)
    return y.astype(dtype)


def _recomputed(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Lets gradients keep a function's arguments, in their dtype, instead of several float32 arrays of their size."""
    return jax.checkpoint(function, prevent_cse=False)


def gelu(x: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
    """Returns x · Φ(x) with the normal distribution function Φ, computed in float32.

    It is `jax.nn.gelu(x, approximate=False)`, which takes the complementary error function, whose two branches a GPU
    computes in a kernel of their own.
    """
    return _recomputed(_gelu)(x)


def _gelu(x: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * np.float32(np.sqrt(0.5))))).astype(x.dtype)


def window_mask(length: int, window: int | None) -> Bool[jax.Array, "L L"]:
    """Returns the mask of windowed causal attention: query i attends to keys i − window + 1 … i.

    Args:
      length: number of columns L.
      window: columns seen, including the query's own; None: all columns up to it.

    Example:
      >>> window_mask(3, 2).astype(int).tolist()
      [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    distance = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def attend(
    query: Float[AnyArray, "B Q H d"],
    key: Float[AnyArray, "B K H d"],
    value: Float[AnyArray, "B K H d"],
    mask: Bool[AnyArray, "..."] | None,
    weights_fn: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> Float[jax.Array, "B Q H d"]:
    """Computes multi-head attention, with scores and softmax in float32.

    Args:
      query: queries.
      key: keys.
      value: values.
      mask: True where a query may attend to a key; it broadcasts to [B, H, Q, K]. None: everywhere.
      weights_fn: applied to the attention weights (dropout).
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(jax.lax.broadcast_to_rank(mask, 4), scores, -jnp.inf)
    weights = weights_fn(jax.nn.softmax(scores, axis=-1)).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


class Block(nn.Module):
    """One layer. Condition tokens pass through its MLP only, so they depend on nothing but the class.

    Three methods serve the three uses: `condition` transforms the condition tokens and returns their keys and
    values, `columns` processes all columns of a sequence, `decode_step` one column with a KV cache.

    Attributes:
      width: E.
      num_heads: heads of both attentions.
      dropout_rate: dropout on attention weights, attention outputs and in the MLP.
      cross_rope: whether queries of cross-attention are rotated by their position, see `Generator`.
      dtype: compute dtype.
    """

    width: int
    num_heads: int
    dropout_rate: float = 0.0
    cross_rope: bool = True
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        heads = (self.num_heads, self.width // self.num_heads)

        def project(features: int | Sequence[int], axis: int | Sequence[int] = -1) -> nn.DenseGeneral:
            return nn.DenseGeneral(features, axis=axis, dtype=self.dtype, kernel_init=xavier)

        self.self_norm = LayerNorm(1e-6, self.dtype)
        # Query, key and value share one matrix, because its Xavier bound depends on its size.
        self.self_qkv = project((3, *heads))
        self.self_out = project(self.width, (-2, -1))
        self.cross_norm, self.cross_condition_norm = LayerNorm(1e-5, self.dtype), LayerNorm(1e-5, self.dtype)
        self.cross_query, self.cross_key, self.cross_value = (project(heads) for _ in range(3))
        self.cross_out = project(self.width, (-2, -1))
        self.mlp_norm = LayerNorm(1e-6, self.dtype)
        self.mlp_in, self.mlp_out = project(4 * self.width), project(self.width)
        self.dropout = nn.Dropout(self.dropout_rate)

    def condition(
        self, tokens: Float[jax.Array, "B T E"], deterministic: bool
    ) -> tuple[Float[jax.Array, "B T E"], KeysValues]:
        """Returns the next layer's condition tokens, and their keys and values for this layer's cross-attention."""
        x = self.cross_condition_norm(tokens)
        keys_values = self.cross_key(x), self.cross_value(x)
        return self._mlp(tokens, deterministic), keys_values

    def columns(
        self,
        x: Float[jax.Array, "B L E"],
        keys_values: KeysValues,
        angles: Angles,
        mask: Bool[jax.Array, "L L"],
        deterministic: bool,
    ) -> tuple[Float[jax.Array, "B L E"], None]:
        """Processes all columns of a sequence; returns them and None, as a scan over layers expects."""
        drop = lambda weights: self.dropout(weights, deterministic=deterministic)  # noqa: E731
        x = sharding.constrain(x, "batch", None, None)
        query, key, value = self._self_projections(x, angles)
        x = x + drop(self.self_out(attend(query, key, value, mask, drop)))
        x = x + drop(self.cross_out(self._cross(x, keys_values, angles, drop)))
        return self._mlp(x, deterministic), None

    def decode_step(
        self,
        x: Float[jax.Array, "B 1 E"],
        cache: KVCache,
        keys_values: KeysValues,
        angles: Angles,
        cross_angles: Angles,
        slot: Scalar,
        mask: Bool[jax.Array, "R"],
    ) -> tuple[Float[jax.Array, "B 1 E"], KVCache]:
        """Processes one column and writes it to the layer's cache.

        Args:
          x: the column.
          cache: this layer's cache, [B, R, H, d].
          keys_values: keys and values of the condition tokens.
          angles: rotation of the column's query and key in self-attention.
          cross_angles: rotation of its query in cross-attention.
          slot: cache slot of the column.
          mask: slots that hold columns, this one included.

        Returns:
          The column, and the cache that contains it.
        """
        query, key, value = self._self_projections(x, angles)
        cache = KVCache(
            jax.lax.dynamic_update_slice_in_dim(cache.keys, key, slot, axis=1),
            jax.lax.dynamic_update_slice_in_dim(cache.values, value, slot, axis=1),
        )
        x = x + self.self_out(attend(query, cache.keys, cache.values, mask))
        x = x + self.cross_out(self._cross(x, keys_values, cross_angles))
        return self._mlp(x, True), cache

    def _self_projections(self, x: Float[jax.Array, "B L E"], angles: Angles) -> tuple[jax.Array, jax.Array, jax.Array]:
        query, key, value = jnp.moveaxis(self.self_qkv(self.self_norm(x)), -3, 0)
        return rotate(query, angles), rotate(key, angles), value

    def _cross(
        self,
        x: Float[jax.Array, "B L E"],
        keys_values: KeysValues,
        angles: Angles,
        weights_fn: Callable[[jax.Array], jax.Array] = lambda weights: weights,
    ) -> Float[jax.Array, "B L H d"]:
        query = self.cross_query(self.cross_norm(x))
        if self.cross_rope:  # As published: by the absolute position, whereas keys of the condition have none.
            query = rotate(query, angles)
        return attend(query, *keys_values, None, weights_fn)

    def _mlp(self, x: Float[jax.Array, "B N E"], deterministic: bool) -> Float[jax.Array, "B N E"]:
        h = gelu(self.mlp_in(self.mlp_norm(x)))
        h = self.mlp_out(self.dropout(h, deterministic=deterministic))
        return x + self.dropout(h, deterministic=deterministic)


def remat_policy(name: bool | str) -> dict[str, Any] | None:
    """Returns the arguments of `nn.remat` for a rematerialization policy.

    Args:
      name: "none", "full", "dots" or "projections", see `Generator`; False and True mean "none" and "full".

    Returns:
      Keyword arguments of `nn.remat`; None without rematerialization.

    Raises:
      ValueError: the policy is unknown.
    """
    policies = {
        "full": None,
        "dots": jax.checkpoint_policies.dots_saveable,
        "projections": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    if isinstance(name, bool):
        name = "full" if name else "none"
    if name == "none":
        return None
    if name not in policies:
        raise ValueError(f"remat={name!r} is not one of {['none', *policies]}.")
    return {"prevent_cse": False, "policy": policies[name]}


def stacked_blocks(depth: int, remat: bool | str, **fields: Any) -> nn.Module:
    """Returns `depth` blocks as one module, whose parameters are stacked and whose methods scan over the layers.

    Compile time does not grow with depth.

    Args:
      depth: number of layers.
      remat: rematerialization policy, see `remat_policy`.
      **fields: fields of `Block`.
    """
    block, options = Block, remat_policy(remat)
    if options is not None:
        # Positions of `deterministic` among the arguments, not counting `self`.
        block = nn.remat(
            block,
            methods={
                "condition": {**options, "static_argnums": (1,)},
                "columns": {**options, "static_argnums": (4,)},
            },
        )
    # Intermediates that `capture_intermediates` collects are stacked like the parameters.
    axes = {"params": 0, "intermediates": 0}
    over_layers = {"variable_axes": axes, "split_rngs": {"params": True, "dropout": True}, "length": depth}
    same = nn.broadcast
    scanned = nn.scan(
        block,
        methods={
            "condition": {**over_layers, "in_axes": (same,)},
            "columns": {**over_layers, "in_axes": (0, same, same, same)},
            "decode_step": {**over_layers, "in_axes": (0, 0, same, same, same, same)},
        },
    )
    return scanned(**fields)
