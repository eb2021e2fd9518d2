"""Kernels for NVIDIA GPUs that do, for many rows, what lies between two products of the flow head in one pass.

The products are XLA's, which are tuned for the chip: with many rows, or in float32, they decide. A sum that is both a
new state and, normalized and modulated, the next product's factor has two results, for which XLA needs two kernels, and
it reads modulations only from a copy. One kernel does all of it here, a block is four:

    product · bias and silu · product · row kernel

    row kernel    x ← x + gate · (sum of partial products + b);  h = modulate(norm(x))

A program has one row, which is read and written once. The second product's sum over K is in a few parts, which make as
many programs as there are multiprocessors, and which the row kernel adds up: XLA would split it too, and then need a
kernel for their sum, as it joins nothing with kernels that are not its own.

Like `FlowHead.denoise` the kernels round to the compute dtype before products; between them they round less often.

Letters: R rows, B states, D latent size, W flow width, n evaluations, S parts of a sum.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from eqjax.generator.flow_head import Modulations
from eqjax.generator.flow_weights import EPSILON, Weights, partial_products
from eqjax.generator.fused_tiles import call, load


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
    rows, width, dtype = modulations.blocks.shape[1], weights.input_proj[0].shape[1], z.dtype
    state, left = jax.ShapeDtypeStruct((rows, width), jnp.float32), jax.ShapeDtypeStruct((rows, width), dtype)
    given = index, modulations.blocks, weights.modulation

    def run(kernel: Callable[..., None], out: Any, *inputs: jax.Array, **options: Any) -> Any:
        name = f"flow_row{kernel.__name__}"
        return call(kernel, (rows,), 0, out, *inputs, interpret=interpret, name=name, **options)

    sums = partial_products(z, weights.input_proj)
    x, h = run(_first, (state, left), *given, *weights.blocks[0].norm, *sums, block=0)
    for i, block in enumerate(weights.blocks):
        kernel, bias = block.mlp_in
        hidden = jnp.dot(h, kernel).astype(jnp.float32) + bias.astype(jnp.float32)[None]
        terms = *partial_products((hidden * jax.nn.sigmoid(hidden)).astype(dtype), block.mlp_out), x
        if i + 1 < len(weights.blocks):
            x, h = run(_between, (state, left), *given, *weights.blocks[i + 1].norm, *terms, block=i + 1)
        else:
            h = run(_last, left, *given, modulations.final, weights.final_modulation, *terms, block=i + 1)
    kernel, bias = weights.output_proj
    return jnp.dot(h, kernel).astype(jnp.float32) + bias.astype(jnp.float32)[None]


def _first(
    index: Any, modulations: Any, modulation_bias: Any, scale: Any, bias: Any, sums: Any, sums_bias: Any, x: Any,
    h: Any, *, block: int,
) -> None:  # fmt: skip
    row, width = pl.program_id(0), x.shape[1]
    shared = row % sums.shape[1]  # Rows of the classes, and those of the null class.
    state = [_sum(sums, sums_bias, shared, at).astype(h.dtype).astype(jnp.float32) for at in _pieces(width)]
    modulation = functools.partial(_modulation, modulations, modulation_bias, index[0], row, block)
    _store(x, row, state)
    _store(h, row, _modulated(state, width, modulation, (scale, bias)))


def _between(
    index: Any, modulations: Any, modulation_bias: Any, scale: Any, bias: Any, sums: Any, sums_bias: Any, x: Any,
    out: Any, h: Any, *, block: int,
) -> None:  # fmt: skip
    row, width = pl.program_id(0), x.shape[1]
    modulation = functools.partial(_modulation, modulations, modulation_bias, index[0], row)
    state = _next_state(functools.partial(modulation, block - 1), sums, sums_bias, x, row)
    _store(out, row, state)
    _store(h, row, _modulated(state, width, functools.partial(modulation, block), (scale, bias)))


def _last(
    index: Any, modulations: Any, modulation_bias: Any, final: Any, final_bias: Any, sums: Any, sums_bias: Any,
    x: Any, h: Any, *, block: int,
) -> None:  # fmt: skip
    row, width = pl.program_id(0), x.shape[1]
    modulation = functools.partial(_modulation, modulations, modulation_bias, index[0], row, block - 1)
    state = _next_state(modulation, sums, sums_bias, x, row)
    _store(h, row, _modulated(state, width, functools.partial(_modulation, final, final_bias, index[0], row)))


def _pieces(width: int) -> Iterator[Any]:
    """Yields slices that make a row, of powers of 2: all that Triton has."""
    first = 0
    while first < width:
        size = 1 << (width - first).bit_length() - 1
        yield pl.ds(first, size)
        first += size


def _sum(sums: Any, bias: Any, row: Any, at: Any) -> jax.Array:
    """Returns columns of a row of a product and its bias, of which there are partial sums."""
    parts = (load(sums.at[np.int32(part), row, at]) for part in range(sums.shape[0]))
    return sum(parts, load(bias.at[at]).astype(jnp.float32))


def _modulation(modulations: Any, bias: Any, evaluation: Any, row: Any, *place: Any) -> jax.Array:
    """Returns columns of a row's shift, scale or gate, float32; `place` is which, and the columns."""
    place = *map(np.int32, place[:-1]), place[-1]  # Emulation takes no Python integers.
    return (load(modulations.at[evaluation, row, *place]) + load(bias.at[place])).astype(jnp.float32)


def _next_state(
    modulation: Callable[..., jax.Array], sums: Any, bias: Any, x: Any, row: Any
) -> list[Float[jax.Array, "part"]]:
    """Returns the pieces of a row's state behind a block."""
    return [load(x.at[row, at]) + modulation(2, at) * _sum(sums, bias, row, at) for at in _pieces(x.shape[1])]


def _modulated(
    state: list[jax.Array], width: int, modulation: Callable[..., jax.Array], affine: tuple[Any, Any] | None = None
) -> list[jax.Array]:
    """Returns the pieces of a row's norm, modulated; `affine` is the norm's scale and bias."""
    mean = sum(jnp.sum(piece, axis=0) for piece in state) / width
    variance = sum(jnp.sum(jnp.square(piece - mean), axis=0) for piece in state) / width
    inverse = jax.lax.rsqrt(variance + EPSILON)

    def modulated(piece: jax.Array, at: Any) -> jax.Array:
        norm = (piece - mean) * inverse
        if affine is not None:
            norm = norm * load(affine[0].at[at]) + load(affine[1].at[at])
        return norm * (1 + modulation(1, at)) + modulation(0, at)

    return [modulated(piece, at) for piece, at in zip(state, _pieces(width), strict=True)]


def _store(ref: Any, row: Any, pieces: list[jax.Array]) -> None:
    for piece, at in zip(pieces, _pieces(ref.shape[1]), strict=True):
        triton.store(ref.at[row, at], piece.astype(ref.dtype))
