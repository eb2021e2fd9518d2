"""Pickles inside PyTorch files: the types of tensors, placeholders for all else, and a writer.

The reader is eqjax.convert.torch_unpickle.
"""

import dataclasses
import io
import itertools
import math
import pickle
from typing import Any

import ml_dtypes
import numpy as np

from eqjax.messages import shorten

AGAIN = "Download or copy it again."

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
DTYPES = {name: np.dtype(name) for name in STORAGES.values() if name != "bfloat16"}
DTYPES |= {name: np.dtype(name) for name in ("uint16", "uint32", "uint64")}
DTYPES |= {name: np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}
DTYPE_ALIASES = dict(float="float32", double="float64", half="float16", long="int64", int="int32", short="int16")


class CheckpointFileError(ValueError):
    """A file is not a readable PyTorch checkpoint; the message names it, the cause and the remedy."""


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Inert:
    """Placeholder for an object, class or function that the reader does not know; it does nothing.

    Attributes:
      name: the global's full name, such as "argparse.Namespace".
      state: the attributes that the file gives the object, a dict (empty where it gives none).
    """

    name: str = "unknown"
    state: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<inert {shorten(self.name)}>"


def describe(value: Any) -> str:
    """Describes an unexpected value in a message that begins with "… is"."""
    if isinstance(value, Inert):
        return f"made by {shorten(value.name)}, which is unknown here and is never called; save plain tensors instead"
    return f"of type {type(value).__name__}"


class Writer:
    """Emits the pickle of a tree, opcode by opcode: the standard pickler would import torch.

    Attributes:
      arrays: contents of the storages named "0", "1", …
    """

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self._out = io.BytesIO()
        self._keys: dict[int, int] = {}
        self._storages = {DTYPES[dtype]: name for name, dtype in STORAGES.items()}

    def pickle(self) -> bytes:
        """Returns the finished pickle."""
        return b"\x80\x02" + self._out.getvalue() + pickle.STOP

    def write(self, value: Any) -> None:
        """Appends a value of a type that `eqjax.convert.torch_archive.save` allows."""
        if isinstance(value, (np.ndarray, np.generic)):
            self._tensor(np.asarray(value))
        elif isinstance(value, dict):
            self._emit(pickle.EMPTY_DICT + pickle.MARK)
            for item in itertools.chain.from_iterable(value.items()):
                self.write(item)
            self._emit(pickle.SETITEMS)
        elif isinstance(value, (list, tuple)):
            is_list = isinstance(value, list)
            self._emit(pickle.EMPTY_LIST + pickle.MARK if is_list else pickle.MARK)
            for item in value:
                self.write(item)
            self._emit(pickle.APPENDS if is_list else pickle.TUPLE)
        elif value is None or isinstance(value, (str, bool, int, float)):
            self._emit(pickle.dumps(value, protocol=2)[2:-1])
        else:
            raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written to a PyTorch file.")

    def _emit(self, opcodes: bytes) -> None:
        self._out.write(opcodes)

    def _tensor(self, array: np.ndarray) -> None:
        storage = self._storages.get(array.dtype)
        if storage is None:
            raise TypeError(f"PyTorch files have no tensors of dtype {array.dtype}.")
        if id(array) not in self._keys:
            self._keys[id(array)] = len(self.arrays)
            self.arrays.append(array)
        strides = [math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
        self._emit(b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK + pickle.MARK)
        self.write("storage")
        self._emit(f"ctorch\n{storage}\n".encode())
        for item in (str(self._keys[id(array)]), "cpu", array.size):
            self.write(item)
        self._emit(pickle.TUPLE + pickle.BINPERSID)
        for item in (0, array.shape, tuple(strides), False):
            self.write(item)
        self._emit(b"ccollections\nOrderedDict\n)R" + pickle.TUPLE + pickle.REDUCE)
