"""Published weights of the frozen networks: where they come from, where they lie, and whether they are right.

Files lie in one folder, `$EQJAX_WEIGHTS` or ~/.cache/eqjax, under the names that their authors gave them.
Each is checked for the names and shapes of its arrays, and its SHA-256 is written beside it when it is
first seen and compared from then on.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import http.client
import json
import os
import re
import urllib.request

from absl import logging
import flax.linen as nn

from eqjax import convert
from eqjax.convert import torch_archive
from eqjax.io import atomic_write
from eqjax.nets.inception import FID_INCEPTION
from eqjax.nets.lpips import VGG_LPIPS
from eqjax.nets.vit import DINO_S16, DINOV2_B14

_VARIABLE = "EQJAX_WEIGHTS"
_CHUNK = 2**20


class FrozenWeightsError(ValueError):
    """A file is not what it should be, or cannot be fetched; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class File:
    """A published file.

    Attributes:
      name: in the folder of weights.
      url: where it is published.
      holds: a pattern of the names of those arrays of its network that it holds.
      sha256: how its SHA-256 begins, as far as its publisher tells.
    """

    name: str
    url: str
    holds: str = ".*"
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Network:
    """A frozen network: its module, its files, and the function (state_dict, module) → parameters."""

    module: nn.Module
    files: tuple[File, ...]
    params: Callable


_VGG16 = File(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    holds=r"(features|classifier)\..*",
    sha256="397923af",
)
_LINEAR = File("lpips_vgg.pth", "https://heibox.uni-heidelberg.de/f/607503859c864bc1b30b/?dl=1", holds=r"lin\d\..*")
_DINO = File(
    "dino_deitsmall16_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
)
_DINOV2 = File(
    "dinov2_vitb14_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
)
_INCEPTION = File(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
)
NETWORKS = {
    "lpips": Network(VGG_LPIPS, (_VGG16, _LINEAR), convert.lpips_params),
    "dino": Network(DINO_S16, (_DINO,), convert.dino_params),
    "dinov2": Network(DINOV2_B14, (_DINOV2,), convert.dinov2_params),
    "inception": Network(FID_INCEPTION, (_INCEPTION,), convert.inception_params),
}


def weights_folder():
    """Where files are looked for when no folder is given."""
    return os.path.expanduser(os.environ.get(_VARIABLE) or os.path.join("~", ".cache", "eqjax"))


def load(name, folder=None, dtype=None):
    """A frozen network with its published weights.

    Args:
      name: "lpips", "dino", "dinov2" or "inception".
      folder: where its files lie; None: `weights_folder()`.
      dtype: what the module computes in; None: float32.

    Returns:
      (module, parameters as numpy float32).

    Raises:
      FileNotFoundError: a file is not there.
      FrozenWeightsError: it is damaged, holds other arrays, or has changed since it was first seen.
      ValueError: there is no such network.
    """
    network, folder = find_network(name), folder or weights_folder()
    state = {}
    for file in network.files:
        path = os.path.join(folder, file.name)
        if not os.path.isfile(path):
            raise FileNotFoundError(_missing(name, file, path))
        state |= check(name, file, path)
        remember(path, file)
    module = network.module if dtype is None else network.module.clone(dtype=dtype)
    return module, network.params(state, module)


def find_network(name):
    """The `Network` called `name`.

    Raises:
      ValueError: there is none.
    """
    if name not in NETWORKS:
        raise ValueError(f"there is no frozen network called {name!r}; there are {', '.join(NETWORKS)}.")
    return NETWORKS[name]


def check(name, file, path):
    """Reads a file of a network and checks names and shapes of all its arrays.

    Args:
      name: the network's.
      file: the `File` that it should be.
      path: where it lies.

    Returns:
      {reference name: array}, views of the file; without those that nobody uses.

    Raises:
      FrozenWeightsError: it is damaged, or holds other arrays.
    """
    expected = f"Expected: {describe(name, file)}"
    try:
        arrays = torch_archive.state_dict(convert.read_reference(path), path)
        used = {key: array for key, array in arrays.items() if not convert.unused_in_frozen(name, key)}
        convert.check_shapes(used, _wanted(name, file), path)
    except (torch_archive.CheckpointFileError, convert.ConversionError) as error:
        raise FrozenWeightsError(f"{error}\n{expected}\n{_way_out(name, file, path)}") from error
    return used


