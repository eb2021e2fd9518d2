"""PyTorch checkpoint files without PyTorch: read without executing anything, and written.

A file of torch.save is a pickle that names tensors, and the raw bytes of their storages: today as
entries of a zip archive, before PyTorch 1.6 one after another ("legacy").
"""

import collections
from collections.abc import Iterator
import contextlib
import functools
import mmap
import os
import struct
from typing import Any, BinaryIO
import zipfile
import zlib

from jaxtyping import UInt8
import numpy as np

from eqjax import zip_files
from eqjax.convert.pickle_bytes import MAX_PICKLE_BYTES
from eqjax.convert.torch_pickle import AGAIN, CheckpointFileError, Inert, Writer, describe
from eqjax.convert.torch_unpickle import unpickle
from eqjax.io import atomic_write
from eqjax.messages import shorten

__all__ = ["AGAIN", "CheckpointFileError", "Inert", "load", "save", "state_dict"]

_LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_ZIP_START = b"PK\x03\x04"
# torch.save does not compress, and weights hardly can be: an archive that expands more than this is a bomb. The
# same for storages that several tensors share: raw and EMA weights may be the same, which makes two of each.
MAX_EXPANSION = 16
_BIG_ENDIAN = "was written on a big-endian machine; load and save it again on a little-endian one."


def load(path: str | os.PathLike[str]) -> Any:
    """Reads a file of torch.save (zip or legacy) and executes nothing.

    Time and memory are bounded by the constants of eqjax.convert.pickle_machine and its parts, and by `MAX_EXPANSION`.
    Arrays are read-only views of the mapped file, so that unused parts (the optimizer's state, say) take no memory.

    Args:
      path: file name.

    Returns:
      The saved object: tensors as numpy arrays (bfloat16 by ml_dtypes), mappings as dicts, objects of
      unknown classes as `Inert`.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointFileError: the file is of another kind, truncated, damaged, or made to take unbounded time or memory.
        Tensors that could not be built without calling an unknown function are `Inert`; `state_dict` refuses
        them.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        reason = "a directory" if os.path.isdir(path) else "no such file"
        raise FileNotFoundError(f"no PyTorch checkpoint at {path}: {reason}.")
    if os.path.getsize(path) == 0:
        raise CheckpointFileError(f"{path} is empty. {AGAIN}")
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    head = mapped[:512]
    with _explained(path):
        if head.startswith(_ZIP_START):
            return _load_zip(path, mapped)
        if head.startswith(_LEGACY_START):
            return _load_legacy(path, mapped)
    raise CheckpointFileError(f"{path} is not a PyTorch checkpoint: {_kind_of(head)}.")


def state_dict(value: Any, where: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Checks that a part of the result of `load` maps names to arrays, and returns it as a dict.

    Args:
      value: the part.
      where: file and key, for messages.

    Returns:
      {name: array}.

    Raises:
      CheckpointFileError: it is no mapping, or holds something other than arrays; if an unknown global
        stands in place of an array, the message names it.

    Example:
      >>> checkpoint = load("generator.ckpt")  # doctest: +SKIP
      >>> weights = state_dict(checkpoint["model_ema"], "generator.ckpt: model_ema")  # doctest: +SKIP
    """
    if not isinstance(value, dict):
        raise CheckpointFileError(f"{where} should map parameter names to tensors, and is {describe(value)}.")
    for name, array in value.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            name = shorten(name) if isinstance(name, str) else f"a name of type {type(name).__name__}"
            raise CheckpointFileError(f"{where}: {name!r} should be a tensor, and is {describe(array)}.")
    return dict(value)


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes a file that torch.load(weights_only=True) opens, whole or not at all.

    Args:
      path: file name.
      tree: nested dicts, lists and tuples of numpy arrays, strings, numbers and None. An array that
        occurs twice (the same object) is stored once.

    Raises:
      TypeError: a value has another type, or an array a dtype that PyTorch does not have.
    """
    path = os.fspath(path)
    writer = Writer()
    writer.write(tree)
    with atomic_write(path) as temporary, open(temporary, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        entries = {"data.pkl": writer.pickle(), "byteorder": b"little"}
        entries |= {f"data/{key}": array for key, array in enumerate(writer.arrays)}
        for name, content in (entries | {"version": b"3\n"}).items():
            _write_entry(file, archive, f"archive/{name}", content)


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turns any exception that a damaged file provokes into one clear error."""
    try:
        yield
    except (CheckpointFileError, MemoryError):
        raise
    except Exception as error:  # A damaged pickle can raise nearly anything.
        reason = shorten(f"{type(error).__name__}: {error}")
        raise CheckpointFileError(f"{path} is damaged or truncated ({reason}). {AGAIN}") from error


def _kind_of(head: bytes) -> str:
    """Describes a file that is not a checkpoint by its first bytes."""
    kinds = {
        b"\x89PNG": "a PNG image",
        b"\xff\xd8\xff": "a JPEG image",
        b"\x1f\x8b": "gzip-compressed; decompress it first",
        b"\x89HDF": "an HDF5 file",
        b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with git lfs pull",
        b"\x80": "a pickle that torch.save did not write",
    }
    for start, kind in kinds.items():
        if head.startswith(start):
            return kind
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "a safetensors file; those are read with the safetensors package"
    if all(byte in b"\t\n\r" or byte >= 32 for byte in head):
        return "text, perhaps an error page saved in place of a download"
    return "unknown contents"


# --- The two layouts -------------------------------------------------------------------------------


