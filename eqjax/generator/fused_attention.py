"""Attention of one column in a single kernel for NVIDIA GPUs: norm, projections, rotation, KV cache, softmax.

A program has a head and a tile of rows: with that head's columns of the projections' weights it computes the queries,
which stay in its registers. It then reads keys and values of its rows, as many at once as fit into registers, with
running maximum and sum. In self-attention it computes key and value of the column too, and writes them to the cache.

Like `Block.decode_step` the kernels round queries, keys and values to the compute dtype; weights of values are float32.

Letters: R rows, E width, H heads, d head size, S slots of the KV cache, T condition tokens, P columns of a head's
tile: d, rounded up to a power of 2.

Source: running maximum and sum: Online normalizer calculation for softmax, arXiv 1805.02867.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from eqjax.generator.fused_tiles import LEAST, Tile, affine, call, choose_tile, load, normalized, place, products

# Columns of the largest heads: a program has query, key and value of one in its registers.
MOST_HEAD = 128
# Rows that a program may have, and numbers of keys, and as many of values, that it has in its registers at once.
_HEIGHTS = (16, 32)
_KEYS = 4096
# Below every score, but not so far that the difference of two of them were no number.
_MASKED = -1e30


class Head(NamedTuple):
    """Sizes of a head: its columns, and those of its tile, of which the last ones may belong to the next head."""

    size: int
    padded: int

    @classmethod
    def of(cls, size: int) -> "Head":
        """Returns the sizes of a head of d columns."""
        return cls(size, max(LEAST, 1 << (size - 1).bit_length()))

    def place(self) -> tuple[Any, jax.Array | None]:
        """Returns the columns of this program's head, and which of its tile's it has, [1, P]; None: all."""
        columns = pl.ds(pl.program_id(1) * self.size, self.padded)
        if self.size == self.padded:
            return columns, None
        return columns, jax.lax.broadcasted_iota(jnp.int32, (1, self.padded), 1) < self.size


def attend_self(
    head: Head, layer: jax.Array, x: Float[jax.Array, "R E"], *given: jax.Array, interpret: bool, parts: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attends to the slots of the cache and to the column itself.

    Args:
      head: sizes of heads.
      layer: index of the layer, [1].
      x: the state.
      *given: means and sums of squares of its parts; scale, bias of the norm; kernel, bias of the projections; the two
        factors of the rotation, [P]; slot of the column, [1]; other slots to which it attends, int32 [S]; keys and
        values, [depth, R, S, E].
      interpret: emulates the kernel, on any device.
      parts: number of the state's parts.

    Returns:
      What was found, [R, E], keys and values with those of the column.
    """
    cache, dtype = given[-2:], given[-1].dtype
    out = (jax.ShapeDtypeStruct(x.shape, dtype), *(jax.ShapeDtypeStruct(a.shape, dtype) for a in cache))
    inputs = layer, x, *given
    aliases = {len(inputs) - 2: 1, len(inputs) - 1: 2}
    options: dict[str, Any] = dict(interpret=interpret, parts=parts, aliases=aliases)
    return _call(_self_attention, head, 3, out, *inputs, name="layer_self_attention", **options)


def attend_condition(
    head: Head,
    layer: jax.Array,
    x: Float[jax.Array, "R E"],
    *given: jax.Array,
    interpret: bool,
    parts: int,
    rotates: bool,
) -> Float[jax.Array, "R E"]:
    """Attends to the condition tokens.

    Args:
      head: sizes of heads.
      layer: index of the layer, [1].
      x: the state.
      *given: means and sums of squares of its parts; scale, bias of the norm; kernel, bias of the query; the two
        factors of the rotation, [P]; keys and values, [depth, R, T, E].
      interpret: emulates the kernel, on any device.
      parts: number of the state's parts.
      rotates: whether queries are rotated.

    Returns:
      What was found.
    """
    out = jax.ShapeDtypeStruct(x.shape, given[-1].dtype)
    options: dict[str, Any] = dict(interpret=interpret, parts=parts, rotates=rotates)
    return _call(_cross_attention, head, 1, out, layer, x, *given, name="layer_cross_attention", **options)


