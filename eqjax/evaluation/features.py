"""Features of images under a frozen network, and everything that is computed from them, in one pass.

Images stream through in batches. What stays in memory are sums (float64): for Inception's 2048 pooled
and 2023 spatial features 66 MB, however many images there are. Features that KID, precision and recall
compare pair by pair go to a file that is mapped, not loaded.
"""

from collections.abc import Callable
import dataclasses
import os
import tempfile
from typing import Any

import jax
import numpy as np

from eqjax import sharding
from eqjax.evaluation import feature_metrics, fid, statistics
from eqjax.evaluation.parallel import BatchedShardMap, ProgressLogger

SPLITS = 10
KEEP_SEED = 2020


@dataclasses.dataclass(frozen=True)
class Network:
    """A frozen network whose features images are compared by.

    Attributes:
      apply: traced; (params, uint8 [B, H, W, 3]) → {"pool": [B, D], "logits": [B, C], "spatial": [B, S]}.
      params: its parameters.
      protocol: what it does to images, JSON values: "network", "resize", …
    """

    apply: Callable
    params: Any
    protocol: dict

    def sizes(self, image_size):
        """{"pool": D, "logits": C, "spatial": S} for images of (height, width), at no cost."""
        images = jax.ShapeDtypeStruct((1, *image_size, 3), np.uint8)
        return {name: out.shape[1] for name, out in jax.eval_shape(self.apply, self.params, images).items()}

    def protocol_for(self, image_size):
        """The protocol under which images of (height, width) are compared."""
        return {**self.protocol, "rounding": "8 bit", "image_size": list(image_size)}


@dataclasses.dataclass(frozen=True)
class Features:
    """What one pass over images gives.

    Attributes:
      statistics: `statistics.Statistics`, with pooled features where they were kept.
      scores: {"inception_score", "inception_score_std" (shuffled), "inception_score_file_order", …}; empty
        where there are too few images.
      seconds: of the pass.
    """

    statistics: statistics.Statistics
    scores: dict
    seconds: float


class Extractor:
    """Passes over images under one network, compiled once per image size.

    Args of the constructor: network, a `Network`; mesh; rows_per_device, images per device at a time.
    """

    def __init__(self, network, mesh=None, rows_per_device=32):
        self.network = network
        self._map = BatchedShardMap(network.apply, network.params, mesh or sharding.make_mesh(), rows_per_device)

    @property
    def batch_size(self):
        """Images that all devices take together."""
        return self._map.batch_size

    def __call__(self, images):
        """{name: numpy [n, size]} of uint8 images [n ≤ batch_size, H, W, 3]."""
        return self._map(images)

    def collect(self, batches, num_images, *, keep=0, folder=None, what="features of images"):
        """Runs over images once.

        Args:
          batches: yields uint8 [n, H, W, 3] in file order; n of any size.
          num_images: how many they are in all.
          keep: pooled features of so many images are kept; of which, says `stored_images`.
          folder: for the file of kept features, which is removed when nothing refers to it any more; None:
            the system's temporary folder.
          what: for the log.

        Returns:
          `Features`.

        Raises:
          ValueError: images that are not uint8, of mixed sizes, or another number of them.
        """
        pass_ = _Pass(self.network, num_images, keep, folder)
        countdown = ProgressLogger(what, num_images)
        for images in _rebatch(batches, self.batch_size):
            pass_.update(images.shape[1:3], self(images))
            countdown.update(len(images))
        return pass_.result(countdown.seconds)


def stored_images(num_images, keep):
    """Numbers of the images whose pooled features are kept, ascending: all, or `keep` of them, uniformly.

    Files are sorted by class, so that the first ones would be of a few classes only. The choice follows from the
    two numbers alone.
    """
    if keep >= num_images:
        return np.arange(num_images)
    return np.sort(np.random.RandomState(KEEP_SEED).permutation(num_images)[:keep])


