"""Crops, resizes and flips of uint8 images, as functions and as Grain transforms.

Functions take and return numpy arrays [H, W, 3] uint8. A box is (left, top, right, bottom) in pixels of its image,
right and bottom exclusive. The transforms act on records {"image": uint8 [H, W, 3], "label": int} and are picklable, so
that Grain can send them to worker processes.

Every resize is Pillow's BILINEAR, which widens its filter when it shrinks an image (antialiasing). A region is cut out
before it is resized, so the result never depends on pixels outside its box.
"""

import dataclasses
import math
from typing import TypeAlias

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from eqjax.typing import Record

Box: TypeAlias = tuple[int, int, int, int]

# Largest enlargement of a region, unless the whole image is too small: larger ones make crops visibly blurred.
MAX_UPSAMPLING = 1.3


def resize(image: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Returns an image resized to height × width pixels, bilinear and antialiased."""
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def crop(image: UInt8[np.ndarray, "H W 3"], box: Box) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the part of an image inside a box, as a view."""
    left, top, right, bottom = box
    return image[top:bottom, left:right]


def shorter_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns the (height, width) of an image after its shorter side is resized to `size` and its aspect is kept.

    The longer side is truncated to an integer, as in torchvision's Resize, so that crops contain the same pixels.

    Example:
      >>> shorter_side_size(375, 500, 256)
      (256, 341)
    """
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def region_height_bounds(
    image_height: int, image_width: int, height: int, width: int, min_scale: float, max_scale: float
) -> tuple[float, float]:
    """Returns the smallest and largest height, in pixels, of a region to be cut out and resized to height × width.

    Args:
      image_height: height of the image in pixels.
      image_width: width of the image in pixels.
      height: height of the result in pixels; with `width` it gives the aspect of the region.
      width: width of the result in pixels.
      min_scale: smallest region, as a fraction in (0, 1] of the largest region of that aspect that fits in the image.
      max_scale: largest region, as such a fraction.

    Returns:
      (low, high), 0 < low <= high <= image_height. They leave out regions that would be enlarged more than
      MAX_UPSAMPLING times, unless the image is too small to contain a larger one.

    Example:
      >>> region_height_bounds(400, 600, 64, 64, 0.25, 1.0)
      (100.0, 400.0)
    """
    largest = min(image_height, image_width * height / width)
    sharp = min(largest, height / MAX_UPSAMPLING)
    return max(min_scale * largest, sharp), max(max_scale * largest, sharp)


def _region_size(region_height: float, image_height: int, image_width: int, height: int, width: int) -> tuple[int, int]:
    """Returns (height, width) of a region of aspect width / height, rounded to whole pixels inside the image."""
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
    """Draws a region of aspect width / height, its size log-uniform between the bounds, its position uniform.

    Log-uniform sizes give every octave of scale the same fraction of crops; uniform sizes would mostly be large.

    Args:
      image_height: height of the image in pixels.
      image_width: width of the image in pixels.
      height: height of the result in pixels; with `width` it gives the aspect of the region.
      width: width of the result in pixels.
      min_scale: smallest region, as in `region_height_bounds`.
      max_scale: largest region, as in `region_height_bounds`.
      rng: generator of the two draws.
    """
    low, high = region_height_bounds(image_height, image_width, height, width, min_scale, max_scale)
    drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
    region_height, region_width = _region_size(drawn, image_height, image_width, height, width)
    top = int(rng.integers(0, image_height - region_height + 1))
    left = int(rng.integers(0, image_width - region_width + 1))
    return left, top, left + region_width, top + region_height


def _spread(length: int, size: int, limit: int) -> list[int]:
    """Returns up to `limit` starts of disjoint intervals of `size` pixels, spread evenly over `length`."""
    count = min(length // size, limit)
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
    overlap and are spread evenly over the image. An image too small for several scales would repeat boxes; each is
    listed once.

    Args:
      image_height: height of the image in pixels.
      image_width: width of the image in pixels.
      height: height of the result in pixels; with `width` it gives the aspect of the regions.
      width: width of the result in pixels.
      min_scale: smallest region, as in `region_height_bounds`.
      max_scale: largest region, as in `region_height_bounds`.
      num_scales: number of scales.
      max_per_side: largest number of regions of one scale along either side of the image.
    """
    low, high = region_height_bounds(image_height, image_width, height, width, min_scale, max_scale)
    boxes: list[Box] = []
    for scale in np.geomspace(high, low, num_scales):
        region_height, region_width = _region_size(float(scale), image_height, image_width, height, width)
        for top in _spread(image_height, region_height, max_per_side):
            for left in _spread(image_width, region_width, max_per_side):
                boxes.append((left, top, left + region_width, top + region_height))
    return list(dict.fromkeys(boxes))


@dataclasses.dataclass(frozen=True)
class ResizeShorterSide:
    """The size of images after a resize: `shorter_side`, or more if a height × width crop would not fit.

    Attributes:
      shorter_side: shorter side of the result in pixels.
      height: height of the crop in pixels.
      width: width of the crop in pixels.
    """

    shorter_side: int
    height: int
    width: int

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the (height, width) that an image of height × width pixels is resized to."""
        height, width = shorter_side_size(height, width, self.shorter_side)
        enlargement = max(self.height / height, self.width / width)
        if enlargement > 1:
            height, width = max(round(height * enlargement), self.height), max(round(width * enlargement), self.width)
        return height, width


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Cuts out height × width pixels at a uniformly drawn position."""

    height: int
    width: int

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        height, width = record["image"].shape[:2]
        top = int(rng.integers(0, height - self.height + 1))
        left = int(rng.integers(0, width - self.width + 1))
        return {**record, "image": crop(record["image"], (left, top, left + self.width, top + self.height))}


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """Cuts out height × width pixels in the middle, rounded toward the top left."""

    height: int
    width: int

    def __call__(self, record: Record) -> Record:
        height, width = record["image"].shape[:2]
        top, left = (height - self.height) // 2, (width - self.width) // 2
        return {**record, "image": crop(record["image"], (left, top, left + self.width, top + self.height))}


@dataclasses.dataclass(frozen=True)
class RandomScaleCrop:
    """Cuts out a random region (see `random_region`) and resizes it to height × width pixels."""

    height: int
    width: int
    min_scale: float
    max_scale: float

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        image = record["image"]
        image_height, image_width = image.shape[:2]
        box = random_region(image_height, image_width, self.height, self.width, self.min_scale, self.max_scale, rng)
        return {**record, "image": resize(crop(image, box), self.height, self.width)}


@dataclasses.dataclass(frozen=True)
class RandomFlip:
    """Mirrors the image left to right with probability one half."""

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if rng.random() < 0.5:
            return {**record, "image": record["image"][:, ::-1]}
        return record
