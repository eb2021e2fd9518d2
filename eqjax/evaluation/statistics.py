"""Statistics of a set of images, in files: what a reference is compared by, without its images.

Three kinds of npz are read:

    ADM's          mu, sigma, mu_s, sigma_s   (pooled and spatial; further arrays are left alone)
    plain          mu, sigma
    eqjax's        ADM's, and count, protocol (JSON) and, where wanted, features (pooled, for KID,
                   precision and recall)

Arrays are read without pickle, so that a file from outside executes nothing.
"""

import dataclasses
import json
import os
import zipfile
import zlib

from absl import logging
import numpy as np

from eqjax.evaluation import fid
from eqjax.io import atomic_write

_FORMAT = "eqjax-statistics-1"
# Of a protocol: what must agree for two sets of statistics to be comparable.
COMPARED = ("network", "resize", "rounding", "image_size")
# What reading an npz raises that is truncated, has a damaged byte, or is none.
NPZ_ERRORS = (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


class StatisticsError(ValueError):
    """Statistics that are not what they should be; the message says both sides and what to do."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Moments of a set of images under a feature network.

    Attributes:
      mean, covariance: of pooled features, float64 [D] and [D, D].
      spatial_mean, spatial_covariance: of spatial features (sFID), or None.
      count: images behind them, or None where the file does not say.
      protocol: how they were made, JSON values; {} where the file does not say.
      features: pooled features, float32 [count, D], or of a uniform choice among the images (which the protocol
        then states under "features"), or None.
    """

    mean: np.ndarray
    covariance: np.ndarray
    spatial_mean: np.ndarray | None = None
    spatial_covariance: np.ndarray | None = None
    count: int | None = None
    protocol: dict = dataclasses.field(default_factory=dict)
    features: np.ndarray | None = None


def save(path, statistics):
    """Writes statistics as an npz that other tools read too (mu, sigma, mu_s, sigma_s), whole or not at all."""
    arrays = {"mu": statistics.mean, "sigma": statistics.covariance}
    if statistics.spatial_mean is not None:
        arrays |= {"mu_s": statistics.spatial_mean, "sigma_s": statistics.spatial_covariance}
    if statistics.features is not None:
        arrays["features"] = statistics.features
    header = {"format": _FORMAT, "count": statistics.count, "protocol": statistics.protocol}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, protocol=json.dumps(header), **arrays)


