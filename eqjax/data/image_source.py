"""Replaces, counts and bounds corrupt images, for all sources of files."""

import abc
from collections.abc import Iterator
import io
import operator
import threading
from typing import Any, SupportsIndex

from absl import logging

from eqjax.data.transforms import ResizeShorterSide
from eqjax.image_files import MAX_PIXELS, ImageError, decode
from eqjax.typing import Record


def nearest(index: int, start: int, stop: int) -> Iterator[int]:
    """Yields the other integers in [start, stop), nearest to `index` first; of two equally near, the larger first.

    Example:
      >>> list(nearest(1, 0, 4))
      [2, 0, 3]
    """
    for distance in range(1, stop - start):
        for candidate in (index + distance, index - distance):
            if start <= candidate < stop:
                yield candidate


class SourceChangedError(OSError):
    """Files were replaced while they are read from, so that labels and images may no longer belong together."""


class ImageSource(abc.ABC):
    """Grain source of {"image": uint8 [H, W, 3], "label": int} that tolerates corrupt images.

    A corrupt image is logged once, counted, and replaced by a near one that can be decoded. The replacement depends on
    the files alone, never on the order of reads.

    Up to max(1, max_corrupt_fraction × records) corrupt images are tolerated, so that a single one never ends a run on
    a small data set; max_corrupt_fraction = 0 tolerates none. Images are counted when they are read. Every worker
    process has a copy of the source, and counts, logs and bounds the corrupt images that it reads itself.

    Attributes:
      class_names: names of the labels.
      max_corrupt_fraction: largest tolerated fraction of corrupt images.
    """

    class_names: tuple[str, ...]
    max_corrupt_fraction: float

    def __init__(
        self,
        max_corrupt_fraction: float,
        resize: ResizeShorterSide | None,
        draft: bool,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Stores how to decode.

        Args:
          max_corrupt_fraction: largest tolerated fraction of corrupt images, in [0, 1).
          resize: the wanted size; None keeps the size of the file.
          draft: whether large JPEGs may be halved during decoding; see `image_files.decode`.
          max_pixels: largest number of pixels of a file; larger images count as corrupt.

        Raises:
          ValueError: `max_corrupt_fraction` is out of range.
        """
        if not 0 <= max_corrupt_fraction < 1:
            raise ValueError(f"max_corrupt_fraction={max_corrupt_fraction} must be in [0, 1).")
        self.max_corrupt_fraction = max_corrupt_fraction
        self._output_size = resize.output_size if resize else None
        self._draft, self._max_pixels = draft, max_pixels
        self._errors: dict[int, str] = {}  # Index of a corrupt image → its error.
        self._lock = threading.Lock()  # Grain reads from several threads.

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def path(self, index: int) -> str:
        """Returns the path of a record, for messages."""

    @abc.abstractmethod
    def _open(self, index: int) -> tuple[str | io.BytesIO, int]:
        """Returns a record's image file and label."""

    @abc.abstractmethod
    def _substitutes(self, index: int) -> Iterator[int]:
        """Yields the records that may replace a corrupt one, the first choice first."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    @property
    def num_corrupt(self) -> int:
        """Number of different corrupt images that this process has read so far."""
        return len(self._errors)

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = operator.index(index)
        record = self._read(index)
        substitutes = self._substitutes(index)
        while record is None:
            candidate = next(substitutes, None)
            if candidate is None:
                raise ValueError(f"No image can be decoded; the last error, {self.path(index)}: {self._errors[index]}")
            record = self._read(candidate)
        return record

    def _read(self, index: int) -> Record | None:
        """Returns a record, or None if its image is corrupt."""
        if index in self._errors:
            self._check_fraction()
            return None
        try:
            file, label = self._open(index)
            image = decode(file, self._output_size, draft=self._draft, max_pixels=self._max_pixels)
            return {"image": image, "label": label}
        except (MemoryError, SourceChangedError):  # Not the fault of this image.
            raise
        except Exception as error:
            # An image that cannot be decoded, a file that was removed, a damaged record of a TFDS file.
            reason = str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
            self._count_corrupt(index, reason)
            return None

    def _count_corrupt(self, index: int, reason: str) -> None:
        with self._lock:
            is_new = index not in self._errors
            self._errors[index] = reason
        if is_new:
            logging.warning("Cannot decode %s (%s); a neighboring image replaces it.", self.path(index), reason)
        self._check_fraction()

    def _check_fraction(self) -> None:
        """Raises if too many images are corrupt, also on every later visit to a corrupt image."""
        with self._lock:
            corrupt = sorted(self._errors)
        allowed = max(1, int(self.max_corrupt_fraction * len(self))) if self.max_corrupt_fraction > 0 else 0
        if len(corrupt) > allowed:
            paths = ", ".join(map(self.path, corrupt[:10]))
            more = f", and {len(corrupt) - 10} more" if len(corrupt) > 10 else ""
            raise ValueError(
                f"{len(corrupt)} of {len(self)} images ({len(corrupt) / len(self):.2%}) cannot be decoded, and "
                f"max_corrupt_fraction={self.max_corrupt_fraction} tolerates {allowed}: {paths}{more}. "
                "Repair or remove them, or increase max_corrupt_fraction."
            )
