"""Resizing as PyTorch and TensorFlow 1 do it."""

import numpy as np
import pytest

from eqjax import nets
from eqjax.nets.resize import interpolation_matrix
from eqjax.nets.vit import resample_positions
from tests import frozen_network_cases
from tests.golden_cases import relative_error

METHODS = ("area", "bicubic", "bicubic_antialias", "bilinear_tf1")


@pytest.mark.parametrize("method", ["bicubic", "area"])
def test_images_against_recorded_arrays(method):
    arrays = frozen_network_cases.objective()[1]
    out = nets.resize(arrays["resize/image"], (28, 35), method)
    assert relative_error(out, arrays[f"resize/{method}_28x35"]) < 1e-6


def test_positions_against_recorded_arrays():
    arrays = frozen_network_cases.objective()[1]
    out = resample_positions(arrays["resize/pos_embed"][0], (16, 16))
    assert relative_error(out, arrays["resize/pos_embed_16"][0]) < 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "out"), [(12, 5), (5, 12), (7, 7), (6, 3)])
def test_a_constant_stays_and_the_same_size_changes_nothing(method, size, out):
    matrix = interpolation_matrix(size, out, method)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    if size == out:
        np.testing.assert_array_equal(matrix, np.eye(size))


def test_hand_written_matrices():
    area = [[1 / 2, 1 / 2, 0, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 1 / 2, 1 / 2]]
    np.testing.assert_allclose(interpolation_matrix(5, 3, "area"), area, rtol=1e-6)
    # Positions 0, 2/3, 4/3: no half-pixel shift, and the last pixel would be repeated.
    tf1 = [[1, 0], [1 / 3, 2 / 3], [0, 1]]
    np.testing.assert_allclose(interpolation_matrix(2, 3, "bilinear_tf1"), tf1, atol=1e-6)
    # Halfway between pixels the cubic kernel is (a, −4−a+…): −3/32, 19/32, 19/32, −3/32 for a = −0.75.
    half = interpolation_matrix(8, 4, "bicubic")[1, 1:5]
    np.testing.assert_allclose(half, np.array([-3, 19, 19, -3]) / 32, rtol=1e-6)


def test_rows_and_columns_are_not_mixed_up():
    image = np.arange(24, dtype=np.uint8).reshape(1, 4, 6, 1)
    out = nets.resize(image, (2, 3), "area")
    np.testing.assert_allclose(out[0, :, :, 0], [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]])


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown resize method 'nearest'; expected one of .*'area'"):
        nets.resize(np.zeros((1, 2, 2, 1)), (4, 4), "nearest")
