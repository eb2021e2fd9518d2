"""The pickles inside PyTorch files: a reader that executes nothing, and a writer.

A pickle is a program that may call any function by its name. The reader knows the few names that
tensors need; every other one, harmless (argparse.Namespace) or not (os.system), becomes an `Inert`
placeholder: nothing is imported, nothing is called. A tensor that depends on such a name becomes a
placeholder as well, and whoever asks for it gets an error that tells the name.
"""

import io
import itertools
import math
import pickle
import pickletools

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


class CheckpointFileError(ValueError):
    """A file is not a readable PyTorch checkpoint; the message names it, the cause and the way out."""


class Inert:
    """Stands for an object whose class or function the reader does not know; it does nothing.

    Attributes:
      name: the global's full name, such as "argparse.Namespace".
      state: the attributes that the file gives the object, a dict (empty where it gives none).
    """

    name = "unknown"

    def __new__(cls, *unused_args, **unused_kwargs):
        """Takes whatever a file passes."""
        self = super().__new__(cls)
        self.state = {}
        return self

    def __init__(self, *unused_args, **unused_kwargs):
        pass

    def __setstate__(self, state):
        self.state = state if isinstance(state, dict) else {"state": state}

    def __setitem__(self, key, value):
        pass

    def __call__(self, *unused_args, **unused_kwargs):
        """Calls nothing."""
        return self

    def _ignore(self, *unused_items):
        pass

    append = extend = add = _ignore

    def __repr__(self):
        return f"<inert {self.name}>"


def describe(value):
    """What `value` is instead of the expected thing, for messages."""
    if isinstance(value, Inert) or (isinstance(value, type) and issubclass(value, Inert)):
        return f"made by {value.name}, which is unknown here and is never called; save plain tensors instead"
    return f"of type {type(value).__name__}"


class _Mapping(dict):
    """Stands for OrderedDict; attributes that PyTorch hangs onto it (_metadata) are dropped."""

    def __setstate__(self, state):
        pass


class _Scalar:
    """A storage type or dtype."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a dtype has no state")


class _Storage:
    """The bytes of a storage (None while a legacy file is being measured) and their type."""

    def __init__(self, data, dtype):
        self.data, self.dtype = data, dtype


class Unpickler(pickle.Unpickler):
    """Builds containers, arrays and placeholders; see `unpickle`."""

    def __init__(self, path, file, storage):
        super().__init__(file, encoding="utf-8")
        self._path, self._storage = path, storage
        self._known = {
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

    def find_class(self, module, name):
        """What stands for a global: never the global itself."""
        full = f"{module}.{name}"
        if full not in self._known:
            self._known[full] = type("Inert", (Inert,), {"name": full})
        return self._known[full]

    def persistent_load(self, pid):
        """The storage that a tensor's entry refers to."""
        if isinstance(pid, tuple) and len(pid) >= 2 and pid[0] == "module":
            return pid[1]  # Legacy files wrap classes together with their source text.
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r}")
        _, scalar, key, _, numel, *view = pid
        if not isinstance(scalar, _Scalar):
            return scalar() if isinstance(scalar, type) and issubclass(scalar, Inert) else Inert()
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

    def _size(self, sizes=()):
        return tuple(sizes)

    def _parameter(self, data, *unused):
        return data

    def _from_type(self, rebuild, unused_type, args, unused_state):
        return rebuild(*args) if rebuild in (self._tensor, self._tensor_v3, self._parameter) else rebuild

    def _tensor_v3(self, storage, offset, size, stride, requires_grad, hooks, scalar, metadata=None):
        if not isinstance(scalar, _Scalar):
            return scalar
        return self._tensor(storage, offset, size, stride, dtype=scalar.dtype)

    def _tensor(self, storage, offset, size, stride, *unused, dtype=None):
        """The view of a storage that a tensor is; a storage that is inert makes the tensor inert."""
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


def unpickle(path, file, storage=None):
    """Reads the next pickle of `file` and leaves the file standing behind it.

    Args:
      path: what messages call the file.
      file: binary file.
      storage: `storage(key, itemsize)` gives the bytes of a storage (uint8), or None while sizes are
        being collected; None where the pickle has no tensors.

    Raises:
      CheckpointFileError: a tensor that does not fit its storage.
      Exception: of any kind, for a damaged pickle.
    """
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        # Python allocates its memo up to the largest index: one beyond the opcodes is an attack.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count:
            raise CheckpointFileError(f"{path} holds a malformed pickle (memo index {argument}); refused.")
    end = file.tell()
    file.seek(start)
    value = Unpickler(path, file, storage).load()
    file.seek(end)
    return value


class Writer:
    """Emits the pickle of a tree, opcode by opcode: the standard pickler would import torch.

    Attributes:
      arrays: what the storages named "0", "1", … hold.
    """

    def __init__(self):
        self.arrays = []
        self._out, self._keys = io.BytesIO(), {}
        self._storages = {_DTYPES[dtype]: name for name, dtype in _STORAGES.items()}

    def pickle(self):
        """The finished pickle, bytes."""
        return b"\x80\x02" + self._out.getvalue() + pickle.STOP

    def write(self, value):
        """Appends a value: see `eqjax.convert.torch_archive.save` for the types."""
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

    def _emit(self, opcodes):
        self._out.write(opcodes)

    def _tensor(self, array):
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
