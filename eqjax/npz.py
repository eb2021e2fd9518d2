"""Reads npz files from outside, within bounds, and without pickle; writes them with a checksum.

Sizes that a file declares are compared with each other and with bounds before an array is read. zip's own checksums
(CRC-32) are compared while reading. Files that `write` wrote hold one more checksum, over names, types, shapes and
values of all arrays, so that a lost array is noticed too.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import struct
import tokenize
from typing import IO, Any
import zipfile
import zlib

from jaxtyping import Shaped
import numpy as np

from eqjax import checksums, zip_files
from eqjax.io import atomic_write, parse_json
from eqjax.messages import shorten

# Arrays of numbers hardly can be compressed, those with many zeros by a few times; below the floor nobody minds.
MAX_EXPANSION = 64
EXPANSION_FLOOR = 2**24
# Text in JSON, stored with 4 bytes per character.
MAX_TEXT_BYTES = 2**20
# Length of the header of an array; numpy reads no longer ones either.
_MAX_HEADER = 10_000
_MAGIC = b"\x93NUMPY"
NUMBERS, TEXT = "fiu", "U"
# What reading raises for an npz that is truncated, damaged, or of another format.
_ERRORS = (
    OSError, ValueError, EOFError, NotImplementedError, RuntimeError, AttributeError, KeyError, SyntaxError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


Explained = Callable[[], contextlib.AbstractContextManager[None]]


class _RefusedError(ValueError):
    """Something that the file declares is refused; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array as its header declares it.

    Attributes:
      shape: its shape.
      dtype: its dtype.
      is_fortran: whether the first axis changes fastest.
      start: bytes before its values.
      info: its entry in the archive.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool
    start: int
    info: zipfile.ZipInfo


