"""Opens zip archives from outside: what they declare is compared with bounds before anything is unpacked."""

from collections.abc import Iterator
import contextlib
import io
import os
from typing import Any
import zipfile

# Bytes of an archive's directory, of 46 bytes and a name per entry: each becomes an object of several hundred bytes.
MAX_DIRECTORY_BYTES = 2**22
# zip's own method. Python's readers of the others (bzip2, LZMA) give out all of a block, however much that is.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_END_BYTES = 22  # Of the record at the end of an archive, without its comment.
_ENCRYPTED = 0x1  # Bit of a zip entry's flags.


class _BoundedFile(io.FileIO):
    """A file of which no more than a number of bytes can be read at once."""

    limit: int | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None and size is not None and size > self.limit:
            raise zipfile.BadZipFile(f"its directory has {size} bytes; at most {self.limit} are read")
        return super().read(-1 if size is None else size) or b""


@contextlib.contextmanager
def open_zip(path: str | os.PathLike[str], max_directory_bytes: int = MAX_DIRECTORY_BYTES) -> Iterator[zipfile.ZipFile]:
    """Opens an archive whose directory is of a reasonable size.

    Args:
      path: file name.
      max_directory_bytes: largest directory to read.

    Yields:
      The archive, open for reading.

    Raises:
      zipfile.BadZipFile: the file is no zip archive, or has a larger directory.
    """
    with _BoundedFile(os.fspath(path)) as file:
        file.limit = max_directory_bytes
        with zipfile.ZipFile(file) as archive:
            file.limit = None
            yield archive


def refusal(info: zipfile.ZipInfo) -> str | None:
    """Returns why an entry is not read ("is encrypted", say), or None if nothing speaks against it."""
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted; decrypt the archive first"
    if info.compress_type not in _METHODS:
        return f"is compressed by method {info.compress_type}; only stored and deflated entries are read"
    if info.filename.startswith("/") or ".." in info.filename.split("/"):
        return "leads out of the archive"
    return None


def check_directory(archive: zipfile.ZipFile) -> None:
    """Compares what an archive says twice about its entries: else one whose name is damaged would just be missing.

    Raises:
      zipfile.BadZipFile: the number of the entries, or the two names of one, differ.
    """
    if (count := _declared_count(archive)) not in (None, len(archive.infolist()) & 0xFFFF):
        raise zipfile.BadZipFile(f"its directory has {len(archive.infolist())} entries instead of {count}")
    for info in archive.infolist():
        # Of methods and encryptions that Python does not read, the names do not matter either.
        with contextlib.suppress(NotImplementedError, RuntimeError), archive.open(info):
            pass


def _declared_count(archive: zipfile.ZipFile) -> int | None:
    """Returns the number of entries, modulo 65536, that the record at the archive's end declares."""
    file: Any = archive.fp
    file.seek(-_END_BYTES - len(archive.comment), os.SEEK_END)
    record = file.read(_END_BYTES)
    return int.from_bytes(record[10:12], "little") if record.startswith(b"PK\x05\x06") else None
