"""Statistics of a set of images in files, and metrics between two of them.

Three kinds of npz are read:

    ADM's          mu, sigma, mu_s, sigma_s   (pooled and spatial features; further arrays are ignored)
    plain          mu, sigma
    eqjax's        ADM's arrays, count, protocol (JSON) and optionally features (pooled, for KID, precision
                   and recall)

Arrays are read without pickle, so a file from outside executes nothing.

Letters: N images, D pooled features, S spatial features.
"""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from jaxtyping import Float
import numpy as np

from eqjax import npz
from eqjax.differences import check_equal
from eqjax.evaluation import feature_metrics, fid
from eqjax.messages import shorten

_FORMAT = "eqjax-statistics-1"
# Entries of a protocol that must agree for two sets of statistics to be comparable.
_COMPARED = ("network", "resize", "rounding", "image_size")
# Bound of what a file may ask for: 50 000 images with 2048 features take 0.9 GB.
MAX_BYTES = 2**33
_DIMENSIONS = {"mu": 1, "sigma": 2, "mu_s": 1, "sigma_s": 2, "features": 2, "protocol": 0}


class StatisticsError(ValueError):
    """Statistics that cannot be read or compared; the message names both sides and a remedy."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Moments of a set of images under a feature network.

    Attributes:
      mean: mean of the pooled features, float64.
      covariance: covariance of the pooled features, float64.
      spatial_mean: mean of the spatial features (for sFID), or None.
      spatial_covariance: covariance of the spatial features, or None.
      count: number of images, or None if the file does not record it.
      protocol: how the statistics were computed, as JSON values; {} if the file does not record it.
      features: pooled features of all images, or of a uniform choice among them (the protocol then describes it
        under "features"), or None.
    """

    mean: Float[np.ndarray, "D"]
    covariance: Float[np.ndarray, "D D"]
    spatial_mean: Float[np.ndarray, "S"] | None = None
    spatial_covariance: Float[np.ndarray, "S S"] | None = None
    count: int | None = None
    protocol: dict[str, Any] = dataclasses.field(default_factory=dict)
    features: Float[np.ndarray, "N D"] | None = None


def save(path: str | os.PathLike[str], statistics: Statistics) -> None:
    """Writes statistics as an npz that other tools read too (mu, sigma, mu_s, sigma_s)."""
    header = {"format": _FORMAT, "count": statistics.count, "protocol": statistics.protocol}
    arrays = {"mu": statistics.mean, "sigma": statistics.covariance}
    if statistics.spatial_mean is not None and statistics.spatial_covariance is not None:
        arrays |= {"mu_s": statistics.spatial_mean, "sigma_s": statistics.spatial_covariance}
    if statistics.features is not None:
        arrays["features"] = statistics.features
    npz.write(path, arrays, "protocol", header)


def load(path: str | os.PathLike[str]) -> Statistics:
    """Reads a statistics file of any of the three kinds.

    Raises:
      FileNotFoundError: there is no such file.
      StatisticsError: the file is truncated or damaged (of eqjax's kind, a checksum covers all arrays), lacks arrays,
        holds arrays that do not fit each other or values that are not finite, or would take unbounded memory. Sizes
        are checked before arrays are read.

    Example:
      >>> save("/tmp/statistics.npz", Statistics(np.zeros(2), np.eye(2), count=100))
      >>> load("/tmp/statistics.npz").count
      100
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no statistics file at {path}; `eqjax make-statistics` computes one from images.")
    kinds = {name: npz.TEXT if name == "protocol" else npz.NUMBERS for name in _DIMENSIONS}
    with npz.open_npz(path, kinds, max_bytes=MAX_BYTES, error=StatisticsError) as file:
        names = file.names
        _check_shapes(path, {name: entry.shape for name, entry in file.entries.items()})
        arrays = {name: file.read(name) for name in file.entries}
    if "mu" not in arrays or "sigma" not in arrays:
        hint = " It holds images: compute statistics with `eqjax make-statistics`." if "arr_0" in names else ""
        raise StatisticsError(
            f"{path} holds the arrays {shorten(str(names))}; a statistics file needs mu and sigma.{hint}"
        )
    if ("mu_s" in arrays) != ("sigma_s" in arrays):
        raise StatisticsError(f"{path} holds one of mu_s and sigma_s and not the other; found {shorten(str(names))}.")
    text = arrays.pop("protocol", None)
    header = {} if text is None else _header(path, text, arrays)
    _check_finite(path, arrays)
    arrays = {name: a if name == "features" else a.astype(np.float64) for name, a in arrays.items()}
    return Statistics(
        arrays["mu"],
        arrays["sigma"],
        arrays.get("mu_s"),
        arrays.get("sigma_s"),
        header.get("count"),
        header.get("protocol", {}),
        arrays.get("features"),
    )


def _header(path: str, text: np.ndarray, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns count and protocol from inside a file, compared with the checksum."""
    try:
        header, intact = npz.signed_values(text, arrays)
    except ValueError as error:
        raise StatisticsError(f"the protocol inside {path} is not JSON ({error}).") from error
    if header.get("format") != _FORMAT:
        found = header.get("format")
        raise StatisticsError(f"{path} was written in format {shorten(repr(found))}; this version reads {_FORMAT!r}.")
    count, protocol = header.get("count"), header.get("protocol", {})
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
        raise StatisticsError(f"{path}: count is {shorten(repr(count))}; expected a number of images.")
    if not isinstance(protocol, dict):
        raise StatisticsError(f"{path}: protocol is {shorten(repr(protocol))}; expected its entries by name.")
    if not intact:
        raise StatisticsError(
            f"{path} is damaged: its arrays or its protocol are not those that were written, as their checksum "
            "differs. Copy it again, or recompute it with `eqjax make-statistics`."
        )
    return header


