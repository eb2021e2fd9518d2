"""Roughness at column borders and middles, of images whose seams are known."""

import numpy as np
import pytest

from eqjax.evaluation.roughness import border_roughness


def noise(width, count=8, height=64):
    return np.random.default_rng(0).normal(size=(count, height, width, 3))


def test_images_that_know_no_columns_have_roughness_one():
    found = border_roughness(noise(8 * 12), 8)
    np.testing.assert_allclose(found.profile, 1, atol=0.05)
    assert found.profile.shape == (8,) and found.border == found.profile[0] and found.middle == found.profile[4]


def test_known_seams_are_found_where_they_are():
    ramp = np.arange(6 * 12.0)  # Differences of 1 everywhere …
    at_borders, at_middles = ramp + 2 * (np.arange(72) // 12), ramp + 0.5 * ((np.arange(72) + 6) // 12)
    one_row = {"border": (at_borders, (3, 1)), "middle": (at_middles, (1, 1.5))}  # … and here 2 or 0.5 more.
    for name, (row, expected) in one_row.items():
        found = border_roughness(np.broadcast_to(row[None, None, :, None], (2, 3, 72, 3)), 12)
        assert (found.border, found.middle) == pytest.approx(expected), name
        assert np.delete(found.profile, [0, 6]) == pytest.approx(1), name


def test_a_seam_does_not_raise_what_it_is_compared_with():
    image = noise(96)
    image[:, :, 48:] += 100.0
    found = border_roughness(image, 8)
    assert found.border > 5 and found.middle == pytest.approx(1, abs=0.05)


def test_bytes_do_not_wrap_and_the_scale_does_not_matter():
    image = np.zeros((1, 4, 32, 3), np.uint8)
    image[:, :, 1::2] = 255
    assert border_roughness(image, 8).profile == pytest.approx(1)
    floats = noise(32)
    assert border_roughness(floats, 8).profile == pytest.approx(border_roughness(floats * 127.5, 8).profile)


def test_flat_images_have_no_ratio():
    assert np.isnan(border_roughness(np.ones((1, 4, 32, 3)), 8).border)


@pytest.mark.parametrize(
    ("shape", "column_width", "message"),
    [
        ((1, 4, 31, 3), 16, r"at least two columns, 32 pixels wide; these are \[1, 4, 31, 3\]"),
        ((0, 4, 32, 3), 16, r"these are \[0, 4, 32, 3\]"),
        ((4, 32, 3), 16, r"images \[N, H, W, C\]"),
        ((1, 4, 32, 3), 2, "column_width=2"),
    ],
)
def test_images_without_an_inside_are_refused(shape, column_width, message):
    with pytest.raises(ValueError, match=message):
        border_roughness(np.zeros(shape), column_width)
