"""Finds the files inside tar archives, so that each can be read alone, without unpacking the archive.

Nothing is written to disk and no link is followed. The sizes in an archive are compared with that of the archive
before anything is read, so that a damaged or hostile one costs no more than its own length.
"""

from collections.abc import Iterator
import dataclasses
import os
import tarfile

from absl import logging

_BLOCK = tarfile.BLOCKSIZE
_MAX_HEADER = 1 << 20  # Bytes of the names and attributes of one member.
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


class TarError(ValueError):
    """An archive that cannot be read; the message names it."""


@dataclasses.dataclass(frozen=True)
class Member:
    """A regular file inside an archive.

    Attributes:
      name: its path inside the archive.
      offset: position of its first byte in the archive.
      size: number of bytes.
    """

    name: str
    offset: int
    size: int


def members(path: str) -> Iterator[Member]:
    """Yields the regular files of an archive in their order; folders, links and devices are passed over.

    Args:
      path: an uncompressed tar archive (ustar, pax or GNU).

    Raises:
      FileNotFoundError: there is no such file.
      TarError: the archive is compressed, damaged or truncated, or holds sparse files.
    """
    with open(path, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        yield from _members(file.fileno(), path, total)


def _members(file: int, path: str, total: int) -> Iterator[Member]:
    position, name, size = 0, None, None
    while header := os.pread(file, _BLOCK, position):
        if name is size is None and (plain := _plain(header)) is not None:
            _check_end(plain[1], path, position, total)
            yield Member(plain[0], position + _BLOCK, plain[1])
            position += _BLOCK + _padded(plain[1])
            continue
        if not header.strip(b"\0"):
            return
        info = _parse(header, path, position, total)
        begin = position + _BLOCK
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if info.size > _MAX_HEADER:
                raise TarError(f"{path}: a name or its attributes take {info.size} bytes at byte {position}.")
            content = os.pread(file, info.size, begin)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = _text(content.rstrip(b"\0"))
            elif info.type != tarfile.XGLTYPE:
                name, size = _pax(content, path, position, name)
            position = begin + _padded(info.size)
            continue
        if size is not None and (info.isreg() or info.type not in tarfile.SUPPORTED_TYPES):
            info.size = size  # Sizes from 8 GB on are in an attribute.
            _check_end(info.size, path, position, total)
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise TarError(f"{path} holds a sparse file, {info.name!r}; pack it again without --sparse.")
        if info.isreg():
            yield Member(name or info.name, begin, info.size)
        has_content = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        position = begin + (_padded(info.size) if has_content else 0)
        name = size = None
    logging.warning("%s ends without the mark of its end: it may have been cut.", path)


def _plain(header: bytes) -> tuple[str, int] | None:
    """Returns name and size of a file as most writers describe it, ten times faster than `tarfile`; None for others."""
    if header[156:157] != b"0" or header[257:263] != b"ustar\0" or header[345] or len(header) < _BLOCK:
        return None
    size, checksum = header[124:135], header[148:154]
    if not (size.isdigit() and checksum.isdigit() and header[135] == 0):
        return None
    try:
        if sum(header) - sum(header[148:156]) + 8 * ord(" ") != int(checksum, 8):
            return None
        return _text(header[:100].partition(b"\0")[0]), int(size, 8)
    except ValueError:  # Digits that are not octal.
        return None


def _parse(header: bytes, path: str, position: int, total: int) -> tarfile.TarInfo:
    """Returns the content of a header, after checking that the member ends inside the archive."""
    if position == 0:
        for magic, kind in _COMPRESSED.items():
            if header.startswith(magic):
                raise TarError(
                    f"{path} is compressed ({kind}), so that no file in it can be read alone: decompress it."
                )
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise TarError(f"{path} is no tar archive, or is damaged at byte {position} ({error}).") from error
    _check_end(info.size, path, position, total)
    return info


def _check_end(size: int, path: str, position: int, total: int) -> None:
    if size < 0 or position + _BLOCK + size > total:
        raise TarError(
            f"{path} is truncated or damaged: the file at byte {position} has {size} bytes, and the archive {total}."
        )


def _pax(content: bytes, path: str, position: int, name: str | None) -> tuple[str | None, int | None]:
    """Returns the name and the size in extended attributes: records "LENGTH KEY=VALUE", each with a newline."""
    size, begin = None, 0
    while begin < len(content) and content[begin : begin + 1] != b"\0":
        length, space, _ = content[begin : begin + 20].partition(b" ")
        end = begin + int(length) if space and length.isdigit() else 0
        key, _, value = content[begin + len(length) + 1 : max(end - 1, 0)].partition(b"=")
        if not begin < end <= len(content) or (key == b"size" and not (value.isdigit() and len(value) < 20)):
            raise TarError(f"{path} is damaged: the attributes at byte {position} cannot be read.")
        if key == b"path":
            name = _text(value)
        elif key == b"size":
            size = int(value)
        begin = end
    return name, size


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
