"""Seams: how rough images are at the borders and at the middles of columns, compared with the pixels elsewhere.

Letters: N images, H height, W width, C channels.
"""

import dataclasses
from typing import Any

from jaxtyping import Float, Shaped
import numpy as np

from eqjax.typing import AnyArray


@dataclasses.dataclass(frozen=True)
class BorderRoughness:
    """Differences between horizontal neighbors by their place in a column; 1 everywhere: columns cannot be seen.

    Attributes:
      border: mean absolute difference of the two pixels at a border between columns, over that elsewhere.
      middle: the same of the two pixels at the middle of a column.
      profile: the same for every place in a column: entry x is the difference of pixels x - 1 and x, counted from the
        column's left border, so entry 0 is `border`. "Elsewhere" is all entries but border and middle.
    """

    border: float
    middle: float
    profile: Float[np.ndarray, "column_width"]


# `images` is not annotated more narrowly, as what is wrong with it is said below.
def border_roughness(images: Any, column_width: int) -> BorderRoughness:
    """Measures whether images show the borders or the middles of their columns, as seams or streaks.

    Real images cropped anywhere give 1 up to chance, as nothing in them knows where columns are. A decoder whose
    columns do not meet gives more at borders; one that repeats a pattern per column gives more somewhere inside.

    Args:
      images: array [N, H, W, C] of any range, cut into columns from their left edge; W of at least two columns.
      column_width: width of a column in pixels, at least 3.

    Returns:
      Ratios, over all images together; NaN if the images are flat.

    Raises:
      ValueError: columns are narrower than 3 pixels, so that no pixels are elsewhere; the images are narrower than
        two columns, or not of four dimensions.

    Example:
      >>> row = np.arange(12.0) + 2 * (np.arange(12) // 4)  # Rises by 1 per pixel, and by 3 between columns of 4.
      >>> border_roughness(row[None, None, :, None], column_width=4).border
      3.0
    """
    images = np.asarray(images)
    if column_width < 3:
        raise ValueError(
            f"column_width={column_width}: columns need at least 3 pixels for some to be neither border nor middle."
        )
    if images.ndim != 4 or images.shape[2] < 2 * column_width or not images.size:
        raise ValueError(
            f"roughness needs images [N, H, W, C] of at least two columns, {2 * column_width} pixels wide; these are "
            f"{list(images.shape)}."
        )
    differences = neighbor_differences(images)
    places = np.arange(1, images.shape[2]) % column_width
    profile = np.bincount(places, differences, column_width) / np.bincount(places, minlength=column_width)
    middle = column_width // 2
    elsewhere = np.delete(profile, [0, middle]).mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        profile = np.where(elsewhere > 0, profile / elsewhere, np.nan)
    return BorderRoughness(float(profile[0]), float(profile[middle]), profile)


def neighbor_differences(images: Shaped[AnyArray, "N H W C"]) -> Float[np.ndarray, "W-1"]:
    """Returns the mean absolute difference of pixels x and x + 1, for every x.

    Example:
      >>> neighbor_differences(np.array([0, 3, 4], np.uint8)[None, None, :, None]).tolist()
      [3.0, 1.0]
    """
    images = np.asarray(images)
    # Image by image, since a float64 copy of many takes memory.
    rows = (np.abs(np.diff(image.astype(np.float64), axis=1)).mean((0, 2)) for image in images)
    return sum(rows, start=np.zeros(images.shape[2] - 1)) / len(images)