class Npz:
    """An open npz.

    Attributes:
      names: names of all arrays in the file, cut for messages.
      entries: the arrays that may be read, by name.
    """

    def __init__(
        self, archive: zipfile.ZipFile, names: list[str], entries: dict[str, Entry], explained: Explained
    ) -> None:
        self.names, self.entries, self._archive, self._explained = names, entries, archive, explained

    def read(self, name: str) -> Shaped[np.ndarray, "..."]:
        """Returns an array."""
        with self._explained(), self._archive.open(self.entries[name].info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[IO[bytes]]:
        """Opens an array's values, to read them part by part."""
        with contextlib.ExitStack() as stack:
            with self._explained():
                file = stack.enter_context(self._archive.open(self.entries[name].info))
                file.read(self.entries[name].start)
            yield file


@contextlib.contextmanager
def open_npz(
    path: str | os.PathLike[str],
    kinds: Mapping[str, str],
    *,
    max_bytes: int,
    max_expansion: int = MAX_EXPANSION,
    expansion_floor: int = EXPANSION_FLOOR,
    what: str = "npz",
    error: type[ValueError] = ValueError,
) -> Iterator[Npz]:
    """Opens an npz and checks what it declares.

    Args:
      path: file name.
      kinds: the arrays to read, with the kinds of numpy dtype that each may have: `NUMBERS` or `TEXT`. "": whatever
        array has this name, and if none has it, the only one; its dtype is not checked.
      max_bytes: bound of all these arrays together.
      max_expansion: bound of the same, in sizes of the file.
      expansion_floor: bytes to which the bound of expansion does not apply.
      what: what the file should be, for messages.
      error: the class to raise.

    Yields:
      The file.

    Raises:
      error: the file cannot be read, or declares more than the bounds.
    """
    path = os.fspath(path)
    explained = functools.partial(_explained, path, what, error)
    with contextlib.ExitStack() as stack:
        with explained():
            archive = stack.enter_context(zip_files.open_zip(path))
            names = [shorten(name.removesuffix(".npy")) for name in archive.namelist()]
            entries = _checked_entries(path, archive, kinds, max_bytes, max_expansion, expansion_floor)
        yield Npz(archive, names, entries, explained)


@contextlib.contextmanager
def _explained(path: str, what: str, error: type[ValueError]) -> Iterator[None]:
    """Turns what a damaged file provokes into one clear error."""
    try:
        yield
    except _RefusedError as refused:
        raise error(str(refused)) from refused
    except _ERRORS as reason:
        hint = " It holds a single array (.npy)." if _begins_as_npy(path) else ""
        raise error(
            f"{path} cannot be read as {what} ({shorten(str(reason))}): truncated, damaged, or of another kind.{hint}"
        ) from reason


def _checked_entries(
    path: str,
    archive: zipfile.ZipFile,
    kinds: Mapping[str, str],
    max_bytes: int,
    max_expansion: int,
    expansion_floor: int,
) -> dict[str, Entry]:
    """Returns the entries to read, after a check of what each declares: a small file may stand for any memory."""
    infos: dict[str, zipfile.ZipInfo] = {}
    only = archive.infolist()[0].filename if len(archive.infolist()) == 1 and "" in kinds.values() else None
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if not info.filename.endswith(".npy") or (name not in kinds and info.filename != only):
            continue
        reason = "occurs twice" if name in infos else zip_files.refusal(info)
        if not reason and kinds.get(name) == TEXT and info.file_size > MAX_TEXT_BYTES:
            reason = f"has {info.file_size} bytes; at most {MAX_TEXT_BYTES} are read"
        if reason:
            raise _RefusedError(f"{path}: {shorten(name)} {reason}.")
        infos[name] = info
    total, size = sum(info.file_size for info in infos.values()), os.path.getsize(path)
    if total > min(max_bytes, max(max_expansion * size, expansion_floor)):
        raise _RefusedError(
            f"{path} of {size} bytes declares arrays of {total} bytes: more than {max_expansion} times its size, or "
            f"than {max_bytes}; refused."
        )
    zip_files.check_directory(archive)
    entries = {name: _entry(path, archive, name, info) for name, info in infos.items()}
    for name, entry in entries.items():
        expected = kinds.get(name, "")
        if expected and entry.dtype.kind not in expected:
            kind = "text" if expected == TEXT else "numbers"
            raise _RefusedError(f"{path}: {shorten(name)} is {shorten(str(entry.dtype))}; {kind} expected.")
    return entries


def _entry(path: str, archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> Entry:
    """Returns what the header of an array declares, which must agree with the size of its entry."""
    with archive.open(info) as file:
        head = file.read(8)
        if head[:6] != _MAGIC or head[6:] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
            raise ValueError(f"{shorten(name)} is no array of numpy")
        width = 2 if head[6] == 1 else 4
        length = int.from_bytes(file.read(width), "little")
        if length > _MAX_HEADER:
            raise ValueError(f"{shorten(name)} has a header of {length} bytes")
        content = io.BytesIO(length.to_bytes(width, "little") + file.read(length))
        read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(content)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{shorten(name)} holds Python objects")  # A pickle: never read.
    if min(shape, default=0) < 0:
        raise _RefusedError(f"{path}: {shorten(name)} has shape {shorten(str(shape))}.")
    if math.prod(shape) * dtype.itemsize != info.file_size - start:
        raise _RefusedError(
            f"{path}: {shorten(name)} {shorten(str(shape))} of {shorten(str(dtype))} does not have the "
            f"{info.file_size} bytes that the file declares: damaged."
        )
    return Entry(shape, dtype, is_fortran, start, info)


def _begins_as_npy(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(6) == _MAGIC
    except OSError:
        return False


def write(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Shaped[np.ndarray, "..."]],
    text_name: str,
    values: Mapping[str, Any],
    *,
    compressed: bool = False,
) -> None:
    """Writes arrays, and JSON values with a checksum of everything, whole or not at all.

    Args:
      path: file to write.
      arrays: arrays by name.
      text_name: name of the entry that holds the values as text.
      values: JSON values.
      compressed: whether to compress.
    """
    entries: dict[str, Any] = {**arrays, text_name: signed(arrays, values)}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, **entries)


def signed(arrays: Mapping[str, Shaped[np.ndarray, "..."]], values: Mapping[str, Any]) -> Shaped[np.ndarray, ""]:
    """Returns JSON values as a text array, with a checksum of them and of arrays; see `checksums.sign`."""
    return np.array(json.dumps(checksums.sign(values, arrays)))


def signed_values(
    text: Shaped[np.ndarray, "..."] | str, arrays: Mapping[str, Shaped[np.ndarray, "..."]]
) -> tuple[dict[str, Any], bool]:
    """Returns the values of `signed`, without the checksum, and whether arrays and values are those that were signed.

    Raises:
      ValueError: the text is not JSON, nested too deep, or no object.

    Example:
      >>> text = signed({"a": np.zeros(2)}, {"count": 3})
      >>> signed_values(text, {"a": np.zeros(2)}), signed_values(text, {"a": np.ones(2)})
      (({'count': 3}, True), ({'count': 3}, False))
    """
    values = parse_json(str(text))
    if not isinstance(values, dict):
        raise ValueError(f"it is {shorten(repr(values))}, no object")
    return checksums.verify(values, arrays)
