"""Stereo: a rectified pair of photographs is a real horizontal shift, of a true size that varies over the image.

Where the disparity is nearly constant, the same surface is seen in the left image at x and in the right one at x − d.
The latents of the two windows should agree (aligned), more than those of windows at the same place (unaligned), and
than those of other windows along the row (retrieval).

Letters: H height, W width in pixels, M windows.

Source: features of corresponding points in several views: arXiv 2411.19458, section 3; the pair: D. Scharstein et al.,
High-resolution stereo datasets with subpixel-accurate ground truth, GCPR 2014, as scikit-image ships it.
"""

import dataclasses
import os
from typing import Any, NamedTuple

from jaxtyping import Float, Int, UInt8
import numpy as np

from eqjax import image_files, pixels
from eqjax.data.photos import package_folder
from eqjax.equivariance.geometry import Codec
from eqjax.equivariance.orbits import decode, encode
from eqjax.evaluation.image_metrics import psnr
from eqjax.nets.resize import resize
from eqjax.rules import Array, Instance, Integer, Number

# Windows along the row among which the right one is searched, to either side of it.
_OTHERS = 4
# Part of a window's pixels that must have a disparity, and have nearly the same.
_AGREEING = 0.8


class StereoPair(NamedTuple):
    """A rectified pair.

    Attributes:
      left: left image.
      right: right image.
      disparity: what is at x in the left image is at x − disparity in the right one, in pixels; NaN where unknown.
    """

    left: UInt8[np.ndarray, "H W 3"]
    right: UInt8[np.ndarray, "H W 3"]
    disparity: Float[np.ndarray, "H W"]


@dataclasses.dataclass(frozen=True)
class StereoReport:
    """How well latents of corresponding windows agree.

    Attributes:
      tops: first row of each window.
      lefts: first pixel of each window in the left image.
      disparities: disparity of each window, whole pixels.
      aligned: relative error ‖E(left) − E(right)‖ / ‖E(left)‖ of each window and its counterpart.
      unaligned: the same of the window at the same place.
      precision: average precision of finding the counterpart among windows along the row, half a column apart: the
        mean of 1 / its rank.
      chance: the precision of a random order.
      psnr: PSNR of reconstructions of the left windows, dB.
    """

    tops: Int[np.ndarray, "M"]
    lefts: Int[np.ndarray, "M"]
    disparities: Int[np.ndarray, "M"]
    aligned: Float[np.ndarray, "M"]
    unaligned: Float[np.ndarray, "M"]
    precision: float
    chance: float
    psnr: float


def load_stereo_pair(reduction: Any = 1) -> StereoPair:
    """Returns the rectified pair that scikit-image ships, a motorcycle: 500 × 741 pixels, disparities of 7 to 60.

    Args:
      reduction: factor by which images and disparities become smaller.

    Raises:
      ModuleNotFoundError: scikit-image is not installed.
      FileNotFoundError: it is installed without the pair.

    Example:
      >>> load_stereo_pair(2).left.shape
      (250, 370, 3)
    """
    reduction = Integer(least=1).check("reduction", reduction)
    folder = os.path.join(package_folder("skimage"), "data")
    left, right = (image_files.read(os.path.join(folder, f"motorcycle_{side}.png")) for side in ("left", "right"))
    with np.load(os.path.join(folder, "motorcycle_disp.npz")) as file:
        (disparity,) = (np.asarray(file[name], np.float32) for name in file.files)
    disparity = np.where(np.isfinite(disparity), disparity, np.nan)
    if reduction == 1:
        return StereoPair(left, right, disparity)
    size = left.shape[0] // reduction, left.shape[1] // reduction
    rows, columns = size[0] * reduction, size[1] * reduction
    small = [
        np.asarray(pixels.to_uint8(np.asarray(resize(pixels.from_uint8(x[None, :rows, :columns]), size, "area"))))[0]
        for x in (left, right)
    ]
    middle = reduction // 2
    return StereoPair(small[0], small[1], disparity[middle:rows:reduction, middle:columns:reduction] / reduction)