def load(path):
    """Reads a statistics file of any of the three kinds.

    Raises:
      FileNotFoundError: there is no such file.
      StatisticsError: truncated or damaged, without the expected arrays, arrays that do not fit each other, or
        values that are not finite.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no statistics file at {path}; eqjax.cli.make_statistics computes one from images.")
    wanted = ("mu", "sigma", "mu_s", "sigma_s", "features", "protocol")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            arrays = {name: file[name] for name in wanted if name in names}
    except (*NPZ_ERRORS, AttributeError) as error:
        raise StatisticsError(
            f"{path} cannot be read as npz ({error}): truncated, damaged, or of another kind."
        ) from error
    if "mu" not in arrays or "sigma" not in arrays:
        hint = " It holds images: compute statistics with eqjax.cli.make_statistics." if "arr_0" in names else ""
        raise StatisticsError(f"{path} holds the arrays {names}; a statistics file needs mu and sigma.{hint}")
    if ("mu_s" in arrays) != ("sigma_s" in arrays):
        raise StatisticsError(f"{path} holds one of mu_s and sigma_s and not the other; found {names}.")
    header = _header(path, arrays.pop("protocol", None))
    _check_shapes(path, arrays)
    _check_finite(path, arrays)
    arrays = {name: a if name == "features" else a.astype(np.float64) for name, a in arrays.items()}
    if _of_first_images(header, arrays):
        logging.warning(
            "%s keeps the features of the first %d of its %d images, which are of few classes where files are sorted: "
            "they are left out, and with them KID, precision and recall. FID is right. Files that "
            "eqjax.cli.make_statistics writes now keep a uniform choice.",
            path,
            len(arrays.pop("features")),
            header["count"],
        )
    return Statistics(
        arrays["mu"],
        arrays["sigma"],
        arrays.get("mu_s"),
        arrays.get("sigma_s"),
        header.get("count"),
        header.get("protocol", {}),
        arrays.get("features"),
    )


def _header(path, text):
    if text is None:
        return {}
    try:
        header = json.loads(str(text))
    except ValueError as error:
        raise StatisticsError(f"the protocol inside {path} is not JSON ({error}).") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise StatisticsError(f"{path} was written in format {found!r}; this version reads {_FORMAT!r}.")
    return header


def _check_shapes(path, arrays):
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if mean not in arrays:
            continue
        shapes = arrays[mean].shape, arrays[covariance].shape
        if len(shapes[0]) != 1 or shapes[1] != 2 * shapes[0]:
            raise StatisticsError(
                f"{path}: {mean} {shapes[0]} and {covariance} {shapes[1]} do not belong together; expected [D] and "
                "[D, D]."
            )
    if "features" in arrays and arrays["features"].shape[1:] != arrays["mu"].shape:
        raise StatisticsError(f"{path}: features {arrays['features'].shape} do not belong to mu {arrays['mu'].shape}.")


def _check_finite(path, arrays):
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise StatisticsError(f"{path}: {name} is {array.dtype}; numbers are expected.")
        wrong = array.size - np.count_nonzero(np.isfinite(array))
        if wrong:
            raise StatisticsError(
                f"{path}: {wrong} of {array.size} values of {name} are NaN or infinite; make the file anew with "
                "eqjax.cli.make_statistics."
            )


def _of_first_images(header, arrays):
    """Whether a file keeps features as they were first kept: those of the first images, in file order."""
    kept, count = len(arrays.get("features", ())), header.get("count")
    return count is not None and 0 < kept < count and "features" not in header.get("protocol", {})


def check_comparable(reference, protocol, sizes):
    """Checks that statistics can be compared with what a network will compute, before it does.

    Args:
      reference: a `Statistics`.
      protocol: the other side's protocol.
      sizes: {"pool": D, "spatial": S} of the other side's features.

    Raises:
      StatisticsError: another feature size, or another protocol where the reference states one.
    """
    have = {"pool": len(reference.mean)}
    if reference.spatial_mean is not None:
        have["spatial"] = len(reference.spatial_mean)
    for name, size in have.items():
        if size != sizes[name]:
            raise StatisticsError(
                f"the reference statistics are of {size} {name} features, this network gives {sizes[name]}: they "
                "were made with another network or layer; make them with eqjax.cli.make_statistics."
            )
    differences = [
        f"  {key}: reference {reference.protocol[key]!r}, here {protocol[key]!r}"
        for key in COMPARED
        if key in reference.protocol and key in protocol and reference.protocol[key] != protocol[key]
    ]
    if differences:
        raise StatisticsError(
            "the reference statistics were made under another protocol; distances to them would mean nothing. Make "
            "them anew from images treated alike, with eqjax.cli.make_statistics.\n" + "\n".join(differences)
        )


def compare(reference, statistics):
    """FID, and sFID where both sides have spatial features: {"fid": …, "sfid": …}.

    Warns where either side has too few images for a covariance of full rank.
    """
    for name, one in (("reference", reference), ("evaluated", statistics)):
        if one.count is not None:
            fid.warn_if_few(one.count, len(one.mean), name)
    result = {"fid": fid.frechet_distance(reference.mean, reference.covariance, statistics.mean, statistics.covariance)}
    if reference.spatial_mean is not None and statistics.spatial_mean is not None:
        result["sfid"] = fid.frechet_distance(
            reference.spatial_mean,
            reference.spatial_covariance,
            statistics.spatial_mean,
            statistics.spatial_covariance,
        )
    return result
