"""Decoding images, and what all sources of files share: a broken one is replaced, counted and bounded."""

import abc
from collections.abc import Iterator
import threading
from typing import BinaryIO

from absl import logging
import numpy as np
from PIL import Image

from eqjax.data import transforms


def decode(file: str | BinaryIO, fit: transforms.ResizeShorterSide | None = None, draft: bool = False) -> np.ndarray:
    """Reads an image file as [H, W, 3] uint8 RGB, and resizes it, bilinear and antialiased.

    Grey images are repeated, transparency is dropped, EXIF rotation is not applied.

    Args:
        file: Path, or an open binary file.
        fit: The size wanted; the file's own when None. Resizing here saves a copy of the whole image.
        draft: Lets the JPEG decoder halve an image (once or more) that stays at least as large as wanted, before
            the resize. Without effect on other images.
    """
    with Image.open(file) as image:
        rows, columns = fit.size(image.height, image.width) if fit else (image.height, image.width)
        if draft:
            image.draft("RGB", (columns, rows))
        rgb = image.convert("RGB")
        if rgb.size != (columns, rows):
            rgb = rgb.resize((columns, rows), Image.Resampling.BILINEAR)
        return np.asarray(rgb)


def nearest(index: int, start: int, stop: int) -> Iterator[int]:
    """Yields the other numbers in [start, stop), nearest to `index` first; of two equally near, the larger first."""
    for distance in range(1, stop - start):
        for candidate in (index + distance, index - distance):
            if start <= candidate < stop:
                yield candidate


class ImageSource(abc.ABC):
    """Grain source of {"image": [H, W, 3] uint8, "label": int} that survives images that cannot be decoded.

    A bad image is logged once, counted, and replaced by a near good record, see the subclasses. The replacement
    depends on the files alone, never on what was read before.

    Up to max(1, max_corrupt_fraction × records) bad images are tolerated, so that one never ends a run on a small data set;
    max_corrupt_fraction = 0 tolerates none. They are counted when they are met. Worker processes have a copy of the source
    each, so each counts, logs and bounds the bad images that it meets itself.

    Attributes:
        class_names: Names of the labels.
    """

    class_names: tuple[str, ...]

    def __init__(self, max_corrupt_fraction: float, fit: transforms.ResizeShorterSide | None, draft: bool):
        """Takes the largest tolerated share of bad images, in [0, 1), and how to decode (see `decode`)."""
        if not 0 <= max_corrupt_fraction < 1:
            raise ValueError(f"max_corrupt_fraction={max_corrupt_fraction} must lie in [0, 1).")
        self.max_corrupt_fraction = max_corrupt_fraction
        self._fit, self._draft = fit, draft
        self._bad: dict[int, str] = {}  # Record number -> the error that it raised.
        self._lock = threading.Lock()  # Grain reads from several threads.

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def path(self, index: int) -> str:
        """Returns where record `index` lies, for messages."""

    @abc.abstractmethod
    def _open(self, index: int) -> tuple[str | BinaryIO, int]:
        """Returns record `index`'s image file and its label."""

    @abc.abstractmethod
    def _substitutes(self, index: int) -> Iterator[int]:
        """Yields the records that may take the place of `index`, the first choice first."""

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def num_corrupt(self) -> int:
        """Number of different undecodable images that this process has met so far."""
        return len(self._bad)

    def __getitem__(self, index: int) -> transforms.Record:
        index = int(index)
        record = self._read(index)
        substitutes = self._substitutes(index)
        while record is None:
            candidate = next(substitutes, None)
            if candidate is None:
                raise ValueError(f"No image can be decoded; the last error, {self.path(index)}: {self._bad[index]}")
            record = self._read(candidate)
        return record

    def _read(self, index: int) -> transforms.Record | None:
        """Decodes record `index`; None, logged and counted, where it is bad."""
        if index in self._bad:
            self._check_share()
            return None
        try:
            file, label = self._open(index)
            return {"image": decode(file, self._fit, self._draft), "label": label}
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
            logging.warning("Cannot decode %s (%s); a neighboring image takes its place.", self.path(index), reason)
        self._check_share()

    def _check_share(self) -> None:
        """Raises when more images are bad than tolerated; and again on every later visit to a bad one."""
        with self._lock:
            bad = sorted(self._bad)
        allowed = max(1, int(self.max_corrupt_fraction * len(self))) if self.max_corrupt_fraction > 0 else 0
        if len(bad) > allowed:
            paths = ", ".join(self.path(i) for i in bad[:10]) + (f", and {len(bad) - 10} more" if len(bad) > 10 else "")
            raise ValueError(
                f"{len(bad)} of {len(self)} images ({len(bad) / len(self):.2%}) cannot be decoded, and "
                f"max_corrupt_fraction={self.max_corrupt_fraction} tolerates {allowed}: {paths}. "
                "Repair or remove them, or raise max_corrupt_fraction."
            )