def _call(
    kernel: Callable[..., None], head: Head, projections: int, out: Any, layer: jax.Array, x: jax.Array,
    *given: jax.Array, **options: Any,
) -> Any:  # fmt: skip
    """Runs a kernel on all heads and tiles of rows."""
    (rows, width), keys = x.shape, given[-1]
    heads, columns = width // head.size, projections * head.padded
    tile = choose_tile(rows, width, heads * columns, keys.dtype.itemsize, 4, _HEIGHTS, (columns,))
    tiles = -(-rows // tile.rows), heads
    flops = 2 * rows * width * (projections * width + 2 * keys.shape[2])
    return call(kernel, tiles, flops, out, layer, x, *given, tile=tile, head=head, **options)


def _self_attention(
    layer: Any, x: Any, means: Any, squares: Any, scale: Any, bias: Any, kernel: Any, kernel_bias: Any, cos: Any,
    sin: Any, slot: Any, allowed: Any, keys: Any, values: Any, found: Any, new_keys: Any, new_values: Any, *,
    tile: Tile, head: Head, parts: int,
) -> None:  # fmt: skip
    i, slots = layer[0], keys.shape[2]
    rows, _, inside = place(tile, x.shape[0])
    columns, own = head.place()
    norm = affine(normalized(x, means, squares, rows, inside, parts, 1e-6), scale, bias, (i,))
    query, key, value = _project(tile, norm, kernel, kernel_bias, [(i, np.int32(j)) for j in range(3)], columns, own)
    query, key = _scaled(_rotate(query, cos, sin), head), _rotate(key, cos, sin)
    mask = jnp.broadcast_to(inside if own is None else inside & own, query.shape)
    for stored, new in ((new_keys, key), (new_values, value)):
        triton.store(stored.at[i, rows, slot[0], columns], new, mask=mask)

    def may(at: Any) -> jax.Array:
        return load(allowed.at[at], _exist(at, slots).reshape(-1))[None] != 0

    score = jnp.sum(query * key.astype(jnp.float32), axis=1)
    running = score, jnp.ones_like(score), value.astype(jnp.float32)
    attended = _attend(query, _reader(keys, values, (i, rows), columns, mask, may), may, slots, running)
    triton.store(found.at[rows, columns], attended.astype(found.dtype), mask=mask)


def _cross_attention(
    layer: Any, x: Any, means: Any, squares: Any, scale: Any, bias: Any, kernel: Any, kernel_bias: Any, cos: Any,
    sin: Any, keys: Any, values: Any, found: Any, *, tile: Tile, head: Head, parts: int, rotates: bool,
) -> None:  # fmt: skip
    i, tokens = layer[0], keys.shape[2]
    rows, _, inside = place(tile, x.shape[0])
    columns, own = head.place()
    norm = affine(normalized(x, means, squares, rows, inside, parts, 1e-5), scale, bias, (i,))
    (query,) = _project(tile, norm, kernel, kernel_bias, [(i,)], columns, own)
    query = _scaled(_rotate(query, cos, sin) if rotates else query, head)
    mask = jnp.broadcast_to(inside if own is None else inside & own, query.shape)

    def may(at: Any) -> jax.Array:
        return _exist(at, tokens)

    none = jnp.zeros(query.shape[:1], jnp.float32)
    running = none + _MASKED, none, jnp.zeros(query.shape, jnp.float32)
    attended = _attend(query, _reader(keys, values, (i, rows), columns, mask, may), may, tokens, running)
    triton.store(found.at[rows, columns], attended.astype(found.dtype), mask=mask)


def _project(
    tile: Tile, norm: Callable[[Any], jax.Array], kernel: Any, bias: Any, places: list[tuple[Any, ...]], columns: Any,
    own: jax.Array | None,
) -> list[jax.Array]:  # fmt: skip
    """Returns a head's columns of projections of a norm, whose depths and biases are at `places`, [rows, P]."""
    dtype = kernel.dtype

    def right(at: tuple[Any, ...]) -> Callable[[Any], jax.Array]:
        return lambda part: load(kernel.at[at[0], part, *at[1:], columns], own)

    def add(found: jax.Array, at: tuple[Any, ...]) -> jax.Array:
        shift = load(bias.at[*at, columns], None if own is None else own.reshape(-1))
        return (found + shift.astype(jnp.float32)[None]).astype(dtype)

    left = lambda part: norm(part).astype(dtype)  # noqa: E731
    found = products(tile, kernel.shape[1], left, [right(at) for at in places])
    return [add(*pair) for pair in zip(found, places, strict=True)]


def _rotate(x: jax.Array, cos: Any, sin: Any) -> jax.Array:
    """Rotates columns of a head [rows, P]."""
    y = x.astype(jnp.float32)
    # Triton does not reverse pairs. Sums over them, one of whose numbers is 0, are exact.
    pairs = y.reshape(x.shape[0], -1, 2)
    is_first = jax.lax.broadcasted_iota(jnp.int32, (1, 1, 2), 2) == 0
    first = jnp.sum(jnp.where(is_first, pairs, 0), axis=2)[:, :, None]
    second = jnp.sum(jnp.where(is_first, 0, pairs), axis=2)[:, :, None]
    exchanged = jnp.where(is_first, second, first).reshape(x.shape)
    return (y * load(cos)[None] + exchanged * load(sin)[None]).astype(x.dtype)


def _scaled(query: jax.Array, head: Head) -> jax.Array:
    """Returns queries whose products with keys are scores, float32."""
    return query.astype(jnp.float32) * np.float32(head.size**-0.5)


def _exist(at: Any, count: int) -> jax.Array:
    """Returns which keys of a slice there are, [1, C]."""
    return at.start + jax.lax.broadcasted_iota(jnp.int32, (1, at.size), 1) < count


def _reader(
    keys: Any, values: Any, place_in: tuple[Any, Any], columns: Any, mask: jax.Array, may: Callable[[Any], jax.Array]
) -> Callable[[Any], tuple[jax.Array, jax.Array]]:
    """Returns a function of a slice of keys → these keys and their values, [rows, C, P], float32; others are zeros."""

    def read(at: Any) -> tuple[jax.Array, jax.Array]:
        some = mask[:, None, :] & may(at)[:, :, None]
        key, value = (load(ref.at[*place_in, at, columns], some).astype(jnp.float32) for ref in (keys, values))
        return key, value

    return read


def _attend(
    query: jax.Array, read: Callable[[Any], tuple[jax.Array, jax.Array]], may: Callable[[Any], jax.Array], count: int,
    running: tuple[jax.Array, jax.Array, jax.Array],
) -> jax.Array:  # fmt: skip
    """Returns what a head finds, float32.

    Args:
      query: scaled queries [rows, P], float32.
      read: function of a slice of keys → these and their values.
      may: function of a slice of keys → whether queries attend to them, [1, C].
      count: number of keys.
      running: maximum of the scores seen, sum of their exponentials, and sum of the values that these weight.
    """
    chunk = max(1, min(1 << (count - 1).bit_length(), _KEYS // query.size))

    def add(i: Any, running: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        most, total, found = running
        at = pl.ds(i * chunk, chunk)
        keys, values = read(at)
        scores = jnp.where(may(at), jnp.sum(query[:, None, :] * keys, axis=2), _MASKED)
        highest = jnp.maximum(most, jnp.max(scores, axis=1))
        before, here = jnp.exp(most - highest), jnp.exp(scores - highest[:, None])
        found = found * before[:, None] + jnp.sum(here[:, :, None] * values, axis=1)
        return highest, total * before + jnp.sum(here, axis=1), found

    _, total, found = jax.lax.fori_loop(0, -(-count // chunk), add, running)
    return found / total[:, None]
