"""Conversion of images, grids and PNG files."""

import numpy as np
import pytest

from eqjax import pixels


def test_every_byte_survives_the_way_to_floats_and_back():
    values = np.arange(256, dtype=np.uint8)
    floats = pixels.from_uint8(values)
    assert floats[0] == -1 and floats[-1] == 1
    np.testing.assert_array_equal(pixels.to_uint8(floats), values)


def test_floats_are_clipped_and_rounded_to_the_nearest():
    steps = np.array([-7.0, -1.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 1.0, 7.0], np.float32)
    assert pixels.to_uint8(steps).tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize(("columns", "shape"), [(None, (2, 3)), (2, (3, 2)), (5, (1, 5))])
def test_a_grid_places_images_row_by_row_on_white(columns, shape):
    images = np.stack([np.full((4, 6, 3), i, np.uint8) for i in range(5)])
    out = pixels.grid(images, columns=columns, gap=1)
    rows, columns = shape
    assert out.shape == (rows * 5 - 1, columns * 7 - 1, 3)
    expected = np.full(out.shape, 255)
    for i in range(5):
        y, x = i // columns * 5, i % columns * 7
        expected[y : y + 4, x : x + 6] = i
    np.testing.assert_array_equal(out, expected)