class _Pass:
    """The sums of one pass."""

    def __init__(self, network, num_images, keep, folder):
        self._network, self._expected, self._seen = network, num_images, 0
        self._which, self._folder, self._kept = stored_images(num_images, keep), folder, None
        self._pool = self._spatial = self._size = None
        enough = num_images >= SPLITS
        self._scores = {
            "": feature_metrics.InceptionScore(num_images, SPLITS) if enough else None,
            "_file_order": feature_metrics.InceptionScore(num_images, SPLITS, shuffle_seed=None) if enough else None,
        }

    def update(self, size, features):
        if self._pool is None:
            self._size = size
            self._pool = fid.Moments(features["pool"].shape[1])
            self._spatial = fid.Moments(features["spatial"].shape[1])
            shape = len(self._which), features["pool"].shape[1]
            self._kept = _mapped(shape, self._folder) if len(self._which) else None
        self._pool.update(features["pool"])
        self._spatial.update(features["spatial"])
        for score in filter(None, self._scores.values()):
            score.update(features["logits"])
        if self._kept is not None:
            first, last = np.searchsorted(self._which, [self._seen, self._seen + len(features["pool"])])
            self._kept[first:last] = features["pool"][self._which[first:last] - self._seen]
        self._seen += len(features["pool"])

    def result(self, seconds):
        if self._seen != self._expected:
            raise ValueError(f"{self._seen} images arrived, {self._expected} were expected.")
        protocol = self._network.protocol_for(self._size)
        if 0 < len(self._which) < self._expected:
            protocol["features"] = f"of {len(self._which)} images, uniformly by RandomState({KEEP_SEED})"
        found = statistics.Statistics(*self._pool.result(), *self._spatial.result(), self._seen, protocol, self._kept)
        scores = {}
        for suffix, score in self._scores.items():
            if score is not None:
                mean, deviation = score.result()
                scores |= {f"inception_score{suffix}": mean, f"inception_score{suffix}_std": deviation}
        return Features(found, scores, seconds)


def _mapped(shape, folder):
    """A float32 array in a file without a name, so that it goes when the last reference does."""
    if folder:
        os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.float32, "w+", shape=shape)


def _rebatch(batches, size):
    """Cuts and joins batches into ones of `size` (the last smaller), checking what they hold."""
    waiting, shape = [], None
    for batch in batches:
        check_images(batch)
        shape = shape or batch.shape[1:]
        if batch.shape[1:] != shape:
            raise ValueError(
                f"images of mixed sizes: {shape[0]} × {shape[1]} first, then {batch.shape[1]} × {batch.shape[2]}; "
                "resize them alike."
            )
        waiting.append(batch)
        while sum(map(len, waiting)) >= size:
            joined = np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
            yield joined[:size]
            waiting = [joined[size:]]
    rest = [batch for batch in waiting if len(batch)]
    if rest:
        yield np.concatenate(rest)


def check_images(images):
    """Checks that images are uint8 [N, H, W, 3].

    Raises:
      ValueError: they are not; NaNs are named first, as they would become arbitrary colors.
    """
    if np.issubdtype(images.dtype, np.floating):
        wrong = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))
        if len(wrong):
            raise ValueError(f"images {wrong[:10].tolist()} of a batch of {len(images)} hold NaN or infinite values.")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"images are {images.dtype} {images.shape}; metrics take uint8 [N, H, W, 3]. Round images in [-1, 1] "
            "with eqjax.pixels.to_uint8 (truncation would change the metrics)."
        )


def compare(reference, found, *, subsets=100, subset_size=1000, seed=2020, k=3):
    """All metrics of evaluated images against a reference.

    Args:
      reference: `statistics.Statistics`.
      found: `Features` of the evaluated images.
      subsets, subset_size, seed: of KID; subset_size is lowered to the number of images if there are fewer.
      k: neighbors of precision and recall.

    Returns:
      {"fid", "sfid", "inception_score", …}; "kid", "precision" and "recall" where both sides kept features.
    """
    result = {**statistics.compare(reference, found.statistics), **found.scores}
    ours, theirs = found.statistics.features, reference.features
    if ours is not None and theirs is not None and min(len(ours), len(theirs)) > k:
        size = min(subset_size, len(ours), len(theirs))
        mean, deviation = feature_metrics.kid(ours, theirs, subsets=subsets, subset_size=size, seed=seed)
        precision, recall = feature_metrics.precision_recall(theirs, ours, k=k)
        result |= {"kid": mean, "kid_std": deviation, "kid_subset_size": size, "kid_subsets": subsets}
        result |= {"precision": precision, "recall": recall, "precision_recall_k": k}
    return result
