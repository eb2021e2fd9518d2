"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile


@contextlib.contextmanager
def replacing(path):
    """Gives the name of a temporary file that takes the place of `path` when the block succeeds.

    When the block raises, what was at `path` stays, and the temporary file goes. Folders are made.

    Args:
      path: the file to write.

    Yields:
      the temporary file's name, in the folder of `path`, so that renaming never copies.
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
