"""Reads the pickles inside PyTorch files: executes nothing, and works within fixed bounds.

Of the names in a pickle, this module knows the few that tensors need; every other name, harmless (argparse.Namespace)
or not (os.system), becomes an `Inert` placeholder. A tensor that depends on such a name becomes a placeholder as well,
and using it raises an error with the name.
"""

from collections.abc import Callable
import dataclasses
import math
import mmap
import pickle
from typing import Any

from jaxtyping import UInt8
import numpy as np

from eqjax.convert.pickle_machine import MAX_ARGUMENTS, Known, PickleMachine, Replacement
from eqjax.convert.torch_pickle import AGAIN, DTYPE_ALIASES, DTYPES, STORAGES, CheckpointFileError, Inert
from eqjax.messages import shorten

# numpy's bound is 64; no layer has more than 5.
MAX_DIMENSIONS = 32

# Returns the bytes of a storage, by its key and the size of an item; None while sizes are being collected.
StorageReader = Callable[[str, int], UInt8[np.ndarray, "n"] | None]


def unpickle(
    path: str,
    data: bytes | mmap.mmap,
    start: int = 0,
    storage: StorageReader | None = None,
    max_tensor_bytes: int = 0,
) -> tuple[Any, int]:
    """Reads the pickle that begins at a position.

    Args:
      path: name of the file for messages.
      data: content of the file.
      start: position of the pickle.
      storage: returns the bytes of a storage; None: the pickle has no tensors.
      max_tensor_bytes: bound of the bytes of all tensors together; tensors may share storages.

    Returns:
      The pickled object, and the position behind the pickle.

    Raises:
      CheckpointFileError: a bound is exceeded, or a tensor does not fit its storage.
      Exception: the pickle is damaged; the error may be of any type.
    """
    reader = _Unpickler(path, data, start, storage, max_tensor_bytes)
    value = reader.load()
    return value, reader.position


@dataclasses.dataclass(frozen=True, eq=False)
class _Scalar(Replacement):
    """A storage type or dtype."""

    dtype: np.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    """The bytes of a storage (None while sizes are being collected) and their type."""

    data: UInt8[np.ndarray, "n"] | None
    dtype: np.dtype


_SCALARS = (
    {name: DTYPES[dtype] for name, dtype in STORAGES.items()}
    | dict(DTYPES)
    | {alias: DTYPES[name] for alias, name in DTYPE_ALIASES.items()}
    | {"storage.UntypedStorage": np.dtype(np.uint8), "UntypedStorage": np.dtype(np.uint8)}
)


