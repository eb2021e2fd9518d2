"""Parts of kernels for NVIDIA GPUs in which a product takes in what lies before and behind it: norms, biases, sums.

Each program of a kernel computes one tile of its result and reads whole rows of what it multiplies, so that none waits
for another. A norm needs the moments of whole rows, which no single program of the kernel before has: each of those
writes mean and sum of squares of its tile, and the next kernel's programs combine them.

The kernels are written in Pallas and compiled by XLA's Triton compiler, whose arrays have a power of 2 elements along
each axis. Sums are float32, and float32 products have the precision that JAX is told (`eqjax.precision`).

Letters: R rows, K depth and N columns of a product, T tiles of a row.

Source: moments of parts: Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, T. F. Chan,
G. H. Golub and R. J. LeVeque, 1979.
"""

from collections.abc import Callable, Sequence
import contextlib
import functools
import math
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp
from jaxtyping import Float

from eqjax.generator.gpu_sizes import LEAST, PROGRAMS
from eqjax.precision import is_true_float32

# Programs that together read as fast as the L2 cache can: each 64 bytes a clock, 112 GB/s; the cache 5.5 TB/s.
_READERS = 49
_BYTES_A_CLOCK = 64
_THREADS = 128
# Shared memory of a program: what the smallest supported GPUs have (L4, RTX 4090) is 99 KB.
_SHARED_BYTES = 72 * 1024
_STAGES = 3
_HEIGHTS = (16, 32, 64)


class Tile(NamedTuple):
    """Sizes of a program's tile: rows, columns of the result, and depth of the parts of a product."""

    rows: int
    columns: int
    depth: int


