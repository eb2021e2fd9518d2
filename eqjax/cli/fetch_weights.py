r"""Fetches the published weights of the frozen networks, and checks those that are there.

    python -m eqjax.cli.fetch_weights                  # all of: lpips dino dinov2 inception
    python -m eqjax.cli.fetch_weights lpips dino       # what training a tokenizer with DINO's critic needs
    python -m eqjax.cli.fetch_weights --mirror=file:///shared/weights

Files go to $EQJAX_WEIGHTS, or ~/.cache/eqjax. Names and shapes of all arrays are checked before a file
gets its name, and its SHA-256 is recorded beside it. Where there is no network, the command says which
file to put where.
"""

import os

from absl import app, flags, logging
import tqdm

from eqjax.nets import download

_FOLDER = flags.DEFINE_string("folder", None, "Where files go. Default: $EQJAX_WEIGHTS, or ~/.cache/eqjax.")
_MIRROR = flags.DEFINE_string("mirror", None, "URL of a folder with the same file names, instead of the publishers'.")


def fetch_all(names, folder=None, mirror=None):
    """Fetches every file of the named networks.

    Args:
      names: of `eqjax.nets.download.NETWORKS`.
      folder: where to; None: the default one.
      mirror: URL of a folder that holds the files under their names, or None.

    Returns:
      The errors, one per file that is missing or wrong.

    Raises:
      ValueError: there is no such network.
    """
    networks, errors = {name: download.find_network(name) for name in names}, []
    for name, network in networks.items():
        for file in network.files:
            url = f"{mirror.rstrip('/')}/{file.name}" if mirror else None
            try:
                path, downloaded = _fetch(name, file, folder, url)
                size = os.path.getsize(path) / 1e6
                logging.info("%s: %s (%.1f MB) %s.", name, path, size, "fetched" if downloaded else "is there and good")
            except (download.FrozenWeightsError, OSError) as error:
                errors.append(error)
                logging.error("%s: %s", name, error)
    return errors


def _fetch(name, file, folder, url):
    """`download.fetch` with a line of progress, which a pipe or log file does not get."""
    with tqdm.tqdm(desc=file.name, unit="B", unit_scale=True, disable=None, leave=False) as bar:

        def show(done, total):
            bar.total = total
            bar.update(done - bar.n)

        return download.fetch(name, file, folder, url, show)


def _main(argv):
    logging.set_verbosity(logging.INFO)
    try:
        errors = fetch_all(argv[1:] or list(download.NETWORKS), _FOLDER.value, _MIRROR.value)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    if errors:
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(_main)
