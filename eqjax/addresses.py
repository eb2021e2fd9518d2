"""Where files are: on a file system, in a bucket, and the folder of what was fetched once."""

import os
import re

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_VARIABLE = "EQJAX_WEIGHTS"


def scheme(path: str | os.PathLike[str]) -> str | None:
    """Returns the scheme of an address, such as "gs"; None for a path of a file system.

    Example:
      >>> scheme("gs://bucket/run"), scheme("runs/generator")
      ('gs', None)
    """
    found = _SCHEME.match(os.fspath(path))
    return found[1].lower() if found else None


def local_path(path: str | os.PathLike[str], name: str) -> str:
    """Returns a path of a file system; an address such as gs://bucket/run would become a folder called "gs:".

    Args:
      path: the path.
      name: what it is the path of, for messages.

    Raises:
      ValueError: it is an address.

    Example:
      >>> local_path("runs/generator", "the workdir")
      'runs/generator'
    """
    path = os.fspath(path)
    found = scheme(path)
    if found is None:
        return path
    if found == "file":
        advice = "Leave file:// out."
    else:
        advice = "Mount the bucket (as gcsfuse does), or use a local folder and copy it."
    raise ValueError(f"{name} is {path}; expected a path of a file system, {found}:// is not supported there. {advice}")


def weights_folder() -> str:
    """Returns the folder of fetched and converted weights: `$EQJAX_WEIGHTS`, or ~/.cache/eqjax."""
    return os.path.expanduser(os.environ.get(_VARIABLE) or os.path.join("~", ".cache", "eqjax"))
