"""The pickles inside PyTorch files: a reader that executes nothing, and a writer.

A pickle is a program that may call any function by its name. The reader knows the few names that
tensors need; every other one, harmless (argparse.Namespace) or not (os.system), becomes an `Inert`
placeholder: nothing is imported, nothing is called. A tensor that depends on such a name becomes a
placeholder as well, and using it raises an error with the name.
"""

from collections.abc import Callable, Sequence
import io
import itertools
import math
import mmap
import pickle
import pickletools
from typing import Any

from jaxtyping import UInt8
import ml_dtypes
import numpy as np

AGAIN = "Download or copy it again."

_STORAGES = {
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
_DTYPES = {name: np.dtype(name) for name in _STORAGES.values() if name != "bfloat16"}
_DTYPES |= {name: np.dtype(name) for name in ("uint16", "uint32", "uint64")}
_DTYPES |= {name: np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}
_DTYPE_ALIASES = dict(float="float32", double="float64", half="float16", long="int64", int="int32", short="int16")


# Returns the bytes of a storage, by its key and the size of an item; None while sizes are being collected.
StorageReader = Callable[[str, int], UInt8[np.ndarray, "n"] | None]


class CheckpointFileError(ValueError):
    """A file is not a readable PyTorch checkpoint; the message names it, the cause and the remedy."""


class Inert:
    """Placeholder for an object whose class or function the reader does not know; it does nothing.

    Attributes:
      name: the global's full name, such as "argparse.Namespace".
      state: the attributes that the file gives the object, a dict (empty where it gives none).
    """

    name: str = "unknown"
    state: dict[str, Any]

    def __new__(cls, *_args: Any, **_kwargs: Any) -> "Inert":
        """Accepts any arguments that a file passes."""
        self = super().__new__(cls)
        self.state = {}
        return self

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"state": state}

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __call__(self, *_args: Any, **_kwargs: Any) -> "Inert":
        """Returns itself and calls nothing."""
        return self

    def _ignore(self, *_items: Any) -> None:
        pass

    append = extend = add = _ignore

    def __repr__(self) -> str:
        return f"<inert {self.name}>"


def describe(value: Any) -> str:
    """Describes an unexpected value in a message that begins with "… is"."""
    if isinstance(value, Inert) or (isinstance(value, type) and issubclass(value, Inert)):
        return f"made by {value.name}, which is unknown here and is never called; save plain tensors instead"
    return f"of type {type(value).__name__}"


class _Mapping(dict):
    """Replaces OrderedDict; attributes that PyTorch adds to it (_metadata) are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Scalar:
    """A storage type or dtype."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a dtype has no state")


class _Storage:
    """The bytes of a storage (None while sizes are being collected) and their type."""

    def __init__(self, data: UInt8[np.ndarray, "n"] | None, dtype: np.dtype) -> None:
        self.data, self.dtype = data, dtype


