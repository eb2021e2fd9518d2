"""Kernels for NVIDIA GPUs in which a decode step of the transformer is six kernels per layer.

A step has one column per row, so that its kernels are short and their number decides. Here norms, biases, rotation,
attention, the write to the KV cache, gelu and residuals are parts of the products:

    self_attention    query, key, value = norm(x) W + b, rotated; writes key and value to the cache; attention
    add               x + a W + b
    cross_attention   query = norm(x) W + b, rotated; attention to the condition
    add
    mlp_in            gelu(norm(x) W + b)
    add

The loop over layers carries the layer's index, at which the kernels read weights, cache and condition in place. Slices
of the loop would be copied before every layer instead, as products take no slices at an index that is data.

Like `Block.decode_step` the kernels round to the compute dtype before products; the state between them is float32.

Letters: R rows, E width, H heads, d head size, S slots of the KV cache, T condition tokens.
"""

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.experimental.pallas import triton
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float
import numpy as np

from eqjax.generator.fused_attention import MOST_HEAD, Head, attend_condition, attend_self
from eqjax.generator.fused_tiles import (
    LEAST,
    Tile,
    affine,
    call,
    choose_tile,
    grid,
    load,
    normalized,
    place,
    product,
    state_shapes,
    store_moments,
)
from eqjax.generator.layers import KVCache
from eqjax.generator.rope import Angles
from eqjax.typing import Params, Scalar

# Weights of all layers: kernels and biases of products, scales and biases of norms.
Layer: TypeAlias = tuple[Float[jax.Array, "depth *K N"], Float[jax.Array, "depth *N"]]
Norm: TypeAlias = tuple[Float[jax.Array, "depth E"], Float[jax.Array, "depth E"]]


class Weights(NamedTuple):
    """Weights of the layers, in the compute dtype but for norms, stacked along the first axis.

    Attributes:
      self_norm: before self-attention.
      self_qkv: to queries, keys and values, [depth, E, 3, E].
      self_out: from what self-attention found.
      cross_norm: before cross-attention.
      cross_query: to its queries.
      cross_out: from what it found.
      mlp_norm: before the MLP.
      mlp_in: its first layer.
      mlp_out: its second layer.
    """

    self_norm: Norm
    self_qkv: Layer
    self_out: Layer
    cross_norm: Norm
    cross_query: Layer
    cross_out: Layer
    mlp_norm: Norm
    mlp_in: Layer
    mlp_out: Layer

    @classmethod
    def from_params(cls, params: Params, dtype: DTypeLike) -> "Weights":
        """Returns the weights in the parameters of `stacked_blocks`."""
        depth, width = params["self_norm"]["scale"].shape

        def norm(name: str) -> Norm:
            return params[name]["scale"], params[name]["bias"]

        def layer(name: str, *columns: int) -> Layer:
            kernel, bias = (params[name][leaf].astype(dtype) for leaf in ("kernel", "bias"))
            rows = kernel.size // (depth * math.prod(columns))
            return kernel.reshape(depth, rows, *columns), bias.reshape(depth, *columns)

        return cls(
            norm("self_norm"),
            layer("self_qkv", 3, width),
            layer("self_out", width),
            norm("cross_norm"),
            layer("cross_query", width),
            layer("cross_out", width),
            norm("mlp_norm"),
            layer("mlp_in", 4 * width),
            layer("mlp_out", width),
        )


def supports(width: int, num_heads: int) -> bool:
    """Returns whether there are kernels for layers of these sizes."""
    return width % LEAST == 0 and width // num_heads <= MOST_HEAD


def decode_step(
    weights: Weights,
    x: Float[jax.Array, "R 1 E"],
    cache: KVCache,
    keys_values: tuple[Float[jax.Array, "depth R T H d"], Float[jax.Array, "depth R T H d"]],
    angles: Angles,
    cross_angles: Angles,
    slot: Scalar,
    mask: Bool[jax.Array, "S"],
    *,
    cross_rope: bool,
    interpret: bool = False,
) -> tuple[Float[jax.Array, "R 1 E"], KVCache]:
    """Processes one column in all layers and writes it to the cache: `Block.decode_step`, within rounding.

    Args:
      weights: weights of the layers.
      x: the column.
      cache: the cache of all layers.
      keys_values: keys and values of the condition tokens in all layers.
      angles: rotation of the column's query and key in self-attention.
      cross_angles: rotation of its query in cross-attention.
      slot: cache slot of the column.
      mask: slots that hold columns, this one included.
      cross_rope: whether queries of cross-attention are rotated.
      interpret: emulates the kernels, on any device.

    Returns:
      The column, and the cache that contains it.
    """
    rows, _, width = x.shape
    layers, _, slots, _, size = cache.keys.shape
    head = Head.of(size)
    step = functools.partial(
        _layer,
        weights,
        tuple(_flat(a) for a in keys_values),
        (_interleaved(*angles, head), _interleaved(*cross_angles, head)),
        jnp.asarray(slot, jnp.int32)[None],
        (mask & (jnp.arange(slots) != slot)).astype(jnp.int32),
        head=head,
        cross_rope=cross_rope,
        dtype=x.dtype,
        interpret=interpret,
    )
    tile = _tile_out(rows, width, x.dtype)
    state = _moments(x[:, 0].astype(jnp.float32), tile)
    carry = state, tuple(_flat(a) for a in (cache.keys, cache.values))
    state, stored = jax.lax.fori_loop(np.int32(0), np.int32(layers), lambda i, carry: step(i[None], *carry), carry)
    keys, values = (a.reshape(cache.keys.shape) for a in stored)
    return state[0].astype(x.dtype)[:, None], KVCache(keys, values)


