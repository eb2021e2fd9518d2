"""Sets of images as streams of uint8 batches: from folders, npz files and data sources; and ADM's npz, streamed."""

from collections.abc import Callable, Iterator
import dataclasses
import os
import zipfile

import numpy as np

from eqjax import data
from eqjax.data.folder import EXTENSIONS
from eqjax.data.image_source import decode
from eqjax.evaluation.statistics import NPZ_ERRORS, StatisticsError
from eqjax.io import atomic_write

_BATCH = 64


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images that can be streamed, again and again.

    Attributes:
      count: how many.
      source: where from, for the protocol.
      batches: () → iterator of uint8 [n, H, W, 3], in file order.
    """

    count: int
    source: str
    batches: Callable[[], Iterator[np.ndarray]]


def from_path(path):
    """An `ImageSet` of a folder of images (with or without class folders) or of an npz with arr_0.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: no images, or an npz without images.
    """
    if os.path.isdir(path):
        return from_folder(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no folder and no npz at {path}.")
    return from_npz(path)


def from_folder(root):
    """All images under a folder, sorted by path."""
    paths = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
    )
    if not paths:
        raise ValueError(f"no images ({', '.join(EXTENSIONS)}) under {root}.")

    def batches():
        first = None
        for start in range(0, len(paths), _BATCH):
            images = []
            for path in paths[start : start + _BATCH]:
                image = _decode(path)
                first = first or (path, image.shape)
                if image.shape != first[1]:
                    raise ValueError(
                        f"images of mixed sizes: {first[0]} is {first[1][0]} × {first[1][1]}, {path} is "
                        f"{image.shape[0]} × {image.shape[1]}. Resize them alike, or read them through a data source "
                        "(--data.source=folder), which crops."
                    )
                images.append(image)
            yield np.stack(images)

    return ImageSet(len(paths), os.path.abspath(root), batches)


def _decode(path):
    try:
        return decode(path)
    except MemoryError:  # Says nothing about the file.
        raise
    except Exception as error:
        # Broken bytes make Pillow raise OSError, SyntaxError, ValueError, struct.error, zlib.error, …
        raise ValueError(f"{path} cannot be decoded ({error}): repair or remove it.") from error


def from_npz(path):
    """The images of an npz, arr_0 (or its only array): read row by row, never whole.

    Raises:
      StatisticsError: truncated or damaged, or no array [N ≥ 1, H, W, 3] inside.
    """
    with _open_images(path) as (_, shape, dtype):
        pass

    def batches():
        row = int(np.prod(shape[1:])) * dtype.itemsize
        with _open_images(path) as (member, _, _):
            for start in range(0, shape[0], _BATCH):
                count = min(_BATCH, shape[0] - start)
                try:
                    content = member.read(count * row)
                except NPZ_ERRORS as error:
                    raise StatisticsError(
                        f"{path} is damaged: images {start} … {start + count - 1} cannot be read ({error})."
                    ) from error
                if len(content) < count * row:
                    raise StatisticsError(f"{path} is truncated: it ends inside image {start + len(content) // row}.")
                yield np.frombuffer(content, dtype).reshape(count, *shape[1:])

    return ImageSet(shape[0], os.path.abspath(path), batches)


class _open_images:
    """Opens the image array inside an npz: gives (file at its first row, shape, dtype)."""

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        try:
            self._zip = zipfile.ZipFile(self._path)
        except NPZ_ERRORS as error:
            raise StatisticsError(f"{self._path} cannot be read as npz ({error}): truncated, or no npz.") from error
        names = self._zip.namelist()
        name = "arr_0.npy" if "arr_0.npy" in names or len(names) != 1 else names[0]
        if name not in names:
            self._zip.close()
            arrays = [name.removesuffix(".npy") for name in names]
            raise StatisticsError(f"{self._path} holds the arrays {arrays}; images are expected in arr_0.")
        try:
            self._member = self._zip.open(name)
            version = np.lib.format.read_magic(self._member)
            read = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
            shape, fortran, dtype = read(self._member)
        except NPZ_ERRORS as error:
            self._zip.close()
            raise StatisticsError(f"{name} in {self._path} is damaged, or not a numpy array ({error}).") from error
        if dtype.hasobject or fortran or len(shape) != 4 or shape[3] != 3:
            self.__exit__()
            raise StatisticsError(
                f"{name} in {self._path} is {dtype} {shape}; images are uint8 [N, H, W, 3], in C order."
            )
        if not np.prod(shape):
            self.__exit__()
            raise StatisticsError(f"{name} in {self._path} is empty, {shape}: there are no images.")
        return self._member, shape, dtype

    def __exit__(self, *exception):
        self._member.close()
        self._zip.close()


def from_data(config, num_images=None, batch_size=_BATCH):
    """The evaluation crops of a data configuration (see `eqjax.data.default_config`).

    Args:
      config: the data part of a configuration.
      num_images: spread evenly over all; None: all.
      batch_size: read at a time.
    """
    # Every process reads all: a pass takes its share of every batch itself.
    found = data.eval_batches(config, batch_size=batch_size, num_images=num_images, process_index=0, process_count=1)

    def batches():
        return (batch["image"][batch["mask"]] for batch in found)

    source = config.source
    if source != "photos":
        split = f", {config.eval_split}" if source == "tfds" else ""
        source += f" {config.eval_root or config.root}{split}, shorter side {config.resize}"
    return ImageSet(found.num_images, f"{source}, evaluation crops", batches)


def write_npz(path, count, row, labels, batch=_BATCH):
    """Writes ADM's npz, arr_0 (images) and arr_1 (labels), image by image; it appears whole or not at all.

    Args:
      path: the file.
      count: how many images.
      row: number → uint8 [H, W, 3]: the image at that place of the file.
      labels: integers [count], in the order of the file.
      batch: images written at a time.
    """
    shape = (count, *row(0).shape)
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for start in range(0, count, batch):
                rows = np.stack([row(i) for i in range(start, min(start + batch, count))])
                file.write(rows.tobytes())
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, np.asarray(labels, np.int64), allow_pickle=False)
