"""WebDataset archives as a Grain source: images are read where they are in the tar files, in any order.

    train-000.tar       000000000.jpg, 000000000.cls, 000000001.jpg, 000000001.cls, …
    train-001.tar       …
    class_names.json    optional: a list of names, if the classes are numbers

Files that follow one another and have the same name up to the first dot are a sample. Its class is in a text file
(`.cls`), or in a field of a JSON file; it is a number, or a name. The archives are read through once for the positions
of their files, some 15 000 samples per second; then every image is read alone, so that order, resumption and
division among processes are those of all other sources.
"""

from collections.abc import Iterator, Sequence
import glob
import io
import os
import re
from typing import Any

from absl import logging
import numpy as np

from eqjax.addresses import local_path
from eqjax.data import image_source, tar_index
from eqjax.data.image_source import SourceChangedError
from eqjax.data.transforms import ResizeShorterSide
from eqjax.image_files import MAX_PIXELS, ImageError
from eqjax.io import parse_json, read_json
from eqjax.messages import shorten

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "tif", "tiff")
CLASS_NAMES = "class_names.json"
MAX_CLASSES = 1_000_000
_MAX_IMAGE_BYTES = 1 << 30
_MAX_LABEL_BYTES = 1 << 20
_SAMPLE_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def find_shards(root: str) -> list[str]:
    """Returns the archives that a root names, in their order.

    Args:
      root: a folder of .tar files, one file, or a pattern: `*`, or a range of numbers, `train-{000..146}.tar`.

    Raises:
      FileNotFoundError: there is no such folder or file, or one of a range is missing.
      ValueError: the folder holds no .tar files.
    """
    if os.path.isdir(local_path(root, "root")):
        names = sorted(os.listdir(root))
        if found := [os.path.join(root, name) for name in names if name.endswith(".tar") and name[0] != "."]:
            return found
        if any(name.endswith(".parquet") for name in names):
            raise ValueError(
                f"root={root!r} holds Parquet files; convert them once: eqjax convert-data --input={root} --output=…"
            )
        compressed = [name for name in names if re.search(r"\.(tgz|tar\.\w+)$", name)]
        hint = f"; decompress {compressed[0]} and the like" if compressed else ""
        raise ValueError(f"root={root!r} holds no .tar files{hint}. It has {', '.join(names[:5]) or 'nothing'}.")
    if numbers := _BRACES.search(root):
        first, last = numbers[1], numbers[2]
        width = len(first) if len(first) == len(last) else 0
        if int(last) - int(first) >= MAX_CLASSES:
            raise ValueError(f"root={root!r} names {int(last) - int(first) + 1} archives, more than {MAX_CLASSES}.")
        parts = (root[: numbers.start()] + f"{n:0{width}d}" + root[numbers.end() :]
                 for n in range(int(first), int(last) + 1))  # fmt: skip
        return [shard for part in parts for shard in find_shards(part)]
    found = [root] if os.path.isfile(root) else sorted(glob.glob(root))
    if not found:
        raise FileNotFoundError(
            f"root={root!r}: there is no such archive; expected a folder of .tar files, a file, or a pattern such as "
            "train-{000..146}.tar."
        )
    return found


