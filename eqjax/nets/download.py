"""Published weights of the frozen networks: download URLs, local folder and integrity checks.

Files are kept in one folder, `$EQJAX_WEIGHTS` or ~/.cache/eqjax, under the names that their authors gave
them. Each is checked for the names and shapes of its arrays; its SHA-256 is recorded beside it the first
time, and compared from then on.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import http.client
import os
import re
from typing import Any
import urllib.request

from absl import logging
from jax.typing import DTypeLike
import numpy as np

from eqjax import convert
from eqjax.addresses import weights_folder
from eqjax.convert import torch_archive
from eqjax.io import atomic_write, read_json, write_json
from eqjax.nets.inception import FID_INCEPTION
from eqjax.nets.lpips import VGG_LPIPS
from eqjax.nets.vit import DINO_S16, DINOV2_B14
from eqjax.typing import Params

_CHUNK = 2**20
# A record holds a digest, a size and an address.
_MAX_RECORD_BYTES = 2**14


class FrozenWeightsError(ValueError):
    """A file holds other contents than expected, or cannot be downloaded; the message names the remedy."""


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A published file.

    Attributes:
      name: file name in the folder of weights.
      url: address of the original.
      holds: pattern of the names of the arrays of its network that the file holds.
      sha256: beginning of its SHA-256, as far as its publisher states it.
    """

    name: str
    url: str
    holds: str = ".*"
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class PublishedNetwork:
    """A frozen network.

    Attributes:
      module: the Flax module.
      files: its files.
      convert: function (state_dict, module) → parameters.
    """

    module: Any
    files: tuple[PublishedFile, ...]
    convert: Callable[..., Params]


_VGG16 = PublishedFile(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    holds=r"(features|classifier)\..*",
    sha256="397923af",
)
_LINEAR = PublishedFile(
    "lpips_vgg.pth", "https://heibox.uni-heidelberg.de/f/607503859c864bc1b30b/?dl=1", holds=r"lin\d\..*"
)
_DINO = PublishedFile(
    "dino_deitsmall16_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
)
_DINOV2 = PublishedFile(
    "dinov2_vitb14_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
)
_INCEPTION = PublishedFile(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
)
NETWORKS: dict[str, PublishedNetwork] = {
    "lpips": PublishedNetwork(VGG_LPIPS, (_VGG16, _LINEAR), convert.lpips_params),
    "dino": PublishedNetwork(DINO_S16, (_DINO,), convert.dino_params),
    "dinov2": PublishedNetwork(DINOV2_B14, (_DINOV2,), convert.dinov2_params),
    "inception": PublishedNetwork(FID_INCEPTION, (_INCEPTION,), convert.inception_params),
}


def load(name: str, folder: str | os.PathLike[str] | None = None, dtype: DTypeLike | None = None) -> tuple[Any, Params]:
    """Loads a frozen network with its published weights.

    Args:
      name: "lpips", "dino", "dinov2" or "inception".
      folder: folder of its files; None: `weights_folder()`.
      dtype: compute dtype of the module; None: float32.

    Returns:
      The Flax module and its parameters, numpy float32.

    Raises:
      FileNotFoundError: a file is missing.
      FrozenWeightsError: a file is damaged, holds other arrays, or has changed since it was first read.
      ValueError: the network is unknown.

    Example:
      >>> module, params = load("dino", dtype="bfloat16")  # doctest: +SKIP
    """
    network, folder = find_network(name), folder or weights_folder()
    state: dict[str, np.ndarray] = {}
    for file in network.files:
        path = os.path.join(folder, file.name)
        if not os.path.isfile(path):
            raise FileNotFoundError(_missing(name, file, path))
        state |= read_arrays(name, file, path)
        check_digest(path, file)
    module = network.module if dtype is None else network.module.clone(dtype=dtype)
    return module, network.convert(state, module)


def find_network(name: str) -> PublishedNetwork:
    """Returns the entry of `NETWORKS` called `name`.

    Raises:
      ValueError: the network is unknown.
    """
    if name not in NETWORKS:
        raise ValueError(f"there is no frozen network called {name!r}; there are {', '.join(NETWORKS)}.")
    return NETWORKS[name]


