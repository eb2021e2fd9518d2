"""Writes files whole or not at all, and removes what killed processes left of theirs."""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import tempfile
import time
from typing import Any

from absl import logging

from eqjax.addresses import local_path

# A temporary file may be a leftover if nothing was written to it for this long. Its lock alone would not do: some
# network file systems show locks only to the machine that holds them.
_LEFTOVER_SECONDS = 3600.0
# What writing says when the disk or a quota is full, a file is as large as it may be, or the disk is broken.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# Configurations and protocols are nested up to 5 deep.
MAX_JSON_DEPTH = 64
# Class names of a large data set have 0.3 MB, the checksums of a checkpoint of a terabyte 1 MB.
MAX_JSON_BYTES = 2**26


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the name of a temporary file that replaces `path` when the block succeeds.

    If the block raises, `path` keeps its content and the temporary file is removed. Missing folders
    are created. A killed process leaves the temporary file behind; `remove_leftovers` removes such files, and knows
    those in use by their lock.

    Args:
      path: the file to write.

    Yields:
      The temporary file's name, in the folder of `path`, so that renaming it never copies.

    Raises:
      ValueError: the path is an address such as gs://bucket/file.

    Example:
      >>> with atomic_write("out/notes.txt") as temporary, open(temporary, "w") as file:  # doctest: +SKIP
      ...     file.write("complete")
    """
    path = local_path(path, "a file to write")
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f"{os.path.basename(path)}.", suffix=".tmp")
    try:
        with contextlib.suppress(OSError):  # Some file systems have no locks.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        os.chmod(temporary, 0o644)  # Temporary files are private to their owner.
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # The folder may be gone, and what happened matters more.
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            error.filename = path  # Writing to an open file names none.
        raise
    finally:
        os.close(handle)  # Ends the lock, as the end of the process would.


def check_writable(path: str | os.PathLike[str], name: str) -> None:
    """Checks that something can be written at a path, before the work whose results go there; makes nothing.

    Args:
      path: a file or folder, which may be missing, as may the folders above it.
      name: what the message calls it, such as "--output".

    Raises:
      OSError: nothing can be written there.

    Example:
      >>> check_writable("outputs/grid.png", "--output")
    """
    place = os.path.abspath(path)
    if os.path.lexists(place) and not os.path.isdir(place):  # A file or a link, which will be replaced.
        place = os.path.dirname(place)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{name}={os.fspath(path)}: nothing can be written in {place}: {reason}.") from error


def make_folder(path: str | os.PathLike[str], name: str) -> None:
    """Makes a folder, and those above it, if it is missing.

    Args:
      path: the folder.
      name: what the message calls it, such as "workdir".

    Raises:
      NotADirectoryError: it is a file, or would be in one.
      OSError: it cannot be made.

    Example:
      >>> make_folder("runs/mine", "workdir")  # doctest: +SKIP
    """
    try:
        os.makedirs(path, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        path, file = os.fspath(path), os.path.abspath(path)
        while not os.path.lexists(file):
            file = os.path.dirname(file)
        raise NotADirectoryError(f"{name}={path}: {file} is a file; give a folder, or a new name.") from error


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str], waiting: str) -> Iterator[None]:
    """Lets one process after another run the block; where the file system has no locks, all at once.

    Args:
      path: file of the lock, which is made if missing and stays.
      waiting: what to log if another process is in the block.

    Example:
      >>> with exclusive("/tmp/eqjax/lock", "Another process is at work."):
      ...     pass
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # No locks, or a folder that cannot be written to.
            os.makedirs(os.path.dirname(os.fspath(path)) or ".", exist_ok=True)
            file = stack.enter_context(open(path, "a", encoding="utf-8"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logging.info("%s", waiting)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_leftovers(folder: str | os.PathLike[str], pattern: str, *, min_age: float = _LEFTOVER_SECONDS) -> list[str]:
    r"""Removes temporary files that killed processes left in a folder; see `atomic_write`.

    A file is removed if its name is that of a temporary file of `atomic_write`, nothing was written to it for
    `min_age`, and no living process holds its lock. On a file system without locks nothing is removed.

    Args:
      folder: the folder; it may be missing.
      pattern: regular expression of the names of the files that were being written.
      min_age: seconds; 0 is right where no other process can be writing such files.

    Returns:
      The names of the removed files.

    Example:
      >>> remove_leftovers("caches/train", r"spec\.json")
      []
    """
    name, removed = re.compile(rf"(?:{pattern})\.[a-z0-9_]{{8}}\.tmp"), []
    for entry in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        path = os.path.join(folder, entry)
        if not name.fullmatch(entry):
            continue
        with contextlib.suppress(OSError):  # In use, removed by another process, or of another user.
            if time.time() - os.stat(path, follow_symlinks=False).st_mtime < min_age:
                continue
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(handle)
            removed.append(entry)
    if removed:
        logging.info("Removed %d temporary files that killed processes left in %s.", len(removed), folder)
    return removed


def write_json(path: str | os.PathLike[str], values: Any, *, sort_keys: bool = False) -> None:
    """Writes `values` as indented JSON with a final newline; see `atomic_write`.

    Raises:
      ValueError: a number is NaN or infinite, which JSON cannot hold.
      TypeError: a value has no JSON form.

    Example:
      >>> write_json("out/result.json", {"fid": 7.2})  # doctest: +SKIP
    """
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=2, sort_keys=sort_keys, allow_nan=False)
        file.write("\n")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it has {name}, which is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object, of which another reader might take the other one of two values with the same name."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)[:200]!r} twice")
    return values


def parse_json(text: str) -> Any:
    """Returns the values of a JSON text from outside, nested at most 64 deep.

    Functions that walk through the result recursively (repr, for one) cannot run out of stack.

    Raises:
      ValueError: the text is not JSON, is nested deeper, names a value twice, or has NaN or infinity for a number.

    Example:
      >>> parse_json('{"widths": [8, 16]}')
      {'widths': [8, 16]}
    """
    too_deep = f"it is nested more than {MAX_JSON_DEPTH} deep"
    try:
        root = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [root]
    for _ in range(MAX_JSON_DEPTH + 1):
        containers = [value for value in level if isinstance(value, (dict, list))]
        level = [item for value in containers for item in (value.values() if isinstance(value, dict) else value)]
        if not level:
            return root
    raise ValueError(too_deep)


def read_text(path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES) -> str:
    """Returns the content of a text file in UTF-8.

    Args:
      path: file name.
      max_bytes: largest file to read.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the path is of no regular file (a pipe, say), or the file is larger, or no text. The message names it.
    """
    # Opening a pipe would wait for somebody who writes to it.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{os.fspath(path)} is no regular file.")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{os.fspath(path)} has more than {max_bytes} bytes; no such file does.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)} is no text in UTF-8 ({error}).") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns the content of a JSON file of at most 64 MiB, nested at most 64 deep.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the path is of no regular file, or the file is larger, deeper, or not JSON. The message names it.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is not JSON ({error}): damaged, or of another kind.") from error


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the JSON object in a file, as `read_json` does.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file cannot be read as JSON, or holds something other than an object. The message names it.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{os.fspath(path)} holds {type(values).__name__}, expected an object of named values.")
    return values
