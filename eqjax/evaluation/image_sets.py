"""Sets of images as streams of uint8 batches, from folders, npz files and data sources; writes ADM's npz.

Letters: N images, H height, W width.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import os
from typing import IO
import zipfile

from jaxtyping import Int, UInt8
import ml_collections
import numpy as np

from eqjax import data, image_files
from eqjax.data.folder import EXTENSIONS
from eqjax.evaluation.statistics import NPZ_ERRORS, StatisticsError
from eqjax.io import atomic_write
from eqjax.typing import AnyArray

_BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images that can be streamed repeatedly.

    Attributes:
      count: number of images.
      source: origin of the images, for protocols.
      batches: function that returns an iterator over uint8 batches [n, H, W, 3], in file order.

    Example:
      >>> images = np.zeros((5, 8, 8, 3), np.uint8)
      >>> image_set = ImageSet(5, "black", lambda: iter([images[:3], images[3:]]))
      >>> sum(len(batch) for batch in image_set.batches())
      5
    """

    count: int
    source: str
    batches: Callable[[], Iterator[np.ndarray]]


def from_path(path: str | os.PathLike[str]) -> ImageSet:
    """Returns the images of a folder (with or without class folders) or of an npz with arr_0.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: the folder or the npz holds no images.
    """
    if os.path.isdir(path):
        return from_folder(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no folder and no npz at {path}.")
    return from_npz(path)


def from_folder(root: str | os.PathLike[str]) -> ImageSet:
    """Returns all images under a folder, sorted by path.

    Raises:
      ValueError: there are no images; while iterating, an image cannot be decoded, or images are of mixed sizes.
    """
    paths = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
    )
    if not paths:
        raise ValueError(f"no images ({', '.join(EXTENSIONS)}) under {root}.")

    def batches() -> Iterator[np.ndarray]:
        shape = None
        for start in range(0, len(paths), _BATCH_SIZE):
            images = []
            for path in paths[start : start + _BATCH_SIZE]:
                image = image_files.read(path)
                shape = shape or image.shape
                if image.shape != shape:
                    raise ValueError(
                        f"images of mixed sizes: {paths[0]} is {shape[0]} × {shape[1]}, {path} is "
                        f"{image.shape[0]} × {image.shape[1]}. Resize them alike, or read them through a data source "
                        "(--data.source=folder), which crops."
                    )
                images.append(image)
            yield np.stack(images)

    return ImageSet(len(paths), os.path.abspath(root), batches)


def from_npz(path: str | os.PathLike[str]) -> ImageSet:
    """Returns the images of an npz, its arr_0 or only array; they are read batch by batch.

    Raises:
      StatisticsError: the file is truncated or damaged, or has no array [N ≥ 1, H, W, 3].
    """
    with _open_images(path) as (_, shape, dtype):
        pass

    def batches() -> Iterator[np.ndarray]:
        image_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        with _open_images(path) as (member, _, _):
            for start in range(0, shape[0], _BATCH_SIZE):
                count = min(_BATCH_SIZE, shape[0] - start)
                try:
                    content = member.read(count * image_bytes)
                except NPZ_ERRORS as error:
                    raise StatisticsError(
                        f"{path} is damaged: images {start} … {start + count - 1} cannot be read ({error})."
                    ) from error
                if len(content) < count * image_bytes:
                    raise StatisticsError(
                        f"{path} is truncated: it ends inside image {start + len(content) // image_bytes}."
                    )
                yield np.frombuffer(content, dtype).reshape(count, *shape[1:])

    return ImageSet(shape[0], os.path.abspath(path), batches)


@contextlib.contextmanager
def _open_images(path: str | os.PathLike[str]) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """Opens the image array inside an npz: the file at its first image, the array's shape and its dtype."""
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
        except NPZ_ERRORS as error:
            raise StatisticsError(f"{path} cannot be read as npz ({error}): truncated, or no npz.") from error
        names = archive.namelist()
        name = "arr_0.npy" if "arr_0.npy" in names or len(names) != 1 else names[0]
        if name not in names:
            arrays = [name.removesuffix(".npy") for name in names]
            raise StatisticsError(f"{path} holds the arrays {arrays}; images are expected in arr_0.")
        try:
            member = stack.enter_context(archive.open(name))
            version = np.lib.format.read_magic(member)
            read = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
            shape, fortran, dtype = read(member)
        except NPZ_ERRORS as error:
            raise StatisticsError(f"{name} in {path} is damaged, or not a numpy array ({error}).") from error
        if dtype.hasobject or fortran or len(shape) != 4 or shape[3] != 3:
            raise StatisticsError(f"{name} in {path} is {dtype} {shape}; images are uint8 [N, H, W, 3], in C order.")
        if not np.prod(shape):
            raise StatisticsError(f"{name} in {path} is empty, {shape}: there are no images.")
        yield member, shape, dtype


def from_data(
    config: ml_collections.ConfigDict, num_images: int | None = None, batch_size: int = _BATCH_SIZE
) -> ImageSet:
    """Returns the evaluation crops of a data configuration.

    Args:
      config: configuration of `eqjax.data.default_config`.
      num_images: number of images, spread evenly over all; None: all.
      batch_size: images read at a time.

    Raises:
      ValueError: the configuration is invalid, or `num_images` is below 1.
    """
    # Every process reads all images: a pass selects its own rows of every batch.
    found = data.eval_batches(config, batch_size=batch_size, num_images=num_images, process_index=0, process_count=1)

    def batches() -> Iterator[np.ndarray]:
        return (batch["image"][batch["mask"]] for batch in found)

    source = str(config.source)
    if source != "photos":
        split = f", {config.eval_split}" if source == "tfds" else ""
        source += f" {config.eval_root or config.root}{split}, shorter side {config.resize}"
    return ImageSet(found.num_images, f"{source}, evaluation crops", batches)


def write_npz(
    path: str | os.PathLike[str],
    count: int,
    read_image: Callable[[int], UInt8[np.ndarray, "H W 3"]],
    labels: Int[AnyArray, "N"],
    batch_size: int = _BATCH_SIZE,
) -> None:
    """Writes ADM's npz with images in arr_0 and labels in arr_1, without holding all images in memory.

    Args:
      path: file to write.
      count: number of images.
      read_image: returns the image at a position of the file.
      labels: labels in the order of the file.
      batch_size: images held in memory at a time.
    """
    shape = (count, *read_image(0).shape)
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for start in range(0, count, batch_size):
                images = np.stack([read_image(i) for i in range(start, min(start + batch_size, count))])
                file.write(images.tobytes())
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, np.asarray(labels, np.int64), allow_pickle=False)