def _load_zip(path: str, mapped: mmap.mmap) -> Any:
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zip_files.open_zip(path))
        except zipfile.BadZipFile as error:
            raise CheckpointFileError(
                f"{path} begins as a PyTorch file, but its directory cannot be read ({error}): truncated. {AGAIN}"
            ) from error
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointFileError(f"{path} is a zip archive that torch.save did not write (an .npz, perhaps).")
        _check_entries(path, archive.infolist(), len(mapped))
        root = pickles[0][: -len("data.pkl")]
        if root + "constants.pkl" in entries:
            raise CheckpointFileError(f"{path} is a TorchScript program, no checkpoint; save its state_dict().")
        if entries[pickles[0]].file_size > MAX_PICKLE_BYTES:
            raise CheckpointFileError(
                f"{path} holds a pickle of {entries[pickles[0]].file_size} bytes; checkpoints keep their tensors "
                f"outside it, and more than {MAX_PICKLE_BYTES} bytes are refused."
            )

        @functools.cache
        def read(name: str) -> UInt8[np.ndarray, "n"]:
            if root + name not in entries:
                raise CheckpointFileError(f"{path} lacks its entry {shorten(root + name)}: damaged. {AGAIN}")
            return _zip_entry(archive, entries[root + name], mapped)

        if root + "byteorder" in entries and read("byteorder")[:8].tobytes() != b"little":
            raise CheckpointFileError(f"{path} {_BIG_ENDIAN}")
        content = read("data.pkl").tobytes()
        value, _ = unpickle(path, content, 0, lambda key, _: read(f"data/{key}"), MAX_EXPANSION * len(mapped))
        return value


def _check_entries(path: str, entries: list[zipfile.ZipInfo], size: int) -> None:
    """Checks all entries of an archive before any is read."""
    for info in entries:
        if reason := zip_files.refusal(info):
            raise CheckpointFileError(f"{path}: entry {shorten(info.filename)!r} {reason}; refused.")
    names = [info.filename for info in entries]
    if len(set(names)) < len(names):
        twice = next(name for name, count in collections.Counter(names).items() if count > 1)
        raise CheckpointFileError(f"{path}: entry {shorten(twice)!r} occurs twice; refused.")
    packed = sum(info.file_size for info in entries if info.compress_type != zipfile.ZIP_STORED)
    if packed > MAX_EXPANSION * size:
        raise CheckpointFileError(f"{path} would expand from {size} to {packed} bytes, as no checkpoint does; refused.")


def _zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, mapped: mmap.mmap) -> UInt8[np.ndarray, "n"]:
    """Returns the bytes of an entry; a view of the mapped file if it is not compressed."""
    if info.compress_type != zipfile.ZIP_STORED:
        with archive.open(info) as file:
            return np.frombuffer(file.read(info.file_size), np.uint8)
    # The local header repeats the name and has an extra field of its own length.
    if mapped[info.header_offset : info.header_offset + 4] != _ZIP_START:
        raise CheckpointFileError(f"{archive.filename} has no entry {shorten(info.filename)} where it should: damaged.")
    name_length, extra_length = struct.unpack_from("<HH", mapped, info.header_offset + 26)
    start = info.header_offset + 30 + name_length + extra_length
    if start + info.file_size > len(mapped):
        raise CheckpointFileError(
            f"{archive.filename} ends within its entry {shorten(info.filename)}: damaged. {AGAIN}"
        )
    content = np.frombuffer(mapped, np.uint8, info.file_size, start)
    # PyTorch writes 0 where it was asked not to compute the checksum.
    if info.CRC and zlib.crc32(content.data) != info.CRC:
        raise CheckpointFileError(
            f"{archive.filename}: entry {shorten(info.filename)} is damaged, as its checksum (CRC-32) differs. {AGAIN}"
        )
    return content


def _load_legacy(path: str, mapped: mmap.mmap) -> Any:
    """Reads four pickles (magic number, version, system, object), a fifth with storage names, then storages."""
    position = 0
    for _ in range(2):
        _, position = unpickle(path, mapped, position)
    system, start = unpickle(path, mapped, position)
    if system.get("little_endian") is False:
        raise CheckpointFileError(f"{path} {_BIG_ENDIAN}")
    # The sizes of storages are known from the object, which comes before them: read it twice.
    itemsizes: dict[str, int] = {}

    def collect(key: str, itemsize: int) -> None:
        itemsizes.setdefault(key, itemsize)

    _, position = unpickle(path, mapped, start, collect)
    keys, position = unpickle(path, mapped, position)
    storages = {}
    for key in keys:
        if not isinstance(key, str) or key not in itemsizes:
            name = shorten(key) if isinstance(key, str) else f"of a key of type {type(key).__name__}"
            raise CheckpointFileError(f"{path}: storage {name} is of an unknown type, so the next one cannot be found.")
        size = int.from_bytes(mapped[position : position + 8], "little", signed=True) * itemsizes[key]
        position += 8
        if size < 0 or position + size > len(mapped):
            raise CheckpointFileError(f"{path} ends within storage {shorten(key)}: truncated. {AGAIN}")
        storages[key] = np.frombuffer(mapped, np.uint8, size, position)
        position += size
    value, _ = unpickle(path, mapped, start, lambda key, _: storages[key], MAX_EXPANSION * len(mapped))
    return value


def _write_entry(file: BinaryIO, archive: zipfile.ZipFile, name: str, content: bytes | np.ndarray) -> None:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    # PyTorch begins every entry at a multiple of 64 bytes, with an extra field of padding before it.
    padding = -(file.tell() + 30 + len(name) + 4) % 64
    info.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
    data = np.ascontiguousarray(content).reshape(-1).view(np.uint8).data if isinstance(content, np.ndarray) else content
    info.file_size = len(data)
    with archive.open(info, "w") as entry:
        entry.write(data)