class Unpickler(pickle.Unpickler):
    """Builds containers, arrays and placeholders; see `unpickle`."""

    def __init__(self, path: str, file: Any, storage: StorageReader | None) -> None:
        super().__init__(file, encoding="utf-8")
        self._path, self._storage = path, storage
        self._known: dict[str, Any] = {
            "collections.OrderedDict": _Mapping,
            "torch.Size": self._size,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_v3,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
            "torch._tensor._rebuild_from_type_v2": self._from_type,
            "torch.storage.UntypedStorage": _Scalar(np.dtype(np.uint8)),
            "torch.UntypedStorage": _Scalar(np.dtype(np.uint8)),
        }
        self._known |= {f"torch.{name}": _Scalar(_DTYPES[dtype]) for name, dtype in _STORAGES.items()}
        self._known |= {f"torch.{name}": _Scalar(dtype) for name, dtype in _DTYPES.items()}
        self._known |= {f"torch.{alias}": _Scalar(_DTYPES[name]) for alias, name in _DTYPE_ALIASES.items()}

    def find_class(self, module: str, name: str) -> Any:
        """Returns the replacement of a global, never the global itself."""
        full = f"{module}.{name}"
        if full not in self._known:
            self._known[full] = type("Inert", (Inert,), {"name": full})
        return self._known[full]

    def persistent_load(self, pid: Any) -> Any:
        """Returns the storage that a tensor's entry refers to."""
        if isinstance(pid, tuple) and len(pid) >= 2 and pid[0] == "module":
            return pid[1]  # Legacy files wrap classes together with their source text.
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r}")
        _, scalar, key, _, numel, *view = pid
        if not isinstance(scalar, _Scalar):
            return scalar() if isinstance(scalar, type) and issubclass(scalar, Inert) else Inert()
        if self._storage is None:
            raise pickle.UnpicklingError("a tensor where none is expected")
        data, itemsize = self._storage(str(key), scalar.dtype.itemsize), scalar.dtype.itemsize
        start, numel = (view[0][1], view[0][2]) if view and view[0] else (0, numel)
        if data is not None:
            if min(start, numel) < 0 or (start + numel) * itemsize > data.size:
                raise CheckpointFileError(
                    f"{self._path}: storage {key} has {data.size} bytes, fewer than its {numel} values need: damaged. "
                    f"{AGAIN}"
                )
            data = data[start * itemsize : (start + numel) * itemsize]
        return _Storage(data, scalar.dtype)

    def _size(self, sizes: Sequence[int] = ()) -> tuple[int, ...]:
        return tuple(sizes)

    def _parameter(self, data: Any, *_: Any) -> Any:
        return data

    def _from_type(self, rebuild: Any, _type: Any, args: Any, _state: Any) -> Any:
        return rebuild(*args) if rebuild in (self._tensor, self._tensor_v3, self._parameter) else rebuild

    def _tensor_v3(
        self,
        storage: Any,
        offset: int,
        size: Sequence[int],
        stride: Sequence[int],
        _requires_grad: Any,
        _hooks: Any,
        scalar: Any,
        _metadata: Any = None,
    ) -> Any:
        if not isinstance(scalar, _Scalar):
            return scalar
        return self._tensor(storage, offset, size, stride, dtype=scalar.dtype)

    def _tensor(
        self,
        storage: Any,
        offset: int,
        size: Sequence[int],
        stride: Sequence[int],
        *_: Any,
        dtype: np.dtype | None = None,
    ) -> Any:
        """Returns a tensor as a view of its storage; an inert storage makes the tensor inert."""
        if not isinstance(storage, _Storage) or storage.data is None:
            return storage
        dtype = dtype or storage.dtype
        available = storage.data.size // dtype.itemsize
        # Overlapping (expanded) tensors are refused too: copying one may take any amount of memory.
        numel = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min(offset, *size, *stride, 0) < 0 or numel > available or (numel and last >= available):
            raise CheckpointFileError(
                f"{self._path}: a tensor of shape {tuple(size)}, strides {tuple(stride)} and offset {offset} does not "
                f"fit its storage of {available} values: damaged. {AGAIN}"
            )
        if not numel:
            return np.zeros(size, dtype)
        return np.ndarray(
            size, dtype, storage.data, offset * dtype.itemsize, [step * dtype.itemsize for step in stride]
        )


def unpickle(path: str, file: io.BytesIO | mmap.mmap, storage: StorageReader | None = None) -> Any:
    """Reads the next pickle of a file, whose position is then behind it.

    Args:
      path: name of the file for messages.
      file: binary file.
      storage: returns the bytes of a storage; None: the pickle has no tensors.

    Returns:
      The pickled object.

    Raises:
      CheckpointFileError: a tensor does not fit its storage.
      Exception: the pickle is damaged; the error may be of any type.
    """
    start = file.tell()
    opened: Any = file  # Typeshed does not know that an mmap reads like a file.
    for count, (opcode, argument, _) in enumerate(pickletools.genops(opened)):
        # Python allocates its memo up to the largest index: one beyond the opcodes is an attack.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise CheckpointFileError(f"{path} holds a malformed pickle (memo index {argument}); refused.")
    end = file.tell()
    file.seek(start)
    value = Unpickler(path, file, storage).load()
    file.seek(end)
    return value


class Writer:
    """Emits the pickle of a tree, opcode by opcode: the standard pickler would import torch.

    Attributes:
      arrays: contents of the storages named "0", "1", …
    """

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self._out = io.BytesIO()
        self._keys: dict[int, int] = {}
        self._storages = {_DTYPES[dtype]: name for name, dtype in _STORAGES.items()}

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
