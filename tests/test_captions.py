"""Captions: where the letters are, and that the rest of the image is untouched."""

import numpy as np
import pytest

from eqjax.captions import caption


def test_letters_are_in_the_upper_left_corner_in_two_colors():
    image = np.full((128, 512, 3), 127, np.uint8)
    written = caption(image, "galaxies")
    changed = np.nonzero((written != image).any(-1))
    assert changed[0].max() < 32 and changed[1].max() < 160 and len(changed[0]) > 200
    assert written.max() == 255 and written.min() == 24
    assert (image == 127).all()


def test_letters_grow_with_the_image_within_bounds():
    def width(height, text="wide"):
        image = np.zeros((height, 400, 3), np.uint8)
        return np.nonzero(caption(image, text).any((0, 2)))[0].max()

    assert width(16) < width(128) < width(256) < width(512) == width(1024)


def test_a_text_that_is_too_long_is_cut_and_an_empty_one_changes_nothing():
    image = np.zeros((16, 24, 3), np.uint8)
    assert caption(image, "a very long name of a class").shape == image.shape
    np.testing.assert_array_equal(caption(image, ""), image)
    with pytest.raises(TypeError, match="image=<float32 array .*> must be a uint8 array"):
        caption(image.astype(np.float32), "x")  # pyright: ignore[reportArgumentType]  # That is what is tested.
