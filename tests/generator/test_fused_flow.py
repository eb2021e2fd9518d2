"""The fused kernels compute what the flow head computes: emulated on the CPU, at sizes that tiles do not divide."""

import itertools

import numpy as np
import pytest

from eqjax.generator import fused_flow, fused_tiles
from eqjax.precision import computing_in
from tests.generator.flow_velocities import LATENT, evaluate


@pytest.mark.parametrize(("width", "states", "repeats"), [(960, 3, 2), (80, 1, 2), (32, 130, 2), (48, 5, 1)])
def test_float32_is_that_of_the_flow_head(width, states, repeats):
    fused, plain, _ = evaluate("blocks", width, states, repeats=repeats)
    assert fused.shape == (repeats * states, LATENT) and np.abs(plain).max() > 1
    assert np.abs(fused - plain).max() <= 1e-5


def test_bfloat16_differs_by_rounding():
    fused, plain, exact = evaluate("blocks", 96, 5, "bfloat16")
    rounding = np.abs(plain - exact).max()
    assert 1e-3 < rounding < 0.1
    assert np.abs(fused - exact).max() < 1.5 * rounding


def test_the_norms_of_parts_are_accurate_far_from_zero():
    """Plain sums of squares would lose all digits."""
    fused, plain, _ = evaluate("blocks", 64, 3, depth=1, input_bias=1e3)
    assert np.abs(fused - plain).max() <= 1e-3  # A state of 1000 has seven digits.


@pytest.mark.parametrize(("itemsize", "precision"), [(2, "highest"), (4, "highest"), (4, "tf32")])
def test_tiles_divide_columns_and_fit_the_smallest_gpus(itemsize, precision):
    cases = itertools.product((224, 960, 1024, 1280, 1536), (1, 2, 6, 32, 128, 260, 1024), (True, False), (True, False))
    for width, rows, is_modulated, is_last in cases:
        columns, row_bytes = 256 if is_last else width, itemsize + (4 + itemsize if is_modulated else 0)
        with computing_in(precision):
            tile = fused_tiles.choose_tile(rows, width, columns, itemsize, row_bytes)
        assert columns % tile.columns == 0 and width % tile.depth == 0 and min(tile) >= 16
        assert all(size & (size - 1) == 0 for size in tile)  # Powers of 2: all that Triton has.
        assert 3 * tile.depth * (tile.rows * row_bytes + tile.columns * itemsize) <= 99 * 1024


def test_float32_without_tensor_cores_is_divided_among_the_multiprocessors():
    """Of 128 rows and columns of 1024, tiles of 64 × 64 would leave 100 of 132 without work."""
    with computing_in("highest"):
        tile = fused_tiles.choose_tile(128, 1024, 1024, 4, 4)
        assert fused_tiles.choose_tile(128, 1024, 1024, 2, 2) == (32, 64, 128)
    assert (128 // tile.rows) * (1024 // tile.columns) >= 100
    with computing_in("tf32"):
        assert fused_tiles.choose_tile(128, 1024, 1024, 4, 4).columns == 64


def test_sizes_without_kernels():
    assert fused_flow.supports(960, 256) and fused_flow.supports(1280, 256)
    assert not fused_flow.supports(24, 256)
    assert not fused_flow.supports(960, 8)
