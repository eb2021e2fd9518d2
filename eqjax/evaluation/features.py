"""Features of images under a frozen network, and everything computed from them, in one pass.

Images stream through in batches. Memory holds sums (float64): for Inception's 2048 pooled and 2023 spatial
features 66 MB, whatever the number of images. Features that KID, precision and recall compare pair by pair
are stored in a memory-mapped file.

Letters: N images, B batch, H height, W width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import os
import tempfile
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8
import numpy as np

from eqjax import sharding
from eqjax.addresses import local_path
from eqjax.evaluation import batch_size, feature_metrics, fid
from eqjax.evaluation.parallel import BatchedShardMap
from eqjax.evaluation.statistics import Statistics
from eqjax.progress import ProgressLogger
from eqjax.typing import AnyArray, Params

_NUM_SPLITS = 10
_CHOICE_SEED = 2020
# Inception takes this for an image: its widest array has 147 × 147 × 64 float32 values, and four of them live at once.
_IMAGE_BYTES = 4 * 147 * 147 * 64 * 4


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network whose features are compared.

    Attributes:
      apply: traceable function (params, uint8 images [B, H, W, 3]) → {"pool": [B, D], "logits": [B, C],
        "spatial": [B, S]}.
      params: its parameters.
      protocol: its treatment of images as JSON values: "network", "resize", …
    """

    apply: Callable[[Params, Any], dict[str, jax.Array]]
    params: Params
    protocol: dict[str, Any]

    def sizes(self, image_size: Sequence[int]) -> dict[str, int]:
        """Returns the feature sizes {"pool": D, "logits": C, "spatial": S} for images of (height, width).

        Only traces the network; nothing is computed.
        """
        images = jax.ShapeDtypeStruct((1, *image_size, 3), np.uint8)
        return {name: out.shape[1] for name, out in jax.eval_shape(self.apply, self.params, images).items()}

    def protocol_for(self, image_size: Sequence[int]) -> dict[str, Any]:
        """Returns the protocol under which images of (height, width) are compared."""
        return {**self.protocol, "rounding": "8 bit", "image_size": list(image_size)}


@dataclasses.dataclass(frozen=True)
class Features:
    """Results of one pass over images.

    Attributes:
      statistics: moments, and the stored features if any.
      scores: "inception_score" and "inception_score_std" (shuffled), "inception_score_file_order" and
        "inception_score_file_order_std"; empty if there are fewer images than splits.
      seconds: duration of the pass.
    """

    statistics: Statistics
    scores: dict[str, float]
    seconds: float


class Extractor:
    """Computes features of images under one network, compiled once per image size.

    Example:
      >>> extractor = Extractor(networks.inception())  # doctest: +SKIP
      >>> features = extractor.collect(images.batches(), images.count)  # doctest: +SKIP
      >>> statistics.save("statistics.npz", features.statistics)  # doctest: +SKIP
    """

    def __init__(
        self, network: FeatureNetwork, mesh: Mesh | None = None, per_device_batch_size: int | None = None
    ) -> None:
        """Copies the network's parameters to the devices.

        Args:
          network: the frozen network.
          mesh: devices to use; None: all.
          per_device_batch_size: images that each device processes at a time; None: as its memory allows.
        """
        self.network = network
        mesh = mesh or sharding.make_mesh()
        if per_device_batch_size is None:
            per_device_batch_size = batch_size.by_memory(_IMAGE_BYTES, mesh, default=32)
        self._map = BatchedShardMap(network.apply, network.params, mesh, per_device_batch_size)

    @property
    def batch_size(self) -> int:
        """Images that all devices together process at a time."""
        return self._map.batch_size

    def __call__(self, images: UInt8[AnyArray, "N H W 3"]) -> dict[str, Float[np.ndarray, "N size"]]:
        """Returns the features, by name, of at most `batch_size` images."""
        return self._map(images)

    def collect(
        self,
        batches: Iterable[np.ndarray],
        num_images: int,
        *,
        num_stored_features: int = 0,
        folder: str | os.PathLike[str] | None = None,
        name: str = "features of images",
    ) -> Features:
        """Runs over images once.

        Args:
          batches: uint8 [n, H, W, 3] in file order, with any n.
          num_images: number of images in all batches.
          num_stored_features: number of images whose pooled features are stored; see `stored_images`.
          folder: where the file of stored features is, which vanishes with the last reference to it; None: the
            system's temporary folder.
          name: name of the pass in the log.

        Raises:
          ValueError: images are not uint8 or are of mixed sizes, or their number is not `num_images`.
        """
        pass_ = _Pass(self.network, num_images, num_stored_features, folder)
        progress = ProgressLogger(name, num_images)
        for images in rebatch(batches, self.batch_size):
            pass_.update(images.shape[1:3], self(images))
            progress.update(len(images))
        return pass_.result(progress.seconds)


