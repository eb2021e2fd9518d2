"""Crops, resizes and flips of uint8 images, as plain functions and as Grain transforms.

The functions take and return numpy arrays [H, W, 3] uint8; a box is (left, top, right, bottom) in pixels of the
image it cuts, right and bottom exclusive. The transform classes act on records {"image": [H, W, 3] uint8, "label":
int} and are picklable, so that Grain can send them to worker processes.

Every resize is Pillow's BILINEAR, which widens its filter when it shrinks an image (antialiasing). A region is cut
out before it is resized, so no pixel outside a box ever reaches the result.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

from eqjax.typing import Record

Box = tuple[int, int, int, int]

# A region is enlarged at most this much where the image is large enough to allow it: beyond, crops are blurred by
# the resize.
MAX_UPSAMPLING = 1.3


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image [H, W, 3] uint8 to [height, width, 3] uint8, bilinear and antialiased."""
    if image.shape[:2] == (height, width):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """Cuts a box out of an image [H, W, 3] uint8; the result is a view [bottom - top, right - left, 3]."""
    left, top, right, bottom = box
    return image[top:bottom, left:right]


def shorter_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns the (height, width) in pixels of an image whose shorter side is brought to `size`, its aspect kept.

    The longer side is truncated to an integer, as torchvision's Resize does, so that crops fall on the same pixels.
    """
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def region_height_bounds(
    image_height: int, image_width: int, height: int, width: int, min_scale: float, max_scale: float
) -> tuple[float, float]:
    """Returns the smallest and largest height, in pixels, of a region to be cut out and resized to height × width.

    Args:
        image_height: Height of the image, pixels.
        image_width: Width of the image, pixels.
        height: Height of the result, pixels; with `width` it gives the aspect of the region.
        width: Width of the result, pixels.
        min_scale: Smallest region as a fraction, in (0, 1], of the largest region of that aspect that fits in the
            image.
        max_scale: Largest region, likewise.

    Returns:
        (low, high), 0 < low <= high <= image_height. Regions that would be enlarged more than MAX_UPSAMPLING times
        are ruled out unless the image is too small to hold a larger one.
    """
    largest = min(image_height, image_width * height / width)
    sharp = min(largest, height / MAX_UPSAMPLING)
    return max(min_scale * largest, sharp), max(max_scale * largest, sharp)


def _region_size(region_height: float, image_height: int, image_width: int, height: int, width: int) -> tuple[int, int]:
    """Rounds a region of aspect width / height to whole pixels inside the image: (height, width)."""
    region_width = region_height * width / height
    return (
        min(max(round(region_height), 1), image_height),
        min(max(round(region_width), 1), image_width),
    )


def random_region(
    image_height: int,
    image_width: int,
    height: int,
    width: int,
    min_scale: float,
    max_scale: float,
    rng: np.random.Generator,
) -> Box:
    """Draws a region of aspect width / height: its size log-uniform between the bounds, its place uniform.

    Log-uniform gives every octave of scale the same share of crops; a uniform draw would spend most on the largest.
    Arguments as in `region_height_bounds`, and `rng`, the generator drawn from.
    """
    low, high = region_height_bounds(image_height, image_width, height, width, min_scale, max_scale)
    drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
    region_height, region_width = _region_size(drawn, image_height, image_width, height, width)
    top = int(rng.integers(0, image_height - region_height + 1))
    left = int(rng.integers(0, image_width - region_width + 1))
    return left, top, left + region_width, top + region_height


def _spread(length: int, size: int, most: int) -> list[int]:
    """Returns up to `most` starts of separate pieces of `size` pixels, spread evenly over `length`."""
    count = min(length // size, most)
    if count == 1:
        return [(length - size) // 2]
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def region_grid(
    image_height: int,
    image_width: int,
    height: int,
    width: int,
    min_scale: float,
    max_scale: float,
    num_scales: int = 3,
    max_per_side: int = 4,
) -> list[Box]:
    """Returns a fixed list of regions of aspect width / height at several scales, for evaluation.

    Scales are spaced geometrically between the bounds of `region_height_bounds`. At each scale the regions do not
    overlap and are spread evenly over the image, at most `max_per_side` along either side. Boxes that would repeat
    (an image too small for several scales) are listed once.
    """
    low, high = region_height_bounds(image_height, image_width, height, width, min_scale, max_scale)
    boxes = []
    for region_height in np.geomspace(high, low, num_scales):
        rows, columns = _region_size(float(region_height), image_height, image_width, height, width)
        for top in _spread(image_height, rows, max_per_side):
            for left in _spread(image_width, columns, max_per_side):
                boxes.append((left, top, left + columns, top + rows))
    return list(dict.fromkeys(boxes))


@dataclasses.dataclass(frozen=True)
class ResizeShorterSide:
    """The shorter side is brought to `shorter_side` pixels; more, where a height × width crop would not fit."""

    shorter_side: int
    height: int
    width: int

    def size(self, rows: int, columns: int) -> tuple[int, int]:
        """Returns the (height, width) in pixels that an image of rows × columns is brought to."""
        rows, columns = shorter_side_size(rows, columns, self.shorter_side)
        enlarge = max(self.height / rows, self.width / columns)
        if enlarge > 1:
            rows, columns = max(round(rows * enlarge), self.height), max(round(columns * enlarge), self.width)
        return rows, columns


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Cuts height × width pixels at a uniformly drawn place."""

    height: int
    width: int

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        rows, columns = record["image"].shape[:2]
        top = int(rng.integers(0, rows - self.height + 1))
        left = int(rng.integers(0, columns - self.width + 1))
        return {**record, "image": crop(record["image"], (left, top, left + self.width, top + self.height))}


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """Cuts height × width pixels from the middle (rounding towards the top left)."""

    height: int
    width: int

    def __call__(self, record: Record) -> Record:
        rows, columns = record["image"].shape[:2]
        top, left = (rows - self.height) // 2, (columns - self.width) // 2
        return {**record, "image": crop(record["image"], (left, top, left + self.width, top + self.height))}


@dataclasses.dataclass(frozen=True)
class RandomScaleCrop:
    """Cuts a random region of several scales (see `random_region`) and resizes it to height × width pixels."""

    height: int
    width: int
    min_scale: float
    max_scale: float

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        image = record["image"]
        box = random_region(*image.shape[:2], self.height, self.width, self.min_scale, self.max_scale, rng)
        return {**record, "image": resize(crop(image, box), self.height, self.width)}


@dataclasses.dataclass(frozen=True)
class RandomFlip:
    """Mirrors the image left to right with probability one half."""

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if rng.random() < 0.5:
            return {**record, "image": record["image"][:, ::-1]}
        return record
