"""Sets of images as streams of uint8 batches, from folders, npz files and data sources; writes ADM's npz.

Letters: N images, H height, W width.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import math
import os
from typing import IO
import zipfile
import zlib

from jaxtyping import Int, UInt8
import ml_collections
import numpy as np

from eqjax import data, image_files, npz
from eqjax.data.folder import EXTENSIONS
from eqjax.evaluation.statistics import StatisticsError
from eqjax.io import atomic_write
from eqjax.messages import shorten
from eqjax.typing import AnyArray

_BATCH_SIZE = 64
# Bytes of a batch, which has fewer images if they are large.
_BATCH_BYTES = 2**28
# Bounds of an npz: a million images of 512 × 512 pixels; deflate shortens zeros by up to 1030, drawings by about 100.
_MAX_BYTES = 2**40
_MAX_EXPANSION = 256


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
      StatisticsError: the file is truncated or damaged, has no array [N ≥ 1, H, W, 3], or one that would expand as no
        images do, or of images with more than `image_files.MAX_PIXELS` pixels.
    """
    path = os.fspath(path)
    with _open_images(path) as (_, entry):
        count, *image_shape = entry.shape

    def batches() -> Iterator[np.ndarray]:
        image_bytes = math.prod(image_shape) * entry.dtype.itemsize
        batch_size = max(1, min(_BATCH_SIZE, _BATCH_BYTES // image_bytes))
        with _open_images(path) as (member, _):
            for start in range(0, count, batch_size):
                stop = min(start + batch_size, count)
                try:
                    content = member.read((stop - start) * image_bytes)
                except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                    raise StatisticsError(
                        f"{path} is damaged: images {start} … {stop - 1} cannot be read ({shorten(str(error))})."
                    ) from error
                if len(content) < (stop - start) * image_bytes:
                    raise StatisticsError(
                        f"{path} is truncated: it ends inside image {start + len(content) // image_bytes}."
                    )
                yield np.frombuffer(content, entry.dtype).reshape(stop - start, *image_shape)

    return ImageSet(count, os.path.abspath(path), batches)


@contextlib.contextmanager
def _open_images(path: str) -> Iterator[tuple[IO[bytes], npz.Entry]]:
    """Opens the image array inside an npz: the file at its first image, and what its header declares."""
    # Images are read part by part: only their expansion is bounded, as that of black ones may be.
    with npz.open_npz(
        path, {"arr_0": ""}, max_bytes=_MAX_BYTES, max_expansion=_MAX_EXPANSION, error=StatisticsError
    ) as file:
        if not file.entries:
            raise StatisticsError(f"{path} holds the arrays {shorten(str(file.names))}; images are expected in arr_0.")
        ((name, entry),) = file.entries.items()
        shape = entry.shape
        found = f"{shorten(name)} in {path} is {shorten(str(entry.dtype))} {shorten(str(shape))}"
        if entry.dtype.kind not in "fu" or entry.is_fortran or len(shape) != 4 or shape[3] != 3:
            raise StatisticsError(f"{found}; images are uint8 [N, H, W, 3], in C order.")
        if not math.prod(shape):
            raise StatisticsError(f"{found}: empty, there are no images.")
        if shape[1] * shape[2] > image_files.MAX_PIXELS:
            raise StatisticsError(f"{found}: more than {image_files.MAX_PIXELS} pixels per image; refused.")
        with file.stream(name) as member:
            yield member, entry


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
