"""Images in class folders as a Grain source, in both layouts of ImageNet.

Class folders are in the root, `root/class_name/image.jpg`, or in its folder `data`, `root/data/class_name/image.jpg`,
the layout of code for latent diffusion (ILSVRC2012_train/data/n01440764/…).
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import os

from absl import logging
import numpy as np

from eqjax.addresses import local_path
from eqjax.data import image_source
from eqjax.data.transforms import ResizeShorterSide
from eqjax.image_files import MAX_PIXELS
from eqjax.io import read_text
from eqjax.messages import shorten

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
_MAX_CLASS_FILE_BYTES = 2**24  # The list of the 21 841 classes of ImageNet with all their words has 0.7 MB.
_LAYOUTS = "expected root/class_name/image.jpg, or root/data/class_name/image.jpg"


def read_class_file(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns class names in the order of their labels, the first word of each line, as in lists of synsets.

    Empty lines and lines that begin with # are skipped.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file names no class, or one class twice.
    """
    try:
        lines = read_text(path, _MAX_CLASS_FILE_BYTES).splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"class_file={os.fspath(path)!r}: there is no such file.") from error
    names = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if not names or repeated:
        found = f"these names are repeated: {shorten(', '.join(sorted(repeated)))}" if repeated else "it names none"
        raise ValueError(f"class_file={os.fspath(path)!r} must name each class once, one per line; {found}.")
    return tuple(names)


def find_class_root(root: str) -> str:
    """Returns the folder that contains the class folders: `root`, or `root/data` in that layout.

    Raises:
      FileNotFoundError: `root` is not a folder.
      ValueError: there are no class folders.
    """
    if not os.path.isdir(local_path(root, "root")):
        raise FileNotFoundError(f"root={root!r} is not a folder; {_LAYOUTS}.")
    found = _folders(root)
    if not found:
        images = "it contains images itself, " if _images(root) else ""
        raise ValueError(f"{root!r} has no class folders: {images}{_LAYOUTS}.")
    inner = os.path.join(root, "data")
    # A class named "data" contains images.
    return inner if found == ["data"] and _folders(inner) and not _images(inner) else root


class FolderSource(image_source.ImageSource):
    """Grain source of the images in class folders, sorted by class and then by file name.

    Record i is {"image": uint8 [H, W, 3], "label": int}. A corrupt image is replaced by the nearest of its class that
    can be decoded (i + 1, i - 1, i + 2, …), or, if its class has none, by the nearest of all.

    Attributes:
      root: the folder that contains the class folders.
    """

    root: str

    def __init__(
        self,
        root: str | os.PathLike[str],
        classes: Sequence[str] | None = None,
        max_corrupt_fraction: float = 0.01,
        resize: ResizeShorterSide | None = None,
        draft: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Lists the files without opening them.

        Args:
          root: folder of class folders, or the parent of their folder `data`.
          classes: names of class folders in the order of their labels; None takes all, sorted.
          max_corrupt_fraction: largest tolerated fraction of corrupt images, in [0, 1).
          resize: the size that images are resized to during decoding; None keeps the size of the file.
          draft: whether large JPEGs may be halved during decoding; see `image_files.decode`.
          max_pixels: largest number of pixels of an image; larger ones count as corrupt.

        Raises:
          FileNotFoundError: `root` is not a folder.
          ValueError: there are no classes, a listed class has no folder, a class has no images, or
            `max_corrupt_fraction` is out of range.
        """
        super().__init__(max_corrupt_fraction, resize, draft, max_pixels)
        self.root = find_class_root(os.fspath(root))
        self.class_names = _list_classes(self.root, classes)
        self._names: list[str] = []
        self._starts = [0]  # Class c has the records from _starts[c] up to, not including, _starts[c + 1].
        for name in self.class_names:
            self._names.extend(_list_images(os.path.join(self.root, name)))
            self._starts.append(len(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> str:
        """Returns the path of a record's file."""
        return os.path.join(self.root, self.class_names[self._label(index)], self._names[index])

    def _label(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _open(self, index: int) -> tuple[str, int]:
        return self.path(index), self._label(index)

    def _substitutes(self, index: int) -> Iterator[int]:
        """Yields the neighbors from near to far, first those in the class, then all."""
        label = self._label(index)
        yield from image_source.nearest(index, self._starts[label], self._starts[label + 1])
        yield from image_source.nearest(index, 0, len(self))


def _folders(root: str) -> list[str]:
    """Returns the sorted names of the folders in a folder."""
    return sorted(entry.name for entry in os.scandir(root) if _holds(entry.is_dir) and not entry.name.startswith("."))


def _images(folder: str) -> list[str]:
    """Returns the sorted names of the image files directly in a folder; only regular files count."""
    entries = [
        entry
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".")
    ]
    names = sorted(entry.name for entry in entries if _holds(entry.is_file))
    if len(names) < len(entries):
        left_out = sorted({entry.name for entry in entries} - set(names))
        more = f", and {len(left_out) - 10} more" if len(left_out) > 10 else ""
        logging.warning(
            "%s: left out, as they are no regular files (but folders, broken links, named pipes, …): %s%s.",
            folder,
            ", ".join(left_out[:10]),
            more,
        )
    return names


def _holds(test: Callable[[], bool]) -> bool:
    """Returns the result of `is_dir` or `is_file`, which raise for a symbolic link that leads to itself."""
    try:
        return test()
    except OSError:
        return False


def _list_classes(root: str, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the class names in the order of their labels, after checking that each has a folder."""
    found = _folders(root)
    if classes is None:
        return tuple(found)
    missing = sorted(set(classes) - set(found))
    if missing:
        few = ", ".join(found[:10]) + (f", and {len(found) - 10} more" if len(found) > 10 else "")
        more = f", and {len(missing) - 10} more," if len(missing) > 10 else ""
        raise ValueError(f"classes {', '.join(missing[:10])}{more} have no folder in {root!r}; it has {few or 'none'}.")
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(f"classes={tuple(classes)} must be one or more different names of folders in {root!r}.")
    return tuple(classes)


def _list_images(folder: str) -> list[str]:
    """Returns the sorted names of the images of a class, after checking that there are some."""
    names = _images(folder)
    if names:
        return names
    inner = _folders(folder)
    if inner:
        raise ValueError(
            f"Class folder {folder!r} has no images but folders ({', '.join(inner[:3])}, …): root is too high. "
            f"Set root to the folder of one split; {_LAYOUTS}."
        )
    raise ValueError(
        f"Class folder {folder!r} has no images ({', '.join(EXTENSIONS)}). Add some, remove the folder, "
        "or leave it out of `classes`."
    )
