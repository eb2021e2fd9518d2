"""Conversion of images, grids and PNG files."""

import warnings

import jax
import jax.numpy as jnp
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


@pytest.mark.parametrize("values", [(0.0, 255.0), (-1.0, 1.3), (-2.0, 0.0), (np.nan, 0.0), (np.inf, 0.0)])
def test_floats_out_of_range_are_refused_with_their_range_and_the_conversion(values):
    message = (
        "image has values from .* to .*from_uint8" if np.isfinite(values).all() else "image has values .* not finite"
    )
    for array in (np.array(values), jnp.array(values)):
        with pytest.raises(ValueError, match=message):
            pixels.check_range("image", array)


@pytest.mark.parametrize("values", [(-1.0, 1.0), (-1.2, 1.2), (0.0, 0.0), (1.0, 1.0), (0.5, 1.0), ()])
def test_images_in_range_pass_without_a_word(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels.check_range("image", np.array(values))
        jax.jit(lambda x: pixels.check_range("image", 300 * x))(jnp.ones(2))  # Traced values cannot be checked.


def test_floats_that_look_like_0_to_1_get_a_warning():
    with pytest.warns(UserWarning, match=r"image has values from 0.1 to 0.9: .*convert them by 2 \* x - 1"):
        pixels.check_range("image", np.array([0.1, 0.9]))
