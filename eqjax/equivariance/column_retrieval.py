"""Retrieval of columns over two views, as a loss: the same surface should have the same latent in both.

A rectified stereo pair is a real horizontal shift, of another true size in every window. Columns of the left view are
queries; among the columns of the right view, the one that shows the same surface should be the most similar.

Letters: Q queries, K candidates, D latent size, M windows, N columns of a window, H height, W width of a window.

Source: Multiview equivariance, arXiv 2411.19458, section 3 (the loss on corresponding points, there of 3-D models);
Smooth-AP, arXiv 2007.12163, section 3.
"""

from collections.abc import Iterator
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, UInt8
import numpy as np

from eqjax import npz
from eqjax.equivariance.stereo import StereoPair, find_windows, load_stereo_pair
from eqjax.rules import Array, Integer, Number, PathName
from eqjax.typing import AnyArray

# Bound of the arrays of a pair.
_MAX_BYTES = 2**30


class StereoWindows(NamedTuple):
    """Corresponding windows of one or more rectified pairs; a pytree.

    Attributes:
      left: windows of left images.
      right: their counterparts in the right images.
      places: pair, first row and first pixel (in the right image) of each.
    """

    left: UInt8[AnyArray, "M H W 3"]
    right: UInt8[AnyArray, "M H W 3"]
    places: Int[AnyArray, "M 3"]


def column_smooth_ap(
    queries: Any, candidates: Any, positives: Any, negatives: Any, temperature: Any = 0.01
) -> Float[jax.Array, ""]:
    """Returns one minus the smoothed average precision with which queries find their positives among candidates.

        AP = mean over positives i of (1 + Σ_{j ∈ P, j ≠ i} G(s_j − s_i)) / (1 + Σ_{j ∈ P ∪ N, j ≠ i} G(s_j − s_i))

    with positives P, negatives N, cosine similarities s, and a smooth step G(d) = 1 / (1 + exp(−d / temperature)).
    Queries without a positive do not count.

    Args:
      queries: [Q, D].
      candidates: [K, D].
      positives: [Q, K], which candidates are right.
      negatives: [Q, K], which are wrong; a candidate that is neither does not count.
      temperature: width of the step, in units of the cosine.

    Returns:
      The loss, in [0, 1]; 0 where no query has a positive.

    Raises:
      TypeError: an argument is of another type.
      ValueError: shapes do not fit, or the temperature is not positive.

    Source: Smooth-AP, arXiv 2007.12163, section 3; for correspondences: arXiv 2411.19458, section 3.

    Example:
      >>> codes = jnp.eye(3)
      >>> same = jnp.eye(3, dtype=bool)
      >>> round(float(column_smooth_ap(codes, codes, same, ~same)), 3)  # Every column finds itself.
      0.0
      >>> round(float(column_smooth_ap(codes, jnp.ones((3, 3)), same, ~same)), 3)  # All look the same.
      0.5
    """
    queries = Array(("queries", "channels")).check("queries", queries)
    candidates = Array(("candidates", queries.shape[1])).check("candidates", candidates)
    shape = (queries.shape[0], candidates.shape[0])
    positives = jnp.asarray(Array(shape, "bool").check("positives", positives))
    negatives = jnp.asarray(Array(shape, "bool").check("negatives", negatives))
    temperature = Number(above=0).check("temperature", temperature)
    similarity = _unit(queries) @ _unit(candidates).T  # [Q, K]
    # steps[q, i, j]: whether candidate j comes before candidate i.
    steps = jax.nn.sigmoid((similarity[:, None] - similarity[:, :, None]) / temperature)
    others = ~jnp.eye(shape[1], dtype=bool)[None]
    right = 1 + jnp.sum(jnp.where(others & positives[:, None], steps, 0), axis=2)
    found = 1 + jnp.sum(jnp.where(others & (positives | negatives)[:, None], steps, 0), axis=2)
    count = jnp.sum(positives, axis=1).astype(jnp.float32)
    precision = jnp.sum(jnp.where(positives, right / found, 0), axis=1) / jnp.maximum(count, 1)
    asked = count > 0
    return jnp.sum(jnp.where(asked, 1 - precision, 0)) / jnp.maximum(jnp.sum(asked).astype(jnp.float32), 1)