class _Unpickler(PickleMachine):
    """Reads a pickle whose references are storages of tensors."""

    def __init__(
        self, path: str, data: bytes | mmap.mmap, start: int, storage: StorageReader | None, max_tensor_bytes: int
    ) -> None:
        super().__init__(path, data, start)
        self._storage, self._max_tensor_bytes, self._tensor_bytes = storage, max_tensor_bytes, 0
        tensor, parameter = Known(self._tensor), Known(self._parameter)
        self._rebuilders = (tensor, parameter, tensor_v3 := Known(self._tensor_v3))
        self._globals |= {
            "torch.Size": Known(self._size),
            "torch._utils._rebuild_tensor": tensor,
            "torch._utils._rebuild_tensor_v2": tensor,
            "torch._utils._rebuild_tensor_v3": tensor_v3,
            "torch._utils._rebuild_parameter": parameter,
            "torch._utils._rebuild_parameter_with_state": parameter,
            "torch._tensor._rebuild_from_type_v2": Known(self._from_type),
        }
        self._globals |= {f"torch.{name}": _Scalar(dtype) for name, dtype in _SCALARS.items()}

    def persistent(self, reference: Any) -> Any:
        """Returns the storage that a tensor's entry refers to."""
        kind = reference[0] if isinstance(reference, tuple) and 2 <= len(reference) <= MAX_ARGUMENTS else None
        if isinstance(kind, str) and kind == "module":
            return reference[1]  # Legacy files wrap classes together with their source text.
        if not isinstance(kind, str) or kind != "storage" or len(reference) < 5:
            raise pickle.UnpicklingError("an unknown persistent id")
        _, scalar, key, _, numel, *view = reference
        if not isinstance(scalar, _Scalar):
            return Inert(scalar.name) if isinstance(scalar, Inert) else Inert()
        if self._storage is None:
            raise pickle.UnpicklingError("a tensor where none is expected")
        if not isinstance(key, (str, int)):
            raise pickle.UnpicklingError(f"a storage whose key is a {type(key).__name__}")
        data, itemsize = self._storage(str(key), scalar.dtype.itemsize), scalar.dtype.itemsize
        start, numel = _view(view[0]) if view and view[0] else _integers((0, numel))
        if data is not None:
            if min(start, numel) < 0 or (start + numel) * itemsize > data.size:
                raise CheckpointFileError(
                    f"{self._path}: storage {shorten(str(key))} has {data.size} bytes, fewer than its {numel} values "
                    f"need: damaged. {AGAIN}"
                )
            data = data[start * itemsize : (start + numel) * itemsize]
        return _Storage(data, scalar.dtype)

    def _size(self, sizes: Any = ()) -> tuple[int, ...]:
        return _integers(sizes)

    def _parameter(self, data: Any, *_: Any) -> Any:
        return data

    def _from_type(self, rebuild: Any, _type: Any, arguments: Any, _state: Any) -> Any:
        return self._call(rebuild, arguments) if any(rebuild is known for known in self._rebuilders) else rebuild

    def _tensor_v3(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        _requires_grad: Any,
        _hooks: Any,
        scalar: Any,
        _metadata: Any = None,
    ) -> Any:
        if not isinstance(scalar, _Scalar):
            return scalar
        return self._tensor(storage, offset, size, stride, dtype=scalar.dtype)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any, dtype: np.dtype | None = None) -> Any:
        """Returns a tensor as a view of its storage; an inert storage makes the tensor inert."""
        if not isinstance(storage, _Storage) or storage.data is None:
            return storage
        (offset,), size, stride = _integers((offset,)), _integers(size), _integers(stride)
        dtype = dtype or storage.dtype
        available = storage.data.size // dtype.itemsize
        # Overlapping (expanded) tensors are refused too: copying one may take any amount of memory.
        numel = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min(offset, *size, *stride, 0) < 0 or numel > available or (numel and last >= available):
            raise CheckpointFileError(
                f"{self._path}: a tensor of shape {shorten(str(size))}, strides {shorten(str(stride))} and offset "
                f"{offset} does not fit its storage of {available} values: damaged. {AGAIN}"
            )
        self._tensor_bytes += numel * dtype.itemsize
        if self._tensor_bytes > self._max_tensor_bytes:
            raise self._refused(f"whose tensors share storages and together have over {self._max_tensor_bytes} bytes")
        if not numel:
            return np.zeros(size, dtype)
        return np.ndarray(
            size, dtype, storage.data, offset * dtype.itemsize, [step * dtype.itemsize for step in stride]
        )


def _integers(values: Any) -> tuple[int, ...]:
    """Checks a few integers, such as a shape; their size in bits is bounded already."""
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
        raise pickle.UnpicklingError(f"a shape that is no tuple of at most {MAX_DIMENSIONS} integers")
    if not all(isinstance(value, int) for value in values):
        raise pickle.UnpicklingError("a shape, offset or size that is no integer")
    return tuple(values)


def _view(view: Any) -> tuple[int, ...]:
    """Returns offset and size of a legacy view (key, offset, size) of a storage."""
    if not isinstance(view, tuple) or len(view) != 3:
        raise pickle.UnpicklingError("a view of a storage without offset and size")
    return _integers(view[1:])