def describe(name, file):
    """What a file should hold, in words."""
    wanted = _wanted(name, file)
    (first, first_shape), *_, (last, last_shape) = wanted.items()
    digest = f", SHA-256 {file.sha256}…" if file.sha256 else ""
    return (
        f"{file.name}, a PyTorch file with {len(wanted)} arrays, {first} {first_shape} … {last} {last_shape}{digest}."
    )


def remember(path, file):
    """Compares a file's SHA-256 with what was recorded when it was first seen, or records it.

    A file that its publisher would not recognize (saved anew, say) is warned of and not refused: its
    arrays have the right names and shapes.

    Raises:
      FrozenWeightsError: the file is another than the one first seen.
    """
    with open(path, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if not digest.startswith(file.sha256):
        logging.warning(
            "%s has SHA-256 %s…, the published file %s…: saved anew, or other weights; figures may not compare.",
            *(path, digest[:8], file.sha256),
        )
    record = f"{path}.json"
    try:
        with open(record, encoding="utf-8") as opened:
            known = json.load(opened)["sha256"]
    except FileNotFoundError:
        _write_record(record, {"sha256": digest, "bytes": os.path.getsize(path), "url": file.url})
        return
    except (ValueError, KeyError, TypeError) as error:
        raise FrozenWeightsError(
            f"{record} should hold the SHA-256 of {path}, and cannot be read: delete it."
        ) from error
    if known != digest:
        raise FrozenWeightsError(
            f"{path} has changed: its SHA-256 is {digest}, and was {known} when it was first seen. If that was on "
            f"purpose, delete {record}; otherwise delete {path} and fetch it again from {file.url}"
        )


def fetch(name, file, folder=None, url=None, on_progress=lambda done, total: None):
    """Downloads a file, checks it, and only then gives it its name; a good one that is there is kept.

    Args:
      name: the network's.
      file: one of its `File`s.
      folder: where to; None: `weights_folder()`.
      url: where from; None: where it is published.
      on_progress: called with the bytes so far and the bytes in all, or None where the server does not tell.

    Returns:
      (path, whether it was downloaded).

    Raises:
      FrozenWeightsError: it cannot be fetched, or is not what it should be; nothing is left behind.
    """
    path, url = os.path.join(folder or weights_folder(), file.name), url or file.url
    if os.path.isfile(path):
        check(name, file, path)
        remember(path, file)
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
                f"what {url} gave has SHA-256 {digest}, which should begin with {file.sha256}: damaged, or another "
                "file. Nothing was kept."
            )
        try:
            check(name, file, temporary)
        except FrozenWeightsError as error:
            raise FrozenWeightsError(str(error).replace(temporary, f"what {url} gave")) from error
    remember(path, file)
    return path, True


def _download(url, path, on_progress):
    """Copies what `url` gives to a file and returns its SHA-256."""
    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "eqjax"})
    with urllib.request.urlopen(request, timeout=60) as source, open(path, "wb") as target:
        length = source.headers.get("Content-Length")
        total = int(length) if length else None
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            on_progress(done, total)
    if total is not None and done != total:
        raise OSError(f"it ended after {done} of {total} bytes")
    return digest.hexdigest()


def _wanted(name, file):
    """{reference name: shape} of what a file of a network must hold."""
    shapes = convert.frozen_shapes(name, find_network(name).module)
    return {key: shape for key, shape in shapes.items() if re.fullmatch(file.holds, key)}


def _missing(name, file, path):
    return (
        f"the frozen network {name!r} needs {file.name}, and there is no file {path} (the folder can be set with "
        f"the environment variable {_VARIABLE}).\nExpected: {describe(name, file)}\n{_way_out(name, file, path)}"
    )


def _way_out(name, file, path):
    return (
        f"Fetch it with: python -m eqjax.cli.fetch_weights {name}\n"
        f"Or download {file.url} and put it there as {os.path.join(os.path.dirname(path), file.name)}"
    )


def _write_record(path, record):
    try:
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as opened:
            json.dump(record, opened, indent=1)
    except OSError as error:  # A shared folder that one may only read.
        logging.info("The SHA-256 cannot be recorded in %s: %s.", path, error)
