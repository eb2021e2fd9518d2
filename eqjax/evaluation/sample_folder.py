"""A folder of generated images, written in shards, so that an interrupted run can be resumed.

    folder/protocol.json                           everything that determines the images
    folder/shards/00000000-00000063-1a2b3c4d.npy   uint8 [n, H, W, 3]; in the name first and last image, checksum
    folder/png/00000000_0000.png                   on request: image, class
    folder/samples.npz                             on request: ADM's format, shuffled, with labels

Letters: N images, H height, W width.
"""

from collections.abc import Iterator, Mapping
import os
import re
import tokenize
from typing import Any

import jax
from jaxtyping import Int32, UInt8
import numpy as np

from eqjax import checksums
from eqjax.addresses import local_path
from eqjax.differences import check_equal
from eqjax.evaluation.feature_metrics import SHUFFLE_SEED
from eqjax.evaluation.image_sets import write_npz
from eqjax.image_output import save_image
from eqjax.io import atomic_write, read_json_object, remove_leftovers, write_json

_SHARD = r"(\d+)-(\d+)-([0-9a-f]{8})\.npy"  # First image, last image, checksum.


def balanced_labels(num_images: int, num_classes: int) -> Int32[np.ndarray, "N"]:
    """Returns the label i mod num_classes of every image i: equally many per class if the numbers divide.

    Example:
      >>> balanced_labels(5, 3).tolist()
      [0, 1, 2, 0, 1]
    """
    return np.arange(num_images, dtype=np.int32) % num_classes


class SampleFolder:
    """The images that `eqjax.evaluation.generate` wrote, or is about to write, to a folder.

    Attributes:
      folder: the folder.
      count: number of images requested; `num_available` returns how many exist.
      labels: label of every requested image.

    Example:
      >>> samples = SampleFolder("samples", 50_000, 1000)  # doctest: +SKIP
      >>> for images in samples.batches():  # doctest: +SKIP
      ...     print(images.shape)
    """

    def __init__(self, folder: str | os.PathLike[str], count: int, num_classes: int) -> None:
        self.folder, self.count = local_path(folder, "the folder of images"), count
        self.labels = balanced_labels(count, num_classes)
        self._shards = os.path.join(self.folder, "shards")

    def check_protocol(self, protocol: Mapping[str, Any]) -> None:
        """Writes the protocol beside the images, or compares it with an earlier one; then removes leftovers.

        Args:
          protocol: JSON values.

        Raises:
          ValueError: the folder holds images of another protocol.
        """
        path = os.path.join(self.folder, "protocol.json")
        if os.path.isfile(path):
            message = f"{self.folder} holds images of another protocol; give another folder, or the same options."
            check_equal(read_json_object(path), protocol, message, found_name="folder", expected_name="now")
        elif jax.process_index() == 0:
            write_json(path, protocol)
        if jax.process_index() == 0:
            remove_leftovers(self._shards, _SHARD)

    def write(self, first: int, images: UInt8[np.ndarray, "n H W 3"]) -> None:
        """Writes images `first`, `first` + 1, … as one shard, on process 0; all processes wait for it."""
        if jax.process_index() == 0:
            checksum = checksums.update(0, np.asarray(images))
            name = f"{first:08d}-{first + len(images) - 1:08d}-{checksum:08x}.npy"
            with atomic_write(os.path.join(self._shards, name)) as temporary, open(temporary, "wb") as file:
                np.save(file, images)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(f"shard {first}")

    def num_available(self) -> int:
        """Returns the number n of images that exist: images 0 … n − 1.

        Raises:
          ValueError: shards overlap or leave a gap.
        """
        ranges = self._ranges()
        return ranges[-1][1] if ranges else 0

    def _ranges(self) -> list[tuple[int, int, str]]:
        """Returns the shards in order: first image, last image + 1, path.

        Raises:
          ValueError: shards overlap or leave a gap.
        """
        names = sorted(os.listdir(self._shards)) if os.path.isdir(self._shards) else []
        found, expected = [], 0
        for name in names:
            match = re.fullmatch(_SHARD, name)
            if not match:
                continue  # A temporary file of a killed run.
            first, last = int(match[1]), int(match[2])
            if first != expected or last < first:
                raise ValueError(
                    f"shards under {self._shards} do not follow each other: {name} where image {expected} should be "
                    "next. Remove it and all later ones; they will be generated again."
                )
            found.append((first, last + 1, os.path.join(self._shards, name)))
            expected = last + 1
        return found

    def batches(self) -> Iterator[UInt8[np.ndarray, "n H W 3"]]:
        """Yields the images in order, one shard at a time."""
        for first, stop, path in self._ranges():
            if first < self.count:
                yield _read_shard(path, stop - first)[: self.count - first]

    def write_png(self) -> None:
        """Writes every image as png/<index>_<class>.png, unless the file exists."""
        if jax.process_index():
            return
        index = 0
        for images in self.batches():
            for image in images:
                path = os.path.join(self.folder, "png", f"{index:08d}_{self.labels[index]:04d}.png")
                if not os.path.exists(path):
                    save_image(path, image)
                index += 1

    def write_npz(self) -> str:
        """Writes samples.npz in ADM's format, shuffled for the Inception Score, and returns its path."""
        path = os.path.join(self.folder, "samples.npz")
        if jax.process_index() == 0:
            order = np.random.RandomState(SHUFFLE_SEED).permutation(self.count)
            ranges = self._ranges()
            starts = np.array([first for first, _, _ in ranges])
            for _ in self.batches():
                pass  # Compares all checksums; then images are read in another order, one by one.

            def read_image(position: int) -> UInt8[np.ndarray, "H W 3"]:
                shard = np.searchsorted(starts, order[position], side="right") - 1
                first, stop, file = ranges[shard]
                return _read_shard(file, stop - first, compares=False)[order[position] - first]

            write_npz(path, self.count, read_image, self.labels[order])
        return path


def _read_shard(path: str, count: int, compares: bool = True) -> UInt8[np.ndarray, "n H W 3"]:
    """Returns the memory-mapped images of a shard, compared with their checksum or not.

    Raises:
      ValueError: the file cannot be read, or does not hold the `count` images that were written.
    """
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:  # Damaged headers do not parse.
        raise ValueError(f"{path} cannot be read ({error}); remove it and all later shards, and run again.") from error
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != count:
        raise ValueError(f"{path} holds {images.dtype} {images.shape}, expected {count} uint8 images; remove it.")
    match = re.fullmatch(_SHARD, os.path.basename(path))
    if match is None or (compares and checksums.update(0, images) != int(match[3], 16)):
        raise ValueError(f"{path} is damaged, as its checksum differs; remove it and all later shards, and run again.")
    return images