def read_arrays(name: str, file: PublishedFile, path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a file of a network and checks names and shapes of all its arrays.

    Args:
      name: the network.
      file: the file that is expected.
      path: the file to read.

    Returns:
      {reference name: array}, views of the file, without the arrays that the network does not use.

    Raises:
      FrozenWeightsError: the file is damaged, or holds other arrays.
    """
    path = os.fspath(path)
    try:
        arrays = torch_archive.state_dict(convert.read_reference(path), path)
        used = {key: array for key, array in arrays.items() if not convert.unused_in_frozen(name, key)}
        convert.check_shapes(used, _expected_shapes(name, file), path)
    except (torch_archive.CheckpointFileError, convert.ConversionError) as error:
        raise FrozenWeightsError(f"{error}\n{_instructions(name, file, path)}") from error
    return used


def describe(name: str, file: PublishedFile) -> str:
    """Describes in words the contents that a file of a network should have."""
    shapes = _expected_shapes(name, file)
    (first, first_shape), *_, (last, last_shape) = shapes.items()
    digest = f", SHA-256 {file.sha256}…" if file.sha256 else ""
    return (
        f"{file.name}, a PyTorch file with {len(shapes)} arrays, {first} {first_shape} … {last} {last_shape}{digest}."
    )


def check_digest(path: str | os.PathLike[str], file: PublishedFile) -> None:
    """Compares a file's SHA-256 with the one recorded when it was first read, or records it.

    A digest that the publisher would not recognize (the file was saved again, say) is warned of and not
    refused: the arrays have the right names and shapes.

    Raises:
      FrozenWeightsError: the file has changed, or the record is unreadable.
    """
    path = os.fspath(path)
    with open(path, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if not digest.startswith(file.sha256):
        logging.warning(
            "%s has SHA-256 %s…, the published file %s…: it was saved again, or holds other weights; metrics may not "
            "compare with published ones.",
            *(path, digest[:8], file.sha256),
        )
    record = f"{path}.json"
    try:
        if os.path.getsize(record) > _MAX_RECORD_BYTES:
            raise ValueError("larger than any record")
        known = read_json(record)["sha256"]
        if not re.fullmatch("[0-9a-f]{64}", known):
            raise ValueError("no SHA-256")
    except FileNotFoundError:
        _write_record(record, {"sha256": digest, "bytes": os.path.getsize(path), "url": file.url})
        return
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FrozenWeightsError(f"{record} cannot be read; expected the SHA-256 of {path}: delete it.") from error
    if known != digest:
        raise FrozenWeightsError(
            f"{path} has changed: its SHA-256 is {digest}, and was {known} when it was first read. If that was on "
            f"purpose, delete {record}; otherwise delete {path} and fetch it again from {file.url}"
        )


def fetch(
    name: str,
    file: PublishedFile,
    folder: str | os.PathLike[str] | None = None,
    url: str | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> tuple[str, bool]:
    """Downloads a file and checks it before it gets its name; keeps a good file that already exists.

    Args:
      name: the network.
      file: one of its files.
      folder: folder to write to; None: `weights_folder()`.
      url: address to download from; None: the published one.
      on_progress: called with the bytes so far and the bytes in all, or None if the server does not report them.

    Returns:
      The path, and whether the file was downloaded.

    Raises:
      FrozenWeightsError: the file cannot be downloaded, or holds other contents; nothing is left behind.
    """
    path, url = os.path.join(folder or weights_folder(), file.name), url or file.url
    if os.path.isfile(path):
        read_arrays(name, file, path)
        check_digest(path, file)
        return path, False
    with atomic_write(path) as temporary:
        try:
            digest = _download(url, temporary, on_progress)
        except (OSError, http.client.HTTPException) as error:  # No network, no such address, a broken connection.
            raise FrozenWeightsError(
                f"{url} cannot be fetched ({error}). On a machine with a network, download it, and put it here as "
                f"{path}\nExpected: {describe(name, file)}"
            ) from error
        if not digest.startswith(file.sha256):
            raise FrozenWeightsError(
                f"the download from {url} has SHA-256 {digest}, which should begin with {file.sha256}: damaged, or "
                "another file. Nothing was kept."
            )
        try:
            read_arrays(name, file, temporary)
        except FrozenWeightsError as error:
            raise FrozenWeightsError(str(error).replace(temporary, f"the download from {url}")) from error
    check_digest(path, file)
    return path, True


def _download(url: str, path: str, on_progress: Callable[[int, int | None], None] | None) -> str:
    """Copies the content of `url` to a file and returns its SHA-256."""
    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "eqjax"})
    with urllib.request.urlopen(request, timeout=60) as source, open(path, "wb") as target:
        length = source.headers.get("Content-Length")
        total = int(length) if length else None
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if on_progress is not None:
                on_progress(done, total)
    if total is not None and done != total:
        raise OSError(f"it ended after {done} of {total} bytes")
    return digest.hexdigest()


def _expected_shapes(name: str, file: PublishedFile) -> dict[str, tuple[int, ...]]:
    """Returns {reference name: shape} of the arrays that a file of a network must hold."""
    shapes = convert.frozen_shapes(name, find_network(name).module)
    return {key: shape for key, shape in shapes.items() if re.fullmatch(file.holds, key)}


def _missing(name: str, file: PublishedFile, path: str) -> str:
    return (
        f"the frozen network {name!r} needs {file.name}, and there is no file {path} (the folder can be set with "
        f"the environment variable EQJAX_WEIGHTS).\n{_instructions(name, file, path)}"
    )


def _instructions(name: str, file: PublishedFile, path: str) -> str:
    return (
        f"Expected: {describe(name, file)}\n"
        f"Fetch it with: eqjax fetch-weights {name}\n"
        f"Or download {file.url} and put it there as {os.path.join(os.path.dirname(path), file.name)}"
    )


def _write_record(path: str, record: dict[str, object]) -> None:
    try:
        write_json(path, record)
    except OSError as error:  # A shared folder without the right to write.
        logging.info("The SHA-256 cannot be recorded in %s: %s.", path, error)
