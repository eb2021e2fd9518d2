"""The bytes of a pickle, read within bounds."""

import mmap
import pickle

from eqjax.convert.torch_pickle import CheckpointFileError

# Tensors are outside the pickle: the largest published training states have one of a few MB.
MAX_PICKLE_BYTES = 2**26
# Module and name of a class: the longest in Python's own library has 60 characters.
MAX_NAME = 512


class PickleBytes:
    """A position in the bytes of a pickle, which moves as values are taken.

    Attributes:
      position: position in the data, behind the pickle once it is read.
    """

    def __init__(self, path: str, data: bytes | mmap.mmap, start: int) -> None:
        self.position = start
        self._path, self._data = path, data
        self._end = min(len(data), start + MAX_PICKLE_BYTES)

    def _take(self, size: int) -> bytes:
        """Returns the next bytes."""
        start = self.position
        if size > self._end - start:
            if self._end < len(self._data):
                raise self._refused(f"of more than {MAX_PICKLE_BYTES} bytes")
            raise pickle.UnpicklingError("the pickle has no end")
        self.position = start + size
        return self._data[start : start + size]

    def _take_byte(self) -> int:
        value = self._data[self.position]  # IndexError: the pickle has no end.
        self.position += 1
        return value

    def _take_int(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "little", signed=signed)

    def _take_line(self) -> str:
        end = self._data.find(b"\n", self.position, min(self.position + MAX_NAME + 1, self._end))
        if end < 0:
            raise pickle.UnpicklingError(f"a name without an end within {MAX_NAME} bytes")
        return self._take(end + 1 - self.position)[:-1].decode()

    def _refused(self, reason: str) -> CheckpointFileError:
        return CheckpointFileError(f"{self._path} holds a pickle {reason}, as no checkpoint does; refused.")