def choose_tile(
    rows: int,
    depth: int,
    columns: int,
    itemsize: int,
    row_bytes: int,
    heights: Sequence[int] = _HEIGHTS,
    widths: Sequence[int] = (16, 32, 64, 128),
) -> Tile:
    """Returns the tile with which a kernel has read everything soonest, or multiplied it, in float32.

    Args:
      rows: R.
      depth: columns of the left factor.
      columns: columns of the result, a multiple of 16.
      itemsize: bytes of a number of the right factor.
      row_bytes: bytes that are read per row and column of the left factor.
      heights: rows that a tile may have.
      widths: columns that it may have; those that do not divide all columns are left out.

    Example:
      >>> choose_tile(128, 1280, 1280, itemsize=2, row_bytes=2)
      Tile(rows=64, columns=64, depth=64)
    """

    def cost(sizes: tuple[int, int]) -> tuple[float, int]:
        tile_rows, tile_columns = sizes
        programs = -(-rows // tile_rows) * (columns // tile_columns)
        read = (min(tile_rows, rows) * row_bytes + tile_columns * itemsize) / _BYTES_A_CLOCK
        waves = -(-programs // PROGRAMS)
        return max(waves * max(read, _clocks(tile_rows * tile_columns, itemsize)), read * programs / _READERS), programs

    tile_rows, tile_columns = min(((m, n) for m in heights for n in widths if columns % n == 0), key=cost)
    stage = _STAGES * (tile_rows * row_bytes + tile_columns * itemsize)
    fits = 2 ** int(math.log2(_SHARED_BYTES / stage))
    return Tile(tile_rows, tile_columns, _largest_power(depth, max(LEAST, min(128, fits))))


def _clocks(outputs: int, itemsize: int) -> float:
    """Returns the clocks in which a program adds one term of its products' sums to all its outputs, if that decides.

    Without tensor cores a thread multiplies and adds once per clock. What it multiplies comes from shared memory: for n
    outputs about 2√n numbers, four at once, and four warps share what reads them.
    """
    if itemsize == 2 or not is_true_float32(jnp.float32):
        return 0.0
    per_thread = outputs / _THREADS
    return max(per_thread, 4 * math.sqrt(per_thread))


def _largest_power(number: int, most: int) -> int:
    """Returns the largest power of 2 that divides a number and is at most another."""
    return min(number & -number, most)


def grid(tile: Tile, rows: int, columns: int) -> tuple[int, int]:
    """Returns the numbers of tiles along rows and columns of a result."""
    return -(-rows // tile.rows), columns // tile.columns


def call(
    kernel: Callable[..., None],
    programs: tuple[int, ...],
    flops: int,
    out: Any,
    *inputs: jax.Array,
    interpret: bool,
    name: str,
    aliases: dict[int, int] | None = None,
    **options: Any,
) -> Any:
    """Runs a kernel.

    Args:
      kernel: function of inputs, outputs, and the options by name.
      programs: numbers of programs along the axes, such as those of tiles along rows and columns of the result.
      flops: FLOPs of its products, for `eqjax.perf.flops`; the compiler does not read it.
      out: shapes of the outputs.
      *inputs: its inputs.
      interpret: emulates the kernel, on any device.
      name: of the kernel in profiles.
      aliases: positions of inputs that are written in place → positions of outputs.
      **options: options of the kernel.
    """
    run = pl.pallas_call(
        functools.partial(kernel, **options),
        out_shape=out,
        grid=programs,
        cost_estimate=pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=0),
        compiler_params=triton.CompilerParams(num_warps=_THREADS // 32, num_stages=_STAGES),
        input_output_aliases=aliases or {},
        interpret=interpret,
        name=name,
    )
    with contextlib.nullcontext() if interpret else _for_a_gpu():
        return run(*inputs)


def lower_one() -> None:
    """Lowers a kernel for an NVIDIA GPU, which need not be there.

    Raises:
      Exception: this version of JAX does not lower it.
    """

    def copy(x: Any, out: Any) -> None:
        triton.store(out.at[...], load(x.at[...]))

    shape = jax.ShapeDtypeStruct((LEAST,), jnp.float32)
    run = jax.jit(lambda x: call(copy, (1,), 0, shape, x, interpret=False, name="copy"))
    run.trace(shape).lower(lowering_platforms=("cuda",))


def _for_a_gpu() -> contextlib.AbstractContextManager[None]:
    """Returns a block in which what is traced is lowered for a GPU, also where the process has none.

    From 0.11 on JAX lowers kernels of Triton for a GPU that it knows, the process's default device unless an abstract
    mesh names another one. All it wants to know is which 8-bit floats there are; XLA compiles for the real chip.
    """
    version: Any = jax.__version_info__
    if version[:2] < (0, 11) or not jax.sharding.get_abstract_mesh().empty:
        return contextlib.nullcontext()
    least = jax.sharding.AbstractDevice("NVIDIA A100", num_cores=None, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=least))


def load(ref: Any, mask: jax.Array | None = None) -> jax.Array:
    """Returns values, zeros where the mask, which broadcasts to their shape, is False."""
    if mask is None:
        return triton.load(ref)
    return triton.load(ref, mask=jnp.broadcast_to(mask, ref.shape), other=0)


def place(tile: Tile, rows: int) -> tuple[Any, Any, jax.Array]:
    """Returns the rows and columns of this program's tile, and which of the rows exist, [rows, 1]."""
    first = pl.program_id(0) * tile.rows
    inside = first + jax.lax.broadcasted_iota(jnp.int32, (tile.rows, 1), 0) < rows
    return pl.ds(first, tile.rows), pl.ds(pl.program_id(1) * tile.columns, tile.columns), inside


def products(
    tile: Tile, depth: int, left: Callable[[Any], jax.Array], rights: Sequence[Callable[[Any], jax.Array]]
) -> tuple[jax.Array, ...]:
    """Returns the products of a left factor with right factors that share a tile's columns equally, float32.

    Args:
      tile: sizes of the tile.
      depth: K.
      left: function of a slice of 0 … K − 1 → these columns of the left factor.
      rights: functions of it → these rows of the right factors.
    """
    config: Any = jax.config
    precision = config.jax_default_matmul_precision or "highest"

    def add(k: Any, totals: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        at = pl.ds(k * tile.depth, tile.depth)
        here = left(at)
        return tuple(
            total + jnp.dot(here, right(at), precision=precision, preferred_element_type=jnp.float32)
            for total, right in zip(totals, rights, strict=True)
        )

    zeros = jnp.zeros((tile.rows, tile.columns // len(rights)), jnp.float32)
    return jax.lax.fori_loop(0, depth // tile.depth, add, (zeros,) * len(rights))


def product(
    tile: Tile,
    depth: int,
    left: Callable[[Any], jax.Array],
    kernel: Any,
    bias: Any,
    columns: Any,
    at: tuple[Any, ...] = (),
) -> jax.Array:
    """Returns a tile of left · kernel + bias, float32.

    Args:
      tile: sizes of the tile.
      depth: K.
      left: function of a slice of 0 … K − 1 → these columns of the left factor.
      kernel: the right factor [K, N].
      bias: the bias [N].
      columns: columns of the tile.
      at: indices of kernel and bias in arrays of many.
    """
    (found,) = products(tile, depth, left, [lambda part: load(kernel.at[*at, part, columns])])
    return found + load(bias.at[*at, columns]).astype(jnp.float32)[None]


def state_shapes(rows: int, width: int, tile: Tile) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns the shapes of a state, and of means and sums of squares of the parts of its rows, float32."""
    room = 1 << (width // tile.columns - 1).bit_length()
    shapes = (rows, width), (rows, room), (rows, room)
    return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)


def store_moments(values: jax.Array, means: Any, squares: Any, rows: Any, inside: jax.Array) -> None:
    """Writes mean and sum of squared differences of a tile's rows."""
    mean = jnp.sum(values, axis=1) / values.shape[1]
    at = rows, pl.program_id(1)
    triton.store(means.at[at], mean, mask=inside.reshape(-1))
    triton.store(squares.at[at], jnp.sum(jnp.square(values - mean[:, None]), axis=1), mask=inside.reshape(-1))


def normalized(
    x: Any, means: Any, squares: Any, rows: Any, inside: jax.Array, parts: int, epsilon: float
) -> Callable[[Any], Float[jax.Array, "rows part"]]:
    """Returns a function of columns → these columns of a tile's rows, normalized with the moments of whole rows.

    Args:
      x: the state [R, W].
      means: means of the parts of its rows.
      squares: their sums of squared differences.
      rows: rows of the tile.
      inside: which of them exist.
      parts: T.
      epsilon: added to the variance.
    """
    width = x.shape[1]
    known = inside & (jax.lax.broadcasted_iota(jnp.int32, (1, means.shape[1]), 1) < parts)
    part_means, part_squares = (jnp.where(known, load(ref.at[rows, :], known), 0) for ref in (means, squares))
    mean = jnp.sum(part_means, axis=1, keepdims=True) / parts
    between = jnp.where(known, jnp.square(part_means - mean), 0)
    total = jnp.sum(part_squares + (width // parts) * between, axis=1, keepdims=True)
    inverse = jax.lax.rsqrt(total / width + epsilon)
    return lambda at: (load(x.at[rows, at], inside) - mean) * inverse


def affine(
    normalize: Callable[[Any], jax.Array], scale: Any, bias: Any, at: tuple[Any, ...] = ()
) -> Callable[[Any], Float[jax.Array, "rows part"]]:
    """Returns a function of columns → these columns of a norm, scaled and shifted.

    Args:
      normalize: the function that `normalized` returns.
      scale: scales of all columns.
      bias: their shifts.
      at: indices of both in arrays of many.
    """
    return lambda part: normalize(part) * load(scale.at[*at, part])[None] + load(bias.at[*at, part])[None]