class WebDatasetSource(image_source.ImageSource):
    """Grain source of the images in tar archives, in the order of the archives and of their files.

    Record i is {"image": uint8 [H, W, 3], "label": int}. A corrupt image is replaced by the nearest of its class that
    can be decoded (i + 1, i - 1, i + 2, …), or, if its class has none, by the nearest of all.

    Attributes:
      shards: paths of the archives.
    """

    shards: list[str]

    def __init__(
        self,
        root: str | os.PathLike[str],
        label: str = "cls",
        classes: Sequence[str] | None = None,
        max_corrupt_fraction: float = 0.01,
        resize: ResizeShorterSide | None = None,
        draft: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Reads the positions of all images and their classes.

        Args:
          root: the archives, see `find_shards`.
          label: extension of the file with a sample's class, such as "cls"; or a field of a JSON file, "json.label".
          classes: names of classes in the order of their labels; samples of others are left out. None takes all.
          max_corrupt_fraction: largest tolerated fraction of corrupt images, in [0, 1).
          resize: the size that images are resized to during decoding; None keeps their size.
          draft: whether large JPEGs may be halved during decoding; see `image_files.decode`.
          max_pixels: largest number of pixels of an image; larger ones count as corrupt.

        Raises:
          FileNotFoundError: there are no such archives.
          ValueError: an archive is damaged, there are no images, samples have no class, or a listed class has no
            images.
        """
        super().__init__(max_corrupt_fraction, resize, draft, max_pixels)
        self.shards = find_shards(os.fspath(root))
        index = _Index(label)
        self._versions = [_version(os.stat(shard)) for shard in self.shards]
        for number, shard in enumerate(self.shards):
            index.add(number, shard)
        texts, places = index.finish(os.fspath(root))
        stored = read_class_names(os.path.dirname(self.shards[0]))
        labels, names = _labels(texts, stored, os.fspath(root))
        if classes is not None:
            labels, names = _select(labels, names, tuple(classes), os.fspath(root))
        kept = labels >= 0
        self.class_names = names
        self._labels = labels[kept].astype(np.int32)
        self._places = places[kept]  # Archive, position and size of every image.

    def __len__(self) -> int:
        return len(self._labels)

    def path(self, index: int) -> str:
        """Returns the archive and the name of a record's image, for messages."""
        shard, offset, _ = self._places[index].tolist()
        return f"{self.shards[shard]}, {self._name(self.shards[shard], offset)}"

    @staticmethod
    def _name(shard: str, offset: int) -> str:
        try:
            return next(member.name for member in tar_index.members(shard) if member.offset == offset)
        except (OSError, ValueError, StopIteration):  # The archive has changed, which is told by another message.
            return f"byte {offset}"

    def _open(self, index: int) -> tuple[io.BytesIO, int]:
        shard, offset, size = self._places[index].tolist()
        if size > _MAX_IMAGE_BYTES:
            raise ImageError(f"it has {size} bytes, more than {_MAX_IMAGE_BYTES}")
        with open(self.shards[shard], "rb") as file:
            if _version(os.fstat(file.fileno())) != self._versions[shard]:
                raise SourceChangedError(
                    f"{self.shards[shard]} was replaced or changed after its images were listed; start again, and "
                    "leave archives alone while they are read."
                )
            file.seek(offset)
            return io.BytesIO(file.read(size)), int(self._labels[index])

    def _substitutes(self, index: int) -> Iterator[int]:
        """Yields the neighbors from near to far, first those of the class, then all."""
        same = np.flatnonzero(self._labels == self._labels[index])
        yield from (int(i) for i in same[np.lexsort((-same, np.abs(same - index)))] if i != index)
        yield from image_source.nearest(index, 0, len(self))


def _version(status: os.stat_result) -> tuple[int, int]:
    """Returns the size and the time of the last change, which another content of a file changes."""
    return status.st_size, status.st_mtime_ns


class _Index:
    """Collects the samples of archives: places of their images, texts of their classes."""

    def __init__(self, label: str) -> None:
        extension, _, self._field = label.partition(".")
        if not extension or bool(self._field) != (extension == "json"):
            raise ValueError(f"label={label!r} must be an extension such as 'cls', or a field such as 'json.label'.")
        self._label, self._extension = label, extension
        self._texts: list[str | None] = []
        self._places: list[tuple[int, int, int]] = []
        self._num_without_image = 0
        self._extensions: dict[str, None] = {}  # Those of all files, for messages.
        self._unlabeled: str | None = None  # Name of a sample without a class.

    def add(self, number: int, path: str) -> None:
        """Adds the samples of one archive."""
        key: str | None = None
        files: dict[str, tar_index.Member] = {}
        with open(path, "rb") as file:
            for member in tar_index.members(path):
                match = _SAMPLE_NAME.fullmatch(member.name)
                if match is None:
                    continue
                if match[1] != key and key is not None:
                    self._add_sample(number, path, file, key, files)
                if match[1] != key:
                    key, files = match[1], {}
                files[match[2].lower()] = member
            if key is not None:
                self._add_sample(number, path, file, key, files)

    def _add_sample(self, number: int, path: str, file: Any, key: str, files: dict[str, tar_index.Member]) -> None:
        if len(self._extensions) < 20:
            self._extensions |= dict.fromkeys(files)
        images = [extension for extension in files if extension in IMAGE_EXTENSIONS]
        if len(images) > 1:
            raise ValueError(f"{path}: the sample {shorten(key)!r} has several images ({', '.join(images)}).")
        if not images:
            self._num_without_image += 1
            return
        member = files[images[0]]
        self._places.append((number, member.offset, member.size))
        text = self._read_label(path, file, files.get(self._extension))
        if text is None and self._unlabeled is None:
            self._unlabeled = f"{path}, {shorten(key)!r}"
        self._texts.append(text)

    def _read_label(self, path: str, file: Any, member: tar_index.Member | None) -> str | None:
        """Returns the text of a sample's class; None if it has none."""
        if member is None:
            return None
        if member.size > _MAX_LABEL_BYTES:
            raise ValueError(f"{path}: {shorten(member.name)!r} should hold a class, and has {member.size} bytes.")
        text = os.pread(file.fileno(), member.size, member.offset).decode("utf-8", "replace").strip()
        if not self._field:
            return text or None
        try:
            value = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{path}: {shorten(member.name)!r} is no JSON ({error}).") from error
        for name in self._field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None

    def finish(self, root: str) -> tuple[list[str], np.ndarray]:
        """Returns the class of every image as text, and places [N, 3]: archive, position, size.

        Raises:
          ValueError: there are no images, or images without a class.
        """
        found = ", ".join(f".{shorten(extension)}" for extension in self._extensions) or "no files"
        if not self._places:
            raise ValueError(
                f"root={root!r} has no images: its samples consist of {found}; expected one of "
                f"{', '.join('.' + extension for extension in IMAGE_EXTENSIONS)} in each."
            )
        missing = sum(text is None for text in self._texts)
        if missing:
            raise ValueError(
                f"root={root!r}: {missing} of {len(self._texts)} samples have no class in label={self._label!r}, such "
                f"as {self._unlabeled}; samples consist of {found}. Set data.label to the extension of the file with "
                "the class, or to a field of a JSON file (json.label)."
            )
        if self._num_without_image:
            logging.warning("%s: left out %d samples without an image.", root, self._num_without_image)
        return [text for text in self._texts if text is not None], np.array(self._places, np.int64)


def read_class_names(folder: str) -> tuple[str, ...] | None:
    """Returns the names in a folder's class_names.json; None if there is no such file.

    Raises:
      ValueError: the file is no list of different names.
    """
    path = os.path.join(folder, CLASS_NAMES)
    if not os.path.isfile(path):
        return None
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{path} must be a list of different names, in the order of the labels.")
    return tuple(names)


def _labels(texts: list[str], stored: tuple[str, ...] | None, root: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the labels of samples as integers, and the names of all classes."""
    values = sorted(set(texts))
    if not all(re.fullmatch(r"-?\d{1,9}", value) for value in values):
        names = tuple(values) if stored is None else stored
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(f"root={root!r}: the class {shorten(unknown[0])!r} is not in {CLASS_NAMES}.")
        numbers = {name: number for number, name in enumerate(names)}
        return np.array([numbers[text] for text in texts]), names
    labels = np.array([int(text) for text in texts])
    most = (len(stored) if stored is not None else MAX_CLASSES) - 1
    if labels.min() < 0 or labels.max() > most:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(
            f"root={root!r}: {np.sum((labels < 0) | (labels > most))} samples have a class outside 0 … {most}, such as "
            f"{wrong}; negative numbers usually mean that there is no class."
        )
    return labels, stored or tuple(map(str, range(labels.max() + 1)))


def _select(
    labels: np.ndarray, names: tuple[str, ...], classes: tuple[str, ...], root: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns labels in the order of `classes`, −1 for samples of other classes."""
    missing = [name for name in classes if name not in names]
    if missing or not classes or len(set(classes)) < len(classes):
        few = ", ".join(names[:10]) + (f", and {len(names) - 10} more" if len(names) > 10 else "")
        raise ValueError(f"classes={classes} must be one or more different classes of {root!r}; it has {few}.")
    table = np.full(len(names), -1)
    table[[names.index(name) for name in classes]] = np.arange(len(classes))
    selected = table[labels]
    if empty := [name for number, name in enumerate(classes) if not np.any(selected == number)]:
        raise ValueError(f"classes: {', '.join(empty[:10])} have no images in {root!r}; leave them out.")
    return selected, classes
