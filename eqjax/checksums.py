"""Checksums of arrays and of folders of files, which detect damaged data."""

from collections.abc import Mapping, Sequence
from concurrent import futures
import json
import os
from typing import Any
import zlib

from jaxtyping import Shaped
import numpy as np

from eqjax.io import read_json, write_json

# A CRC-32 of all bytes would take a noticeable part of reading a checkpoint. So blocks are first added up to one row
# of 64-bit words, at the speed of memory, and the CRC is that of the rows. Whatever changes within one word, or within
# one row, changes the checksum.
_ROW, _BLOCK = 8 << 10, 256 << 10
# Bytes that are read at once, a multiple of _BLOCK; they are added up while the processor's cache has them.
_BUFFER = _BLOCK
# Files are read in chunks, in several threads.
_CHUNK = 32 << 20
# Every process compares files up to this size, so that its check of them does not depend on another process.
_SMALL = 1 << 20
_NUM_THREADS = min(4, os.cpu_count() or 1)

# The file in which `write` keeps the checksums of a folder.
FILE_NAME = "checksums.json"


class ChecksumError(ValueError):
    """Data differ from those that were written."""


def update(value: int, data: bytes | memoryview | Shaped[np.ndarray, "..."]) -> int:
    """Returns the checksum of data that follow data with the checksum `value`; 0 if nothing precedes them.

    Example:
      >>> zeros = np.zeros(100_000)
      >>> update(0, zeros) == update(0, np.where(np.arange(100_000) == 70_000, 1e-300, zeros))
      False
    """
    view = (
        np.ascontiguousarray(data).reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else memoryview(data)
    )
    for start in range(0, len(view), _BLOCK):
        block = view[start : start + _BLOCK]
        whole = len(block) // _ROW * _ROW
        if whole:
            rows = np.frombuffer(block[:whole], "<u8").reshape(-1, _ROW // 8)
            value = zlib.crc32(np.add.reduce(rows, axis=0), value)
        value = zlib.crc32(block[whole:], value)
    return value


def of_arrays(arrays: Mapping[str, np.ndarray], fields: Any = None) -> int:
    """Returns the checksum of named arrays, with their dtypes and shapes, and of JSON values.

    Args:
      arrays: the arrays; their order does not matter.
      fields: JSON values that belong to them.

    Returns:
      The checksum.

    Example:
      >>> of_arrays({"w": np.zeros(2)}) == of_arrays({"w": np.zeros((1, 2))})
      False
    """
    value = update(0, json.dumps(fields, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        value = update(value, f"{name} {array.dtype.name} {array.shape}".encode())
        value = update(value, array)
    return value


def sign(values: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
    """Returns JSON values with a checksum of them, and of arrays that belong to them, under "checksum".

    Example:
      >>> verify(sign({"count": 3}))
      ({'count': 3}, True)
      >>> verify({**sign({"count": 3}), "count": 4})
      ({'count': 4}, False)
    """
    checked = json.loads(json.dumps(values))
    return {**checked, "checksum": of_arrays(arrays or {}, checked)}


def verify(values: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> tuple[dict[str, Any], bool]:
    """Returns the values that `sign` received, and whether values and arrays are still those."""
    rest = {name: value for name, value in values.items() if name != "checksum"}
    return rest, values.get("checksum") == of_arrays(arrays or {}, rest)


def of_files(folder: str, names: Sequence[str]) -> dict[str, Any]:
    """Returns {name: {"size": bytes, "checksums": one per chunk}} of files of a folder."""
    sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in names}
    chunks = [(name, start) for name, size in sizes.items() for start in range(0, size, _CHUNK)]
    found = {name: {"size": size, "checksums": []} for name, size in sizes.items()}
    for (name, _), value in zip(chunks, _of_chunks(folder, chunks), strict=True):
        found[name]["checksums"].append(value)
    return found


def write(folder: str | os.PathLike[str], files: Mapping[str, Any]) -> None:
    """Writes the checksums of a folder's files, from `of_files`, into the folder."""
    write_json(os.path.join(folder, FILE_NAME), sign({"files": files}))


def check(folder: str | os.PathLike[str], index: int = 0, count: int = 1) -> None:
    """Compares the files of a folder with the checksums in it; other files do not matter.

    Args:
      folder: the folder.
      index: index of this process.
      count: number of processes. Each compares its own part of the large files, and all of the small ones.

    Raises:
      FileNotFoundError: the folder has no checksums.
      ChecksumError: a file is lost, of another size, or has other content; the message names it.
    """
    folder = os.fspath(folder)
    try:
        saved, intact = verify(read_json(os.path.join(folder, FILE_NAME)))
        files: dict[str, Any] = saved["files"]
    except (ValueError, LookupError, TypeError, AttributeError):
        intact, files = False, {}
    if not intact:
        raise ChecksumError(f"{os.path.join(folder, FILE_NAME)} is damaged.")
    small, large = [], []
    for name, file in files.items():
        path = os.path.join(folder, name)
        size = os.path.getsize(path) if os.path.isfile(path) else -1
        if size != file["size"]:
            found = f"has {size} bytes" if size >= 0 else "is lost"
            raise ChecksumError(f"{path} {found}; {file['size']} bytes were written.")
        chunks = [((name, i * _CHUNK), value) for i, value in enumerate(file["checksums"])]
        (small if size <= _SMALL else large).extend(chunks)
    chunks = small + large[index::count]
    for ((name, _), written), found in zip(chunks, _of_chunks(folder, [chunk for chunk, _ in chunks]), strict=True):
        if found != written:
            raise ChecksumError(f"{os.path.join(folder, name)} has another content than was written: damaged on disk.")


def _of_chunks(folder: str, chunks: Sequence[tuple[str, int]]) -> list[int]:
    """Returns the checksums of chunks of files, given as (name, start)."""
    if len(chunks) < 2:
        return [_of_chunk(folder, *chunk) for chunk in chunks]
    with futures.ThreadPoolExecutor(min(_NUM_THREADS, len(chunks))) as pool:
        return list(pool.map(lambda chunk: _of_chunk(folder, *chunk), chunks))


def _of_chunk(folder: str, name: str, start: int) -> int:
    path = os.path.join(folder, name)
    value, remaining = 0, min(_CHUNK, os.path.getsize(path) - start)
    buffer = memoryview(bytearray(min(_BUFFER, remaining)))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while remaining:
            part, filled = buffer[:remaining], 0
            # One call may return less than was asked for, which would move the blocks.
            while filled < len(part) and (count := file.readinto(part[filled:])):
                filled += count
            if not filled:
                break
            value = update(value, part[:filled])
            remaining -= filled
    return value
