"""Pictures in class folders, `root/class_name/picture.jpg`, as a Grain source that survives broken files."""

from collections.abc import Iterator, Sequence
import os
import threading

from absl import logging
import numpy as np
from PIL import Image

from eqjax.data import transforms

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")


def decode(path: str) -> np.ndarray:
    """Reads a picture file as [H, W, 3] uint8 RGB.

    Grey pictures are repeated, transparency is dropped, EXIF rotation is not applied.
    """
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _list_classes(root: str, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the class names in the order of their labels, after checking that each has a folder."""
    if not os.path.isdir(root):
        raise FileNotFoundError(f"root={root!r} is not a folder; expected root/class_name/picture.jpg.")
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if classes is None:
        if not found:
            raise ValueError(f"{root!r} has no class folders; expected root/class_name/picture.jpg.")
        return tuple(found)
    missing = sorted(set(classes) - set(found))
    if missing:
        few = ", ".join(found[:10]) + (f", and {len(found) - 10} more" if len(found) > 10 else "")
        raise ValueError(f"classes {', '.join(missing)} have no folder in {root!r}; it has {few or 'none'}.")
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(f"classes={tuple(classes)} must be one or more different names of folders in {root!r}.")
    return tuple(classes)


def _list_pictures(folder: str) -> list[str]:
    """Returns the sorted names of the picture files directly in a folder."""
    names = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()
    )
    if not names:
        raise ValueError(
            f"Class folder {folder!r} has no pictures ({', '.join(EXTENSIONS)}). Add some, remove the folder, "
            "or leave it out of `classes`."
        )
    return names


def _nearest(index: int, start: int, stop: int) -> Iterator[int]:
    """Yields the other numbers in [start, stop), nearest to `index` first; of two equally near, the larger first."""
    for distance in range(1, stop - start):
        for candidate in (index + distance, index - distance):
            if start <= candidate < stop:
                yield candidate


class FolderSource:
    """Grain source of the pictures under `root/class_name/`, sorted by class and then by file name.

    Record i is {"image": [H, W, 3] uint8 at the file's own size, "label": int}. A file that cannot be decoded is
    logged once, counted, and replaced by the nearest good record of its class (i + 1, i - 1, i + 2, …), or, where its
    class has none, by the nearest good record of all. The replacement depends on the files alone, never on what was
    read before.

    Up to max(1, max_bad_share × records) bad files are tolerated, so that one bad file never ends a run on a small
    folder; max_bad_share = 0 tolerates none. Files are counted when they are met. Worker processes have a copy of the
    source each, so each counts, logs and bounds the bad files that it meets itself.
    """

    def __init__(self, root: str, classes: Sequence[str] | None = None, max_bad_share: float = 0.01):
        """Lists the files; none is opened.

        Args:
            root: Folder of class folders.
            classes: Names of class folders in the order of their labels; all, sorted, when None.
            max_bad_share: Largest tolerated share of undecodable files, in [0, 1).

        Raises:
            FileNotFoundError: If `root` is not a folder.
            ValueError: If there are no classes, a listed class has no folder, a class has no pictures, or the share
                is out of range.
        """
        if not 0 <= max_bad_share < 1:
            raise ValueError(f"max_bad_share={max_bad_share} must lie in [0, 1).")
        self.root = os.fspath(root)
        self.class_names = _list_classes(self.root, classes)
        self.max_bad_share = max_bad_share
        self._names: list[str] = []
        self._starts = [0]  # Class c holds the records from _starts[c] up to, not including, _starts[c + 1].
        for name in self.class_names:
            self._names.extend(_list_pictures(os.path.join(self.root, name)))
            self._starts.append(len(self._names))
        self._bad: dict[int, str] = {}  # Record number -> the error that its file raised.
        self._lock = threading.Lock()  # Grain reads from several threads.

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def num_bad(self) -> int:
        """Number of different undecodable files that this process has met so far."""
        return len(self._bad)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> transforms.Record:
        for candidate in self._candidates(int(index)):
            image = self._read(candidate)
            if image is not None:
                return {"image": image, "label": self._label(candidate)}
        raise ValueError(f"No picture under {self.root!r} can be decoded; the last error was: {self._bad[index]}")

    def path(self, index: int) -> str:
        """Returns the path of record `index`'s file."""
        return os.path.join(self.root, self.class_names[self._label(index)], self._names[index])

    def _label(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _candidates(self, index: int) -> Iterator[int]:
        """Yields `index`, then its neighbours from near to far: those of its class first, then all."""
        label = self._label(index)
        yield index
        yield from _nearest(index, self._starts[label], self._starts[label + 1])
        yield from _nearest(index, 0, len(self))

    def _read(self, index: int) -> np.ndarray | None:
        """Decodes record `index`; None, logged and counted, where its file is bad."""
        if index in self._bad:
            self._check_share()
            return None
        try:
            return decode(self.path(index))
        except MemoryError:  # Says nothing about the file.
            raise
        except Exception as error:
            # Broken bytes make Pillow raise OSError, SyntaxError, ValueError, struct.error, zlib.error, …
            self._note_bad(index, f"{type(error).__name__}: {error}")
            return None

    def _note_bad(self, index: int, reason: str) -> None:
        with self._lock:
            first_time = index not in self._bad
            self._bad[index] = reason
        if first_time:
            logging.warning("Cannot decode %s (%s); a neighbouring picture takes its place.", self.path(index), reason)
        self._check_share()

    def _check_share(self) -> None:
        """Raises when more files are bad than tolerated; and again on every later visit to a bad one."""
        with self._lock:
            bad = sorted(self._bad)
        allowed = max(1, int(self.max_bad_share * len(self))) if self.max_bad_share > 0 else 0
        if len(bad) > allowed:
            paths = ", ".join(self.path(i) for i in bad[:10]) + (f", and {len(bad) - 10} more" if len(bad) > 10 else "")
            raise ValueError(
                f"{len(bad)} of {len(self)} pictures ({len(bad) / len(self):.2%}) cannot be decoded, and "
                f"max_bad_share={self.max_bad_share} tolerates {allowed}: {paths}. "
                "Repair or remove them, or raise max_bad_share."
            )
