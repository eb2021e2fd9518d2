"""Kernels for NVIDIA GPUs in which the flow head's evaluations are two kernels per block.

In a loop over time every kernel waits for the one before, so that their number decides. Between two products of a block
lie a norm, a modulation, biases and a silu: XLA makes them kernels of their own, here they are part of the products.

    enter       z W + b, for all rows that share a state
    block_in    silu(modulate(norm(x)) W + b)
    block_out   x + gate · (h W + b)
    leave       modulate(norm(x)) W + b

Each program of a kernel computes one tile of its result and reads whole rows of what it multiplies, so that none waits
for another. A norm needs the moments of whole rows, which no single program of the kernel before has: each of those
writes mean and sum of squares of its tile, and the next kernel's programs combine them.

Modulations are read in place from those of all evaluations in memory, at an index that is data.

The kernels are written in Pallas and compiled by XLA's Triton compiler. Sums are float32, and float32 products have the
precision that JAX is told (`eqjax.precision`). Like `FlowHead.denoise` they round to the compute dtype before products;
between them they round less often.

Letters: R rows, B states, D latent size, W flow width, n evaluations, T tiles of a row.

Source: moments of parts: Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, T. F. Chan,
G. H. Golub and R. J. LeVeque, 1979.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int
import numpy as np

from eqjax.generator.flow_head import Modulations
from eqjax.typing import Params

# Programs that run at once: multiprocessors of an H100. Other GPUs run them in several waves, or leave some idle.
_PROGRAMS = 132
# Programs that together read as fast as the L2 cache can: each 64 bytes a clock, 112 GB/s; the cache 5.5 TB/s.
_READERS = 49
# Shared memory of a program: what the smallest supported GPUs have (L4, RTX 4090) is 99 KB.
_SHARED_BYTES = 72 * 1024
_STAGES = 3
_LEAST = 16  # Rows and columns of the smallest products on tensor cores.


# Kernels and biases.
Layer: TypeAlias = tuple[Float[jax.Array, "K N"], Float[jax.Array, "N"]]


class BlockWeights(NamedTuple):
    """Weights of a block.

    Attributes:
      norm: scale and bias, float32.
      mlp_in: its first layer.
      mlp_out: its second layer.
    """

    norm: tuple[Float[jax.Array, "W"], Float[jax.Array, "W"]]
    mlp_in: Layer
    mlp_out: Layer


class Weights(NamedTuple):
    """Weights of the flow head, in the compute dtype but for norms.

    Attributes:
      input_proj: layer before the blocks.
      blocks: those of the blocks.
      output_proj: layer behind the blocks.
      modulation: biases of the blocks' modulations.
      final_modulation: biases of the modulations before the last layer.
    """

    input_proj: Layer
    blocks: tuple[BlockWeights, ...]
    output_proj: Layer
    modulation: Float[jax.Array, "depth 3 W"]
    final_modulation: Float[jax.Array, "2 W"]

    @classmethod
    def from_params(cls, params: Params, dtype: DTypeLike) -> "Weights":
        """Returns the weights in the parameters of a `FlowHead`."""

        def layer(values: Any) -> Layer:
            return values["kernel"].astype(dtype), values["bias"].astype(dtype)

        def block(values: Any) -> BlockWeights:
            norm = values["norm"]["scale"], values["norm"]["bias"]
            return BlockWeights(norm, layer(values["mlp_in"]), layer(values["mlp_out"]))

        depth = sum(name.startswith("blocks_") for name in params)
        return cls(
            layer(params["input_proj"]),
            tuple(block(params[f"blocks_{i}"]) for i in range(depth)),
            layer(params["output_proj"]),
            params["modulation"]["bias"].astype(dtype),
            params["final_modulation"]["bias"].astype(dtype),
        )


class Tile(NamedTuple):
    """Sizes of a program's tile: rows, columns of the result, and depth of the parts of a product."""

    rows: int
    columns: int
    depth: int


