r"""Fetches the published weights of the frozen networks that losses and metrics use, and checks them.

    eqjax fetch-weights                  # all of them: lpips dino dinov2 inception
    eqjax fetch-weights lpips dino       # for training a tokenizer
    eqjax fetch-weights --mirror=file:///shared/weights

Names and shapes of all arrays are checked before a file gets its name, and its SHA-256 is recorded beside it. Without
a network connection, the command names the files to copy and where to put them.
"""

from collections.abc import Sequence
import os
from typing import Any

from absl import flags, logging
import tqdm

from eqjax.cli.command_line import flag_group
from eqjax.progress import announced


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "Input"):
        flags.DEFINE_string(
            "mirror", None, "URL of a folder with the same file names, instead of the publishers'.", flag_values=values
        )
    with flag_group(values, "Output"):
        flags.DEFINE_string(
            "folder", None, "Folder of the files. Default: $EQJAX_WEIGHTS, or ~/.cache/eqjax.", flag_values=values
        )


def run(args: flags.FlagValues, words: Sequence[str]) -> None:
    """Fetches the networks that `words` name, or all.

    Raises:
      ValueError: there is no such network.
      OSError: files are missing or wrong; each has been logged.
    """
    from eqjax.nets import download

    errors = fetch_all(words or list(download.NETWORKS), args.folder, args.mirror)
    if errors:
        raise OSError(f"{len(errors)} of the files could not be fetched; the messages above name each and its remedy.")


def fetch_all(
    names: Sequence[str], folder: str | os.PathLike[str] | None = None, mirror: str | None = None
) -> list[Exception]:
    """Fetches every file of the named networks.

    Args:
      names: keys of `eqjax.nets.download.NETWORKS`.
      folder: where to write the files; None: the default folder.
      mirror: URL of a folder that holds the files under their names, or None.

    Returns:
      The errors, one per file that is missing or wrong.

    Raises:
      ValueError: there is no such network.
    """
    from eqjax.nets import download

    errors: list[Exception] = []
    networks = {name: download.find_network(name) for name in names}
    for name, network in networks.items():
        for file in network.files:
            url = f"{mirror.rstrip('/')}/{file.name}" if mirror else None
            try:
                with announced(f"Fetching {file.name}", patience=2.0):
                    path, downloaded = _fetch(name, file, folder, url)
                size = os.path.getsize(path) / 1e6
                logging.info(
                    "%s: %s (%.1f MB) %s.", name, path, size, "fetched" if downloaded else "is present and valid"
                )
            except (download.FrozenWeightsError, OSError) as error:
                errors.append(error)
                logging.error("%s: %s", name, error)
    return errors


def _fetch(name: str, file: Any, folder: str | os.PathLike[str] | None, url: str | None) -> tuple[str, bool]:
    """Calls `download.fetch` with a progress bar, which a pipe or log file does not get."""
    from eqjax.nets import download

    with tqdm.tqdm(desc=file.name, unit="B", unit_scale=True, disable=None, leave=False) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return download.fetch(name, file, folder, url, show)
