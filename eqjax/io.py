"""Writes files whole or not at all."""

from collections.abc import Iterator
import contextlib
import fnmatch
import json
import os
import re
import tempfile
from typing import Any

# Names that `tempfile` gives to the files of `atomic_write`.
_TEMPORARY = re.compile(r"(.+)\.[a-z0-9_]{8}\.tmp")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the name of a temporary file that replaces `path` when the block succeeds.

    If the block raises, `path` keeps its content and the temporary file is removed. Missing folders
    are created.

    Args:
      path: the file to write.

    Yields:
      The temporary file's name, in the folder of `path`, so that renaming it never copies.

    Example:
      >>> with atomic_write("out/notes.txt") as temporary, open(temporary, "w") as file:  # doctest: +SKIP
      ...     file.write("complete")
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f"{os.path.basename(path)}.", suffix=".tmp")
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # Temporary files are private to their owner.
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def remove_temporaries(folder: str | os.PathLike[str], *patterns: str) -> list[str]:
    """Removes the temporary files that killed processes left behind in `atomic_write`.

    No live process may be writing these files.

    Args:
      folder: the folder; it need not exist.
      *patterns: names of the files that were being written, such as "*.png".

    Returns:
      The names of the removed files.
    """
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = [
        name
        for name in names
        if (match := _TEMPORARY.fullmatch(name)) and any(fnmatch.fnmatchcase(match[1], part) for part in patterns)
    ]
    for name in found:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    return found


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


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns the content of a JSON file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not JSON.
    """
    with open(path, encoding="utf-8") as file:
        return json.load(file)
