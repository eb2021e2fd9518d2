"""Sizes by hand, crops that stay in their box, scales that are covered, flips that flip."""

import numpy as np
import pytest

from eqjax.data import transforms


def _columns(height, width):
    """An image whose red channel is its column number."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width)
    return image


@pytest.mark.parametrize(
    ("image_size", "size", "expected"),
    [
        ((375, 500), 256, (256, 341)),  # 256 · 500 / 375 = 341.33
        ((500, 375), 256, (341, 256)),
        ((100, 100), 64, (64, 64)),
        ((30, 40), 60, (60, 80)),
        ((427, 640), 64, (64, 95)),  # 95.93 truncated
    ],
)
def test_shorter_side_by_hand(image_size, size, expected):
    height, width = image_size
    assert transforms.shorter_side_size(height, width, size) == expected
    assert transforms.ResizeShorterSide(size, size, size).output_size(height, width) == expected


def test_wide_crop_enlarges_a_narrow_image():
    assert transforms.ResizeShorterSide(32, 32, 100).output_size(40, 80) == (50, 100)


def test_resize_is_antialiased():
    """A checkerboard of single pixels becomes gray; sampling without antialiasing would keep black or white."""
    board = np.repeat((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    assert np.abs(transforms.resize(board, 8, 8).astype(int) - 127).max() < 16


def test_region_never_reads_outside_its_box():
    """A filter that reached beyond the region would mix in the white around it."""
    image = np.full((64, 64, 3), 255, np.uint8)
    image[10:50, 20:60] = 0
    assert transforms.resize(transforms.crop(image, (20, 10, 60, 50)), 16, 16).max() == 0


def test_region_bounds_by_hand():
    assert transforms.region_height_bounds(400, 600, 64, 64, 0.25, 1.0) == (100, 400)
    assert transforms.region_height_bounds(400, 300, 64, 128, 0.5, 1.0) == (75, 150)
    # 0.25 of 120 pixels would be enlarged more than 1.3 times: the bound takes over.
    assert transforms.region_height_bounds(120, 200, 64, 64, 0.25, 1.0) == (64 / 1.3, 120)
    # The image is smaller than the bound: the whole of it is the only choice.
    assert transforms.region_height_bounds(40, 90, 64, 64, 0.25, 0.5) == (40, 40)


def test_random_regions_cover_scales_and_places():
    rng = np.random.default_rng(0)
    boxes = np.array([transforms.random_region(400, 600, 32, 64, 0.2, 0.8, rng) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    heights, widths = bottom - top, right - left
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 600 and bottom.max() <= 400
    assert np.abs(widths - 2 * heights).max() <= 1
    assert 60 <= heights.min() <= 62 and 236 <= heights.max() <= 240  # 0.2 and 0.8 of the largest, 300 pixels.
    # Log-uniform: half the crops are below the geometric mean, sqrt(60 · 240) = 120.
    assert abs(np.mean(heights < 120) - 0.5) < 0.05
    assert left.min() < 5 and right.max() > 595 and top.min() < 5 and bottom.max() > 395


def test_grid_is_inside_without_repeats_and_several_scales():
    boxes = transforms.region_grid(400, 100, 32, 32, 0.4, 1.0)
    assert len(boxes) == len(set(boxes))
    left, top, right, bottom = np.array(boxes).T
    assert left.min() >= 0 and right.max() <= 100 and top.min() == 0 and bottom.max() == 400
    assert sorted(set(bottom - top)) == [40, 63, 100]  # Geometric.
    assert sum(bottom - top == 100) == 4 and sum(bottom - top == 40) == 4 * 2
    assert transforms.region_grid(20, 20, 32, 32, 0.4, 1.0) == [(0, 0, 20, 20)]


def test_center_crop_by_hand():
    record = transforms.CenterCrop(4, 6)({"image": _columns(8, 11)})
    np.testing.assert_array_equal(record["image"][0, :, 0], np.arange(2, 8))


def test_random_crop_reaches_both_ends():
    rng = np.random.default_rng(0)
    crops = [transforms.RandomCrop(4, 6)({"image": _columns(4, 9)}, rng)["image"] for _ in range(50)]
    assert {int(image[0, 0, 0]) for image in crops} == {0, 1, 2, 3}
    assert all(image.shape == (4, 6, 3) for image in crops)


def test_flip_mirrors_about_half():
    rng = np.random.default_rng(0)
    image = _columns(2, 5)
    flips = [transforms.RandomFlip()({"image": image, "label": 0}, rng)["image"] for _ in range(200)]
    mirrored = sum(np.array_equal(flipped, image[:, ::-1]) for flipped in flips)
    assert 70 < mirrored < 130
    assert mirrored + sum(np.array_equal(flipped, image) for flipped in flips) == 200