def _check_shapes(path: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if len(shape) != _DIMENSIONS[name]:
            raise StatisticsError(f"{path}: {name} has shape {shorten(str(shape))}; expected {_DIMENSIONS[name]} axes.")
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if mean not in shapes or covariance not in shapes:
            continue
        if shapes[covariance] != 2 * shapes[mean]:
            raise StatisticsError(
                f"{path}: {mean} {shapes[mean]} and {covariance} {shapes[covariance]} do not belong together; expected "
                "[D] and [D, D]."
            )
    if "features" in shapes and shapes["features"][1:] != shapes.get("mu"):
        raise StatisticsError(f"{path}: features {shapes['features']} do not belong to mu {shapes.get('mu')}.")


def _check_finite(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        wrong = array.size - np.count_nonzero(np.isfinite(array))
        if wrong:
            raise StatisticsError(
                f"{path}: {wrong} of {array.size} values of {name} are NaN or infinite; recompute the file with "
                "`eqjax make-statistics`."
            )


def check_comparable(reference: Statistics, protocol: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Checks before any work that statistics can be compared with the features of a network.

    Args:
      reference: statistics to compare with.
      protocol: protocol of the network's features.
      sizes: sizes of the network's features, {"pool": D, "spatial": S}.

    Raises:
      StatisticsError: the feature sizes differ, or the protocol is not the one that the reference records.
    """
    have = {"pool": len(reference.mean)}
    if reference.spatial_mean is not None:
        have["spatial"] = len(reference.spatial_mean)
    for name, size in have.items():
        if size != sizes[name]:
            raise StatisticsError(
                f"the reference statistics are of {size} {name} features, this network gives {sizes[name]}: they "
                "were computed with another network or layer; compute them with `eqjax make-statistics`."
            )
    common = [name for name in _COMPARED if name in reference.protocol and name in protocol]
    check_equal(
        {name: reference.protocol[name] for name in common},
        {name: protocol[name] for name in common},
        "the reference statistics were computed under another protocol, so distances to them would mean nothing. "
        "Recompute them from images treated alike, with `eqjax make-statistics`.",
        found_name="reference",
        expected_name="here",
        error=StatisticsError,
    )


def compare(
    reference: Statistics,
    evaluated: Statistics,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
    num_neighbors: int = 3,
) -> dict[str, float]:
    """Returns all metrics between two sets of images.

    Warns if either side has too few images for a covariance of full rank.

    Args:
      reference: statistics of the reference images.
      evaluated: statistics of the evaluated images.
      num_subsets: number of KID's subsets.
      subset_size: images per subset of KID; lowered to the number of stored features if there are fewer.
      seed: seed of KID's subsets.
      num_neighbors: neighbors of precision and recall.

    Returns:
      "fid"; "sfid" if both sides have spatial features; "kid", "kid_std", "precision" and "recall" and their
      parameters if both sides stored features.

    Raises:
      ValueError: the feature sizes differ.
    """
    for name, side in (("reference", reference), ("evaluated", evaluated)):
        if side.count is not None:
            fid.warn_if_few(side.count, len(side.mean), name)
    result: dict[str, float] = {
        "fid": fid.frechet_distance(reference.mean, reference.covariance, evaluated.mean, evaluated.covariance)
    }
    spatial = reference.spatial_mean, reference.spatial_covariance, evaluated.spatial_mean, evaluated.spatial_covariance
    spatial = [array for array in spatial if array is not None]
    if len(spatial) == 4:
        result["sfid"] = fid.frechet_distance(*spatial)
    ours, theirs = evaluated.features, reference.features
    if ours is not None and theirs is not None and min(len(ours), len(theirs)) > num_neighbors:
        size = min(subset_size, len(ours), len(theirs))
        mean, deviation = feature_metrics.kid(ours, theirs, num_subsets=num_subsets, subset_size=size, seed=seed)
        precision, recall = feature_metrics.precision_recall(theirs, ours, num_neighbors=num_neighbors)
        result |= {"kid": mean, "kid_std": deviation, "kid_subset_size": size, "kid_subsets": num_subsets}
        result |= {"precision": precision, "recall": recall, "precision_recall_k": num_neighbors}
    return result