def supports(width: int, latent_dim: int, dtype: DTypeLike) -> bool:
    """Returns whether there are kernels for a flow head of these sizes."""
    return width % _LEAST == 0 and latent_dim % _LEAST == 0 and jnp.dtype(dtype).itemsize in (2, 4)


def velocity(
    weights: Weights,
    z: Float[jax.Array, "B D"],
    modulations: Modulations,
    index: Int[jax.Array, "1"],
    interpret: bool = False,
) -> Float[jax.Array, "R D"]:
    """Returns the velocity at a state, float32: that of `FlowHead`, within rounding.

    Args:
      weights: weights of the flow head.
      z: state of the flow, in the compute dtype.
      modulations: modulations of n evaluations, leaves [n, R, …], where R is a multiple of B: rows that share a state.
      index: the evaluation.
      interpret: emulates the kernels, on any device.
    """
    rows, (states, size), width = modulations.blocks.shape[1], z.shape, weights.input_proj[0].shape[1]
    itemsize = z.dtype.itemsize
    modulated = 4 + 2 * itemsize  # Bytes of a state, its scale and its shift.
    call = functools.partial(_call, interpret=interpret)
    tile = choose_tile(states, size, width, itemsize, itemsize)
    x = call(_enter, tile, (states, size, width), _state(rows, width, tile), z, *weights.input_proj, dtype=z.dtype)
    tile_in = choose_tile(rows, width, width, itemsize, modulated)
    tile_out = choose_tile(rows, width, width, itemsize, itemsize)
    hidden = jax.ShapeDtypeStruct((rows, width), z.dtype)
    sizes, given = (rows, width, width), (modulations.blocks, weights.modulation)
    for i, block in enumerate(weights.blocks):
        kind: dict[str, Any] = dict(block=i, parts=width // tile.columns)
        h = call(_block_in, tile_in, sizes, hidden, index, *x, *given, *block.norm, *block.mlp_in, **kind)
        tile = tile_out
        x = call(_block_out, tile, sizes, _state(rows, width, tile), index, h, x[0], *given, *block.mlp_out, block=i)
    out = jax.ShapeDtypeStruct((rows, size), jnp.float32)
    given = modulations.final, weights.final_modulation, *weights.output_proj
    parts = width // tile.columns
    tile = choose_tile(rows, width, size, itemsize, modulated)
    return call(_leave, tile, (rows, width, size), out, index, *x, *given, parts=parts)


def _state(rows: int, width: int, tile: Tile) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns the shapes of a state, and of means and sums of squares of the parts of its rows."""
    room = 1 << (width // tile.columns - 1).bit_length()  # Triton's arrays have a power of 2 elements.
    shapes = (rows, width), (rows, room), (rows, room)
    return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)


def _call(
    kernel: Callable[..., None], tile: Tile, sizes: tuple[int, int, int], out: Any, *inputs: jax.Array,
    interpret: bool, **options: Any,
) -> Any:  # fmt: skip
    """Runs a kernel on all tiles of a product of [rows, depth] and [depth, columns]."""
    rows, _, columns = sizes
    return pl.pallas_call(
        functools.partial(kernel, tile=tile, **options),
        out_shape=out,
        grid=(-(-rows // tile.rows), columns // tile.columns),
        # For `eqjax.perf.flops`; the compiler does not read it.
        cost_estimate=pl.CostEstimate(flops=2 * math.prod(sizes), transcendentals=0, bytes_accessed=0),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=_STAGES),
        interpret=interpret,
        name=f"flow{kernel.__name__}",
    )(*inputs)


def _largest_power(number: int, most: int) -> int:
    """Returns the largest power of 2 that divides a number and is at most another."""
    return min(number & -number, most)


def choose_tile(rows: int, depth: int, columns: int, itemsize: int, row_bytes: int) -> Tile:
    """Returns the tile with which a kernel has read everything soonest.

    Args:
      rows: R.
      depth: columns of the left factor.
      columns: columns of the result, a multiple of 16.
      itemsize: bytes of a number of the right factor.
      row_bytes: bytes that are read per row and column of the left factor.

    Example:
      >>> choose_tile(128, 1280, 1280, itemsize=2, row_bytes=2)
      Tile(rows=64, columns=64, depth=64)
    """

    def cost(sizes: tuple[int, int]) -> tuple[float, int]:
        tile_rows, tile_columns = sizes
        programs = -(-rows // tile_rows) * (columns // tile_columns)
        read = min(tile_rows, rows) * row_bytes + tile_columns * itemsize
        return max(-(-programs // _PROGRAMS), programs / _READERS) * read, programs

    widths = [width for width in (16, 32, 64, 128) if columns % width == 0]
    tile_rows, tile_columns = min(((m, n) for m in (16, 32, 64) for n in widths), key=cost)
    stage = _STAGES * (tile_rows * row_bytes + tile_columns * itemsize)
    fits = 2 ** int(math.log2(_SHARED_BYTES / stage))
    return Tile(tile_rows, tile_columns, _largest_power(depth, max(_LEAST, min(128, fits))))


def _load(ref: Any, mask: jax.Array | None = None) -> jax.Array:
    """Returns values, zeros where the mask, which broadcasts to their shape, is False."""
    if mask is None:
        return triton.load(ref)
    return triton.load(ref, mask=jnp.broadcast_to(mask, ref.shape), other=0)


def _product(
    tile: Tile, depth: int, left: Callable[[Any], jax.Array], kernel: Any, bias: Any, columns: Any
) -> jax.Array:
    """Returns a tile of left · kernel + bias, float32; `left` returns columns of the left factor from an index on."""
    config: Any = jax.config
    precision = config.jax_default_matmul_precision or "highest"

    def add(k: Any, total: jax.Array) -> jax.Array:
        at = pl.ds(k * tile.depth, tile.depth)
        right = _load(kernel.at[at, columns])
        return total + jnp.dot(left(at), right, precision=precision, preferred_element_type=jnp.float32)

    total = jax.lax.fori_loop(0, depth // tile.depth, add, jnp.zeros((tile.rows, tile.columns), jnp.float32))
    return total + _load(bias.at[columns]).astype(jnp.float32)[None]


def _place(tile: Tile, rows: int) -> tuple[Any, Any, jax.Array]:
    """Returns the rows and columns of this program's tile, and which of the rows exist."""
    first = pl.program_id(0) * tile.rows
    inside = first + jax.lax.broadcasted_iota(jnp.int32, (tile.rows, 1), 0) < rows
    return pl.ds(first, tile.rows), pl.ds(pl.program_id(1) * tile.columns, tile.columns), inside


def _store_moments(values: jax.Array, means: Any, squares: Any, rows: Any, inside: jax.Array) -> None:
    """Writes mean and sum of squared differences of a tile's rows."""
    mean = jnp.sum(values, axis=1) / values.shape[1]
    at = rows, pl.program_id(1)
    triton.store(means.at[at], mean, mask=inside[:, 0])
    triton.store(squares.at[at], jnp.sum(jnp.square(values - mean[:, None]), axis=1), mask=inside[:, 0])


def _load_moments(
    means: Any, squares: Any, rows: Any, inside: jax.Array, parts: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and 1/deviation of whole rows from those of their parts, [rows, 1]."""
    known = inside & (jax.lax.broadcasted_iota(jnp.int32, (1, means.shape[1]), 1) < parts)
    part_means, part_squares = (jnp.where(known, _load(ref.at[rows, :], known), 0) for ref in (means, squares))
    mean = jnp.sum(part_means, axis=1, keepdims=True) / parts
    between = jnp.where(known, jnp.square(part_means - mean), 0)
    total = jnp.sum(part_squares + (width // parts) * between, axis=1, keepdims=True)
    return mean, jax.lax.rsqrt(total / width + 1e-6)


def _enter(z: Any, kernel: Any, bias: Any, x: Any, means: Any, squares: Any, *, tile: Tile, dtype: Any) -> None:
    states, depth = z.shape
    rows, columns, inside = _place(tile, states)
    found = _product(tile, depth, lambda at: _load(z.at[rows, at], inside), kernel, bias, columns)
    found = found.astype(dtype).astype(jnp.float32)
    for first in range(0, x.shape[0], states):  # Rows of the classes, and those of the null class.
        copy = pl.ds(rows.start + first, tile.rows)
        triton.store(x.at[copy, columns], found, mask=jnp.broadcast_to(inside, found.shape))
        _store_moments(found, means, squares, copy, inside)


def _block_in(
    index: Any, x: Any, means: Any, squares: Any, modulations: Any, modulation_bias: Any, scale: Any, bias: Any,
    kernel: Any, kernel_bias: Any, h: Any, *, tile: Tile, block: int, parts: int,
) -> None:  # fmt: skip
    total, width = x.shape
    rows, columns, inside = _place(tile, total)
    i = index[0]
    mean, inverse = _load_moments(means, squares, rows, inside, parts, width)

    def modulation(kind: int, at: Any) -> jax.Array:
        loaded = _load(modulations.at[i, rows, np.int32(block), np.int32(kind), at], inside)
        return (loaded + _load(modulation_bias.at[np.int32(block), np.int32(kind), at])[None]).astype(jnp.float32)

    def left(at: Any) -> jax.Array:
        y = (_load(x.at[rows, at], inside) - mean) * inverse
        y = y * _load(scale.at[at])[None] + _load(bias.at[at])[None]
        return (y * (1 + modulation(1, at)) + modulation(0, at)).astype(h.dtype)

    found = _product(tile, width, left, kernel, kernel_bias, columns)
    found = found * jax.nn.sigmoid(found)
    triton.store(h.at[rows, columns], found.astype(h.dtype), mask=jnp.broadcast_to(inside, found.shape))


def _block_out(
    index: Any, h: Any, x: Any, modulations: Any, modulation_bias: Any, kernel: Any, kernel_bias: Any, out: Any,
    means: Any, squares: Any, *, tile: Tile, block: int,
) -> None:  # fmt: skip
    total, width = x.shape
    rows, columns, inside = _place(tile, total)
    found = _product(tile, width, lambda at: _load(h.at[rows, at], inside), kernel, kernel_bias, columns)
    gate = _load(modulations.at[index[0], rows, np.int32(block), np.int32(2), columns], inside)
    gate = (gate + _load(modulation_bias.at[np.int32(block), np.int32(2), columns])[None]).astype(jnp.float32)
    found = _load(x.at[rows, columns], inside) + gate * found
    triton.store(out.at[rows, columns], found, mask=jnp.broadcast_to(inside, found.shape))
    _store_moments(found, means, squares, rows, inside)


def _leave(
    index: Any, x: Any, means: Any, squares: Any, modulations: Any, modulation_bias: Any, kernel: Any,
    kernel_bias: Any, v: Any, *, tile: Tile, parts: int,
) -> None:  # fmt: skip
    total, width = x.shape
    rows, columns, inside = _place(tile, total)
    i = index[0]
    mean, inverse = _load_moments(means, squares, rows, inside, parts, width)

    def modulation(kind: int, at: Any) -> jax.Array:
        loaded = _load(modulations.at[i, rows, np.int32(kind), at], inside)
        return (loaded + _load(modulation_bias.at[np.int32(kind), at])[None]).astype(jnp.float32)

    def left(at: Any) -> jax.Array:
        y = (_load(x.at[rows, at], inside) - mean) * inverse
        return (y * (1 + modulation(1, at)) + modulation(0, at)).astype(kernel.dtype)

    found = _product(tile, width, left, kernel, kernel_bias, columns)
    triton.store(v.at[rows, columns], found, mask=jnp.broadcast_to(inside, found.shape))