def _flat(array: Float[jax.Array, "depth R N H d"]) -> Float[jax.Array, "depth R N E"]:
    return array.reshape(*array.shape[:3], -1)


def _interleaved(cos: jax.Array, sin: jax.Array, head: Head) -> tuple[jax.Array, jax.Array]:
    """Returns factors of a head's columns and of those columns with the two of each pair exchanged, [P]."""
    signs = np.tile(np.array([-1, 1], np.float32), head.size // 2)
    room = 0, head.padded - head.size
    return jnp.pad(jnp.repeat(cos[0], 2), room), jnp.pad(jnp.repeat(sin[0], 2) * signs, room)


def _tile_out(rows: int, width: int, dtype: DTypeLike) -> Tile:
    """Returns the tile of the products whose results are added to the state."""
    itemsize = jnp.dtype(dtype).itemsize
    return choose_tile(rows, width, width, itemsize, itemsize)


def _moments(x: Float[jax.Array, "R E"], tile: Tile) -> tuple[jax.Array, ...]:
    """Returns a state, and means and sums of squares of the parts of its rows, as kernels write them."""
    parts = x.reshape(x.shape[0], -1, tile.columns)
    means = jnp.mean(parts, axis=2)
    squares = jnp.sum(jnp.square(parts - means[:, :, None]), axis=2)
    room = state_shapes(x.shape[0], x.shape[1], tile)[1].shape[1] - parts.shape[1]
    return x, *(jnp.pad(a, ((0, 0), (0, room))) for a in (means, squares))


def _layer(
    weights: Weights, keys_values: tuple[jax.Array, ...], angles: tuple[Any, Any], slot: jax.Array, allowed: jax.Array,
    layer: jax.Array, state: tuple[jax.Array, ...], cache: tuple[jax.Array, ...], *, head: Head, cross_rope: bool,
    dtype: Any, interpret: bool,
) -> tuple[Any, Any]:  # fmt: skip
    """Runs the kernels of a layer; returns state and cache."""
    rows, width = state[0].shape
    tile_out = _tile_out(rows, width, dtype)
    options: dict[str, Any] = dict(interpret=interpret, parts=width // tile_out.columns)

    def add(h: jax.Array, state: Any, pair: Layer) -> Any:
        depth = h.shape[1]
        given = state_shapes(rows, width, tile_out), layer, h, state[0], *pair
        flops = 2 * rows * depth * width
        tiles = grid(tile_out, rows, width)
        return call(_add, tiles, flops, *given, interpret=interpret, name="layer_add", tile=tile_out)

    given = layer, *state, *weights.self_norm, *weights.self_qkv, *angles[0], slot, allowed
    h, *cache_out = attend_self(head, *given, *cache, **options)
    state = add(h, state, weights.self_out)
    given = layer, *state, *weights.cross_norm, *weights.cross_query, *angles[1]
    h = attend_condition(head, *given, *keys_values, rotates=cross_rope, **options)
    state = add(h, state, weights.cross_out)
    columns = 4 * width
    tile = choose_tile(rows, width, columns, jnp.dtype(dtype).itemsize, 4)
    given = jax.ShapeDtypeStruct((rows, columns), dtype), layer, *state, *weights.mlp_norm, *weights.mlp_in
    flops = 2 * rows * width * columns
    h = call(_mlp_in, grid(tile, rows, columns), flops, *given, name="layer_mlp_in", tile=tile, **options)
    return add(h, state, weights.mlp_out), tuple(cache_out)


def _mlp_in(
    layer: Any, x: Any, means: Any, squares: Any, scale: Any, bias: Any, kernel: Any, kernel_bias: Any, h: Any, *,
    tile: Tile, parts: int,
) -> None:  # fmt: skip
    rows, columns, inside = place(tile, x.shape[0])
    i = layer[0]
    norm = affine(normalized(x, means, squares, rows, inside, parts, 1e-6), scale, bias, (i,))
    left = lambda at: norm(at).astype(h.dtype)  # noqa: E731
    found = _gelu(product(tile, x.shape[1], left, kernel, kernel_bias, columns, (i,)))
    triton.store(h.at[rows, columns], found.astype(h.dtype), mask=jnp.broadcast_to(inside, found.shape))


def _gelu(x: jax.Array) -> jax.Array:
    """Returns x · Φ(x), float32; Triton has no error function, and this one is off by at most 1.5e-7.

    Source: Handbook of Mathematical Functions, M. Abramowitz and I. A. Stegun, 7.1.26.
    """
    y = jnp.abs(x) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * y)
    series = functools.reduce(
        lambda sum_, factor: (sum_ + np.float32(factor)) * t,
        (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592),
        jnp.zeros_like(y),
    )
    tail = 0.5 * series * jnp.exp(-y * y)  # 1 − Φ(|x|)
    return x * jnp.where(x < 0, tail, 1 - tail)


def _add(
    layer: Any, h: Any, x: Any, kernel: Any, kernel_bias: Any, out: Any, means: Any, squares: Any, *, tile: Tile
) -> None:
    rows, columns, inside = place(tile, x.shape[0])
    left = lambda at: load(h.at[rows, at], inside)  # noqa: E731
    found = product(tile, h.shape[1], left, kernel, kernel_bias, columns, (layer[0],))
    found = load(x.at[rows, columns], inside) + found
    triton.store(out.at[rows, columns], found, mask=jnp.broadcast_to(inside, found.shape))
    store_moments(found, means, squares, rows, inside)