def stereo_report(
    codec: Any, pair: Any, *, height: Any = None, columns: Any = 4, tolerance: Any = None
) -> StereoReport:
    """Measures how well latents of corresponding windows of a rectified pair agree.

    Args:
      codec: a `Codec`.
      pair: a `StereoPair`, such as `load_stereo_pair(2)`.
      height: height of the windows in pixels; None: that of the codec's geometry.
      columns: width of the windows in columns; the outer ones do not count where there are 3 or more.
      tolerance: windows count in which most disparities differ by at most so many pixels; None: an eighth of a column.

    Raises:
      TypeError: an argument is of another type.
      ValueError: no height is known, or no window has a nearly constant disparity.

    Source: arXiv 2411.19458, section 3 (whose points have true correspondences from 3-D models).

    Example:
      >>> from eqjax.equivariance import model_codec
      >>> codec = model_codec(eqjax.load_pretrained("photos"))  # doctest: +SKIP
      >>> report = stereo_report(codec, load_stereo_pair(2))  # doctest: +SKIP
      >>> report.aligned.mean() / report.unaligned.mean()  # doctest: +SKIP
      0.37
    """
    Instance(Codec, "a Codec").check("codec", codec)
    Instance(StereoPair, "a StereoPair, such as load_stereo_pair returns").check("pair", pair)
    stride = codec.geometry.stride
    if height is None and codec.geometry.height is None:
        raise ValueError("neither the geometry nor the argument height says how high windows are; give height.")
    height = Integer(least=1, optional=True).check("height", height) or codec.geometry.height
    width = Integer(least=1).check("columns", columns) * stride
    tolerance = Number(above=0, optional=True).check("tolerance", tolerance) or stride / 8
    for name in ("left", "right"):
        Array(("height", "width", 3), "uint8").check(f"pair.{name}", getattr(pair, name))
    tops, lefts, disparities = find_windows(pair.disparity, height, width, stride, tolerance)
    offsets = np.arange(-_OTHERS, _OTHERS + 1) * max(stride // 2, 1)

    def cut(image: np.ndarray, starts: np.ndarray) -> np.ndarray:
        rows = [image[y : y + height, x : x + width] for y, x in zip(tops, starts, strict=True)]
        return np.asarray(pixels.from_uint8(np.stack(rows)))

    images = cut(pair.left, lefts)
    latents = encode(codec, images)
    inner = slice(1, -1) if columns >= 3 else slice(None)
    reference = np.asarray(latents, np.float64)[:, inner]

    def errors(starts: np.ndarray) -> np.ndarray:
        found = np.asarray(encode(codec, cut(pair.right, starts)), np.float64)[:, inner]
        return np.sqrt(np.square(found - reference).sum((1, 2)) / np.square(reference).sum((1, 2)))

    last = pair.right.shape[1] - width
    distances = []
    for offset in offsets:
        starts = lefts - disparities + offset
        inside = (starts >= 0) & (starts <= last)
        distances.append(np.where(inside, errors(np.clip(starts, 0, last)), np.nan))
    table = np.stack(distances)  # [offsets, M]
    aligned, candidates = table[_OTHERS], np.isfinite(table).sum(0)
    ranks = 1 + (table < aligned).sum(0)
    return StereoReport(
        tops,
        lefts,
        disparities,
        aligned,
        errors(lefts),
        float((1 / ranks).mean()),
        float(np.mean([(1 / np.arange(1, n + 1)).mean() for n in candidates])),
        float(np.mean(psnr(images, decode(codec, latents)))),
    )


def find_windows(
    disparity: Float[np.ndarray, "H W"], height: int, width: int, stride: int, tolerance: float
) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "M"], Int[np.ndarray, "M"]]:
    """Returns first row, first pixel and disparity of all windows of nearly constant disparity, on a grid.

    Args:
      disparity: disparities in pixels; NaN where unknown.
      height: height of the windows.
      width: width of the windows.
      stride: distance of windows along the row; down the image it is half a height.
      tolerance: largest difference from the median of most pixels.

    Raises:
      ValueError: there is none.
    """
    found = []
    for top in range(0, disparity.shape[0] - height + 1, max(height // 2, 1)):
        for left in range(0, disparity.shape[1] - width + 1, stride):
            part = disparity[top : top + height, left : left + width]
            known = part[np.isfinite(part)]
            if len(known) < _AGREEING * part.size:
                continue
            middle = float(np.median(known))
            if np.mean(np.abs(known - middle) <= tolerance) >= _AGREEING and left - round(middle) >= 0:
                found.append((top, left, round(middle)))
    if not found:
        raise ValueError(
            f"no window of {height} × {width} pixels has a disparity that is constant to {tolerance:g} pixels; give a "
            "larger tolerance, fewer columns, or a pair at another reduction."
        )
    tops, lefts, disparities = np.array(found).T
    return tops, lefts, disparities
