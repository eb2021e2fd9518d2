"""The items of a checkpoint: state, data position and configuration, with checksums of their files."""

from collections.abc import Mapping
import dataclasses
import glob
import os
from typing import Any

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import future

from eqjax import checksums
from eqjax.io import read_json, write_json

_ITEMS = ("config", "data", "state")


class _StateHandler(ocp.StandardCheckpointHandler):
    """Saves arrays, and checksums of the files: each process those of its own, process 0 those of the others."""

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        writes = await super().async_save(directory, *args, **kwargs)
        return [future.ChainedFuture(writes or [], lambda: _write_own_checksums(os.fspath(directory)))]

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        _write_checksums(os.fspath(directory))


class _JsonHandler(ocp.JsonCheckpointHandler):
    """Saves JSON values and the checksum of their file."""

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        _write_checksums(os.fspath(directory))


# Orbax finds a handler by the class of its arguments.
@ocp.args.register_with_handler(_StateHandler, for_save=True)
@dataclasses.dataclass
class StateSave(ocp.args.StandardSave):
    """A tree of arrays to save."""


@ocp.args.register_with_handler(_StateHandler, for_restore=True)
@dataclasses.dataclass
class StateRestore(ocp.args.StandardRestore):
    """The arrays to restore."""


@ocp.args.register_with_handler(_JsonHandler, for_save=True)
@dataclasses.dataclass
class JsonSave(ocp.args.JsonSave):
    """JSON values to save."""


@ocp.args.register_with_handler(_JsonHandler, for_restore=True)
@dataclasses.dataclass
class JsonRestore(ocp.args.JsonRestore):
    """JSON values to restore."""


def handlers() -> dict[str, Any]:
    """Returns the handlers that write and read the items of a step."""
    return {name: _StateHandler() if name == "state" else _JsonHandler() for name in _ITEMS}


def _write_own_checksums(folder: str) -> None:
    """Writes the checksums of the array files that this process wrote, for `_write_checksums` of process 0."""
    own = f"ocdbt.process_{jax.process_index()}"
    names = [name for name in _file_names(folder) if name.startswith(own + os.sep)]
    # The name must not begin like the folder's: Orbax 0.12.4 takes whatever does for one.
    write_json(os.path.join(folder, f"of_{own}.{checksums.FILE_NAME}"), checksums.of_files(folder, names))


def _write_checksums(folder: str) -> None:
    """Writes the checksums of an item before its step appears."""
    files: dict[str, Any] = {}
    for name in _file_names(folder):
        if name.endswith("." + checksums.FILE_NAME):
            files |= read_json(os.path.join(folder, name))
            os.unlink(os.path.join(folder, name))
    names = _file_names(folder)
    files |= checksums.of_files(folder, [name for name in names if name not in files])
    checksums.write(folder, {name: files[name] for name in names})


def _file_names(folder: str) -> list[str]:
    """Returns the names of the files under a folder, relative to it."""
    paths = (os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)
    return sorted(os.path.relpath(path, folder) for path in paths)


def check(folder: str | os.PathLike[str]) -> None:
    """Compares the files of a step with their checksums; of large files, each process compares a part.

    A step without any checksums is one of an earlier version, and passes with a warning.

    Args:
      folder: the step.

    Raises:
      ChecksumError: a file is damaged or lost.
    """
    folder = os.fspath(folder)
    present = [name for name in _ITEMS if os.path.exists(os.path.join(folder, name, checksums.FILE_NAME))]
    if not present:
        logging.warning("%s has no checksums; damage that does not prevent reading it goes unnoticed.", folder)
        return
    for name in _ITEMS:
        if name not in present:
            raise checksums.ChecksumError(f"{os.path.join(folder, name, checksums.FILE_NAME)} is lost.")
        checksums.check(os.path.join(folder, name), jax.process_index(), jax.process_count())


def with_checksum(metrics: Mapping[str, float]) -> dict[str, float] | None:
    """Returns the metrics of a step with a checksum, as `put_damaged_metrics_aside` expects them; None without any."""
    return checksums.sign(metrics) if metrics else None


def put_damaged_metrics_aside(directory: str | os.PathLike[str], name: str) -> None:
    """Renames damaged metrics, as Orbax reads those of all steps first of all; their steps cannot be the best.

    Args:
      directory: folder of the steps.
      name: the metric that must be finite.
    """
    folder = glob.escape(os.path.abspath(directory))
    for path in sorted(glob.glob(os.path.join(folder, "[0-9]*", "metrics", "metrics"))):
        try:
            saved = read_json(path)
            metrics, intact = checksums.verify(saved)
            intact = (intact or "checksum" not in saved) and np.isfinite(metrics.get(name, 0))
        except (OSError, ValueError, TypeError, AttributeError):
            intact = False
        if not intact:
            os.replace(path, path + ".damaged")
            logging.warning("%s is damaged; its step does not count as the best.", path)