def stored_images(num_images: int, num_stored_features: int) -> Int[np.ndarray, "n"]:
    """Returns the indices of the images whose pooled features are stored, ascending.

    They are all images, or a uniform choice that follows from the two numbers alone. (The first images would not do:
    files are sorted by class, so they belong to few classes.)

    Args:
      num_images: number of images.
      num_stored_features: number of images to choose.
    """
    if num_stored_features >= num_images:
        return np.arange(num_images)
    return np.sort(np.random.RandomState(_CHOICE_SEED).permutation(num_images)[:num_stored_features])


class _Pass:
    """Sums of one pass over images."""

    def __init__(
        self,
        network: FeatureNetwork,
        num_images: int,
        num_stored_features: int,
        folder: str | os.PathLike[str] | None,
    ) -> None:
        self._network, self._expected, self._seen = network, num_images, 0
        self._stored, self._folder = stored_images(num_images, num_stored_features), folder
        self._image_size: Sequence[int] = ()
        self._pool: fid.Moments | None = None
        self._spatial: fid.Moments | None = None
        self._features: np.ndarray | None = None
        shuffle_seeds = {"": feature_metrics.SHUFFLE_SEED, "_file_order": None} if num_images >= _NUM_SPLITS else {}
        self._scores = {
            suffix: feature_metrics.InceptionScore(num_images, _NUM_SPLITS, seed)
            for suffix, seed in shuffle_seeds.items()
        }

    def update(self, image_size: Sequence[int], features: dict[str, np.ndarray]) -> None:
        pool = features["pool"]
        if self._pool is None or self._spatial is None:
            self._image_size = image_size
            self._pool, self._spatial = fid.Moments(pool.shape[1]), fid.Moments(features["spatial"].shape[1])
            if len(self._stored):
                self._features = _memory_mapped((len(self._stored), pool.shape[1]), self._folder)
        self._pool.update(pool)
        self._spatial.update(features["spatial"])
        for score in self._scores.values():
            score.update(features["logits"])
        if self._features is not None:
            first, last = np.searchsorted(self._stored, [self._seen, self._seen + len(pool)])
            self._features[first:last] = pool[self._stored[first:last] - self._seen]
        self._seen += len(pool)

    def result(self, seconds: float) -> Features:
        if self._seen != self._expected or self._pool is None or self._spatial is None:
            raise ValueError(f"{self._seen} images arrived; expected num_images={self._expected}.")
        protocol = self._network.protocol_for(self._image_size)
        if 0 < len(self._stored) < self._expected:
            protocol["features"] = f"of {len(self._stored)} images, uniformly by RandomState({_CHOICE_SEED})"
        moments = *self._pool.result(), *self._spatial.result()
        scores = {}
        for suffix, score in self._scores.items():
            scores[f"inception_score{suffix}"], scores[f"inception_score{suffix}_std"] = score.result()
        return Features(Statistics(*moments, self._seen, protocol, self._features), scores, seconds)


def _memory_mapped(shape: tuple[int, int], folder: str | os.PathLike[str] | None) -> Float[np.ndarray, "n D"]:
    """Returns a float32 array in a file without a name, which vanishes with the last reference to it."""
    if folder:
        os.makedirs(local_path(folder, "the folder of features"), exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.float32, "w+", shape=shape)


def rebatch(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Checks images, and joins and splits them into batches of `size` (the last may be smaller).

    Args:
      batches: uint8 [n, H, W, 3], with any n.
      size: images of a batch.

    Raises:
      ValueError: images are not uint8 or are of mixed sizes.
    """
    waiting, shape = [], None
    for batch in batches:
        _check_images(batch)
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


def _check_images(images: np.ndarray) -> None:
    """Checks that images are uint8 [N, H, W, 3].

    NaNs are reported first: as uint8 they would become arbitrary colors.
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