def stereo_retrieval_loss(
    left: Any, right: Any, places: Any, stride: Any, height: Any, temperature: Any = 0.01
) -> Float[jax.Array, ""]:
    """Returns the retrieval loss of the columns of corresponding windows.

    A column's positive is the column at its place in the counterpart. Negatives are all columns of right windows that
    show another part of the scene: of another pair, of other rows, or at least a column away.

    Args:
      left: latents of the left windows, [M, N, D].
      right: latents of their counterparts, [M, N, D].
      places: pair, first row and first pixel of each right window, integers [M, 3].
      stride: pixels per column.
      height: height of the windows in pixels.
      temperature: see `column_smooth_ap`.

    Raises:
      TypeError: an argument is of another type.
      ValueError: shapes do not fit.

    Source: Multiview equivariance, arXiv 2411.19458, section 3.

    Example:
      >>> latents = jax.random.normal(jax.random.key(0), (2, 4, 8))
      >>> places = np.array([[0, 0, 0], [0, 64, 0]])  # One window above the other.
      >>> round(float(stereo_retrieval_loss(latents, latents, places, stride=16, height=64)), 3)
      0.0
    """
    left = Array(("windows", "columns", "channels")).check("left", left)
    right = Array(tuple(left.shape)).check("right", right)
    places = jnp.asarray(Array((left.shape[0], 3), "integer").check("places", places))
    stride, height = Integer(least=1).check("stride", stride), Integer(least=1).check("height", height)
    count, columns, channels = left.shape
    starts = (places[:, 2, None] + stride * jnp.arange(columns, dtype=places.dtype)[None]).reshape(-1)  # [M N]
    pair, row = (jnp.repeat(places[:, i], columns) for i in (0, 1))
    apart = pair[:, None] != pair[None]
    apart |= jnp.abs(row[:, None] - row[None]) >= height
    apart |= jnp.abs(starts[:, None] - starts[None]) >= stride
    same = jnp.eye(count * columns, dtype=bool)
    queries, candidates = (jnp.asarray(x).reshape(-1, channels) for x in (left, right))
    return column_smooth_ap(queries, candidates, same, apart & ~same, temperature)


def load_stereo_windows(
    path: Any = None, *, height: Any, stride: Any, columns: Any = 4, tolerance: Any = None
) -> StereoWindows:
    """Cuts all windows of nearly constant disparity from rectified pairs.

    Args:
      path: an .npz file with `left` and `right`, uint8 [H, W, 3], and `disparity`, floats [H, W] (what is at x in the
        left image is at x − disparity in the right one, in pixels; NaN where unknown), or a folder of such files; None:
        the motorcycle of scikit-image.
      height: height of the windows in pixels.
      stride: pixels per column.
      columns: width of the windows in columns.
      tolerance: windows count in which most disparities differ by at most so many pixels; None: an eighth of a column.

    Raises:
      TypeError: an argument is of another type.
      ValueError: a file holds other arrays, or no window has a nearly constant disparity.
      FileNotFoundError: there is no such file, or the folder has none.
      ModuleNotFoundError: scikit-image is not installed.

    Example:
      >>> windows = load_stereo_windows(height=64, stride=16)
      >>> windows.left.shape == windows.right.shape, windows.left.shape[1:]
      (True, (64, 64, 3))
    """
    height, stride = Integer(least=1).check("height", height), Integer(least=1).check("stride", stride)
    width = Integer(least=1).check("columns", columns) * stride
    tolerance = Number(above=0, optional=True).check("tolerance", tolerance) or stride / 8
    parts = []
    for i, pair in enumerate(_pairs(path)):
        tops, lefts, disparities = find_windows(pair.disparity, height, width, stride, tolerance)
        rights = lefts - disparities
        kept = rights + width <= pair.right.shape[1]
        cut = [
            np.stack([image[y : y + height, x : x + width] for y, x in zip(tops[kept], starts[kept], strict=True)])
            for image, starts in ((pair.left, lefts), (pair.right, rights))
        ]
        parts.append((*cut, np.stack([np.full(kept.sum(), i), tops[kept], rights[kept]], axis=1).astype(np.int32)))
    left, right, places = (np.concatenate(part) for part in zip(*parts, strict=True))
    return StereoWindows(left, right, places)


def _pairs(path: Any) -> Iterator[StereoPair]:
    if path is None:
        yield load_stereo_pair()
    else:
        yield from map(_read_pair, _files(path))


def _files(path: Any) -> list[str]:
    path = PathName().check("path", path)
    if not os.path.isdir(path):
        return [path]
    names = sorted(name for name in os.listdir(path) if name.endswith(".npz"))
    if not names:
        raise FileNotFoundError(f"{path} has no .npz files; rectified pairs are files with left, right and disparity.")
    return [os.path.join(path, name) for name in names]


def _read_pair(path: str) -> StereoPair:
    """Reads a pair.

    Raises:
      ValueError: the file holds other arrays.
      FileNotFoundError: there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist; give an .npz file of a rectified pair, or a folder of them.")
    kinds = dict.fromkeys(StereoPair._fields, npz.NUMBERS)
    with npz.open_npz(path, kinds, max_bytes=_MAX_BYTES, what="a rectified pair") as file:
        if missing := [name for name in kinds if name not in file.entries]:
            raise ValueError(f"{path} lacks {', '.join(missing)}; a rectified pair has left, right and disparity.")
        left, right, disparity = (file.read(name) for name in kinds)
    left = Array(("height", "width", 3), "uint8").check(f"left of {path}", left)
    right = Array((left.shape[0], "width", 3), "uint8").check(f"right of {path}", right)
    disparity = Array(tuple(left.shape[:2])).check(f"disparity of {path}", disparity).astype(np.float32)
    return StereoPair(left, right, np.where(np.isfinite(disparity), disparity, np.float32(np.nan)))


def _unit(x: Float[AnyArray, "n D"]) -> Float[jax.Array, "n D"]:
    # The floor is inside of the root, whose gradient at 0 is infinite.
    return jnp.asarray(x) / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=1, keepdims=True), 1e-12))
