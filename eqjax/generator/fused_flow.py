"""Kernels for NVIDIA GPUs in which the flow head's evaluations are two kernels per block.

In a loop over time every kernel waits for the one before, so that their number decides. Between two products of a block
lie a norm, a modulation, biases and a silu: XLA makes them kernels of their own, here they are part of the products.

    enter       z W + b, for all rows that share a state
    block_in    silu(modulate(norm(x)) W + b)
    block_out   x + gate · (h W + b)
    leave       modulate(norm(x)) W + b

Modulations are read in place from those of all evaluations in memory, at an index that is data.

Like `FlowHead.denoise` the kernels round to the compute dtype before products; between them they round less often.

Letters: R rows, B states, D latent size, W flow width, n evaluations.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int
import numpy as np

from eqjax.generator.flow_head import Modulations
from eqjax.generator.flow_weights import EPSILON, Weights
from eqjax.generator.fused_tiles import (
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
from eqjax.generator.gpu_sizes import LEAST


def supports(width: int, latent_dim: int) -> bool:
    """Returns whether there are kernels for a flow head of these sizes."""
    return width % LEAST == 0 and latent_dim % LEAST == 0


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
    run = functools.partial(_call, interpret=interpret)
    tile = choose_tile(states, size, width, itemsize, itemsize)
    x = run(_enter, tile, (states, size, width), state_shapes(rows, width, tile), z, *weights.input_proj, dtype=z.dtype)
    tile_in = choose_tile(rows, width, width, itemsize, modulated)
    tile_out = choose_tile(rows, width, width, itemsize, itemsize)
    hidden = jax.ShapeDtypeStruct((rows, width), z.dtype)
    sizes, given = (rows, width, width), (modulations.blocks, weights.modulation)
    for i, block in enumerate(weights.blocks):
        kind: dict[str, Any] = dict(block=i, parts=width // tile.columns)
        h = run(_block_in, tile_in, sizes, hidden, index, *x, *given, *block.norm, *block.mlp_in, **kind)
        tile = tile_out
        x = run(
            _block_out, tile, sizes, state_shapes(rows, width, tile), index, h, x[0], *given, *block.mlp_out, block=i
        )
    out = jax.ShapeDtypeStruct((rows, size), jnp.float32)
    given = modulations.final, weights.final_modulation, *weights.output_proj
    parts = width // tile.columns
    tile = choose_tile(rows, width, size, itemsize, modulated)
    return run(_leave, tile, (rows, width, size), out, index, *x, *given, parts=parts)


def _call(kernel: Callable[..., None], tile: Tile, sizes: tuple[int, int, int], *given: Any, **options: Any) -> Any:
    """Runs a kernel on all tiles of a product of [rows, depth] and [depth, columns]."""
    tiles = grid(tile, sizes[0], sizes[2])
    return call(kernel, tiles, 2 * math.prod(sizes), *given, name=f"flow{kernel.__name__}", tile=tile, **options)


def _enter(z: Any, kernel: Any, bias: Any, x: Any, means: Any, squares: Any, *, tile: Tile, dtype: Any) -> None:
    states, depth = z.shape
    rows, columns, inside = place(tile, states)
    found = product(tile, depth, lambda at: load(z.at[rows, at], inside), kernel, bias, columns)
    found = found.astype(dtype).astype(jnp.float32)
    for first in range(0, x.shape[0], states):  # Rows of the classes, and those of the null class.
        copy = pl.ds(rows.start + first, tile.rows)
        triton.store(x.at[copy, columns], found, mask=jnp.broadcast_to(inside, found.shape))
        store_moments(found, means, squares, copy, inside)


def _modulation(
    modulations: Any, bias: Any, evaluation: Any, rows: Any, inside: jax.Array, place_in: tuple[int, ...], at: Any
) -> jax.Array:
    """Returns columns of a tile's shift, scale or gate, which `place_in` selects, float32."""
    indices = tuple(map(np.int32, place_in))  # Emulation takes no Python integers.
    values = load(modulations.at[evaluation, rows, *indices, at], inside)
    return (values + load(bias.at[*indices, at])[None]).astype(jnp.float32)


def _modulated(
    normalize: Callable[[Any], jax.Array], modulation: Callable[[int, Any], jax.Array], dtype: DTypeLike
) -> Callable[[Any], jax.Array]:
    """Returns a function of columns → these columns of a norm, modulated: 0 is the shift, 1 the scale."""
    return lambda at: (normalize(at) * (1 + modulation(1, at)) + modulation(0, at)).astype(dtype)


def _block_in(
    index: Any, x: Any, means: Any, squares: Any, modulations: Any, modulation_bias: Any, scale: Any, bias: Any,
    kernel: Any, kernel_bias: Any, h: Any, *, tile: Tile, block: int, parts: int,
) -> None:  # fmt: skip
    rows, columns, inside = place(tile, x.shape[0])
    norm = normalized(x, means, squares, rows, inside, parts, EPSILON)
    given = modulations, modulation_bias, index[0], rows, inside
    left = _modulated(
        affine(norm, scale, bias),
        lambda kind, at: _modulation(*given, (block, kind), at),
        h.dtype,
    )
    found = product(tile, x.shape[1], left, kernel, kernel_bias, columns)
    found = found * jax.nn.sigmoid(found)
    triton.store(h.at[rows, columns], found.astype(h.dtype), mask=jnp.broadcast_to(inside, found.shape))


def _block_out(
    index: Any, h: Any, x: Any, modulations: Any, modulation_bias: Any, kernel: Any, kernel_bias: Any, out: Any,
    means: Any, squares: Any, *, tile: Tile, block: int,
) -> None:  # fmt: skip
    total, width = x.shape
    rows, columns, inside = place(tile, total)
    found = product(tile, width, lambda at: load(h.at[rows, at], inside), kernel, kernel_bias, columns)
    gate = _modulation(modulations, modulation_bias, index[0], rows, inside, (block, 2), columns)
    found = load(x.at[rows, columns], inside) + gate * found
    triton.store(out.at[rows, columns], found, mask=jnp.broadcast_to(inside, found.shape))
    store_moments(found, means, squares, rows, inside)


def _leave(
    index: Any, x: Any, means: Any, squares: Any, modulations: Any, modulation_bias: Any, kernel: Any,
    kernel_bias: Any, v: Any, *, tile: Tile, parts: int,
) -> None:  # fmt: skip
    rows, columns, inside = place(tile, x.shape[0])
    norm = normalized(x, means, squares, rows, inside, parts, EPSILON)
    given = modulations, modulation_bias, index[0], rows, inside
    left = _modulated(norm, lambda kind, at: _modulation(*given, (kind,), at), kernel.dtype)
    found = product(tile, x.shape[1], left, kernel, kernel_bias, columns)
    triton.store(v.at[rows, columns], found, mask=jnp.broadcast_to(inside, found.shape))
