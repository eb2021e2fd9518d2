"""Loads models: by name, from files and workdirs, and from the Hugging Face Hub."""

import dataclasses
import hashlib
import importlib.resources
import json
import os
import re
import shutil
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from eqjax import combining, convert_files, pretrained, published
from eqjax.addresses import scheme, weights_folder
from eqjax.hub import address as hub_address
from eqjax.io import atomic_write, exclusive, read_json
from eqjax.messages import did_you_mean, shorten
from eqjax.model import Model, check_dtype
from eqjax.module_fields import PRECISION
from eqjax.rules import PathName

# Buckets that weights are copied from.
_BUCKETS = ("gs", "s3", "az")
_REPO = r"\w[\w.-]*/\w[\w.-]*"


def load_pretrained(
    source: Any = "photos",
    *more: Any,
    dtype: Any = None,
    precision: Any = "highest",
) -> Model:
    """Loads a ready model from weights files.

    Args:
      source: the name of a model, "photos" (shipped with the package) or "places-large" (published; fetched and
        converted the first time); the path of a weights file, or of a folder that holds `model.safetensors` (a training
        run's workdir); hf://owner/name[@revision][/file] or a link of the Hugging Face Hub; or an address in a bucket,
        gs://bucket/run.
      *more: further files, if tokenizer and generator are in separate ones; a later file takes precedence.
      dtype: "float32", "bfloat16" or "float16" to compute in; None: the type of each module's configuration. Parameters
        are cast to it once, see `Model.astype`.
      precision: of products of float32 numbers, "highest" (float32), "tf32" or "bfloat16", see `Model`.

    Returns:
      The model; a module that no file holds is None.

    Raises:
      FileNotFoundError: there is no such file.
      HubError, OSError: a file cannot be fetched; the message names the remedy.
      WeightsError: a file cannot be read, or tokenizer and generator do not fit together.
      ValueError, TypeError: dtype or precision is unknown.

    Example:
      >>> import eqjax
      >>> model = eqjax.load_pretrained("photos")
      >>> model.sample("cat", num_columns=8, num_flow_steps=5).shape
      (1, 128, 128, 3)
    """
    precision = PRECISION.check("precision", precision)
    if dtype is not None:
        check_dtype(dtype)  # Raises an error before anything is read.
    sources = [PathName().check("source", path) for path in (source, *more)]
    weights = combining.join([load_weights(path) for path in sources], f"files: {sources}")
    # Cast on the host, so that an accelerator never holds both copies.
    return jax.tree.map(jnp.asarray, build_model(weights, precision).cast(dtype))


def build_model(weights: pretrained.Weights, precision: str = "highest") -> Model:
    """Returns the model of weights, whose parameters stay where they are.

    Args:
      weights: a tokenizer's, a generator's, or both.
      precision: of products of float32 numbers, see `Model`.
    """
    return Model(
        tokenizer=weights.modules.get("tokenizer"),
        tokenizer_params=weights.params.get("tokenizer", {}),
        generator=weights.modules.get("generator"),
        generator_params=weights.params.get("generator", {}),
        latent_scale=published.LATENT_SCALE if weights.latent_scale is None else weights.latent_scale,
        class_names=weights.class_names,
        precision=precision,
    )


def resolve_path(source: str | os.PathLike[str]) -> str:
    """Returns the path of a weights file, which is fetched, copied or converted first where that is needed.

    Args:
      source: a file; a folder that holds `model.safetensors`, such as a training run's workdir; the name of a model of
        `eqjax.published.MODELS`; an address of the Hugging Face Hub, hf://owner/name[@revision][/file] or the link of a
        page; or an address in a bucket, gs://bucket/run or s3://….

    Raises:
      FileNotFoundError: it is none of these; the message names a run that has not ended.
      ValueError: an address is malformed, or the repository holds a model of another library.
      OSError: the file cannot be fetched.
    """
    source = os.fspath(source)
    if (address := hub_address.parse(source)) is not None:
        return _from_hub(address)
    if scheme(source) is not None:
        return _from_bucket(source)
    for path in (source, os.path.join(source, hub_address.WEIGHTS_FILE)):
        if os.path.isfile(path):
            return path
    if isinstance(model := published.MODELS.get(source), published.ShippedModel):
        return str(importlib.resources.files("eqjax") / model.file)
    if model is not None:
        return _converted(source, model)
    if os.path.isdir(os.path.join(source, "checkpoints")):
        raise FileNotFoundError(
            f"{source} holds checkpoints of a training run, but no model.safetensors, which is written when the run "
            "ends: start the same command again, and the run resumes."
        )
    on_hub = f" A model of the Hugging Face Hub is hf://{source}." if re.fullmatch(_REPO, source, re.ASCII) else ""
    raise FileNotFoundError(
        f"no weights file at {source}: neither a file, nor a folder with model.safetensors, nor one of the models "
        f"{sorted(published.MODELS)}{did_you_mean(source, published.MODELS)}{on_hub}"
    )


def load_weights(source: str | os.PathLike[str]) -> pretrained.Weights:
    """Returns the weights of a source of `resolve_path`, checked as `eqjax.pretrained.load` does.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: the file cannot be read; that of a cache is to be deleted, as it can be made again.
      ValueError: an address is malformed, or the repository holds a model of another library.
      OSError: the file cannot be fetched.
    """
    path = resolve_path(source)
    try:
        return pretrained.load(path)
    except pretrained.WeightsError as error:
        is_shipped = isinstance(published.MODELS.get(os.fspath(source)), published.ShippedModel)
        if scheme(source) is None and (is_shipped or os.fspath(source) not in published.MODELS):
            raise
        raise pretrained.WeightsError(
            f"{error} It is a copy of {os.fspath(source)}: delete {os.path.realpath(path)}, and it is made again."
        ) from error


def _from_hub(address: hub_address.HubAddress) -> str:
    """Returns the path of a weights file of the Hub in its cache.

    A look at the small file beside it keeps gigabytes of another library's weights away; and by requests for it the
    Hub counts downloads.
    """
    from eqjax.hub import download

    folder, name = os.path.split(address.file)
    if name == hub_address.WEIGHTS_FILE:
        try:
            path = download.fetch(
                address.repo, os.path.join(folder, "config.json"), address.revision, max_bytes=download.MAX_JSON_BYTES
            )
        except download.MissingFileError:
            path = None
        except download.HubError:
            path = None
            if download.cached(address.repo, address.file, address.revision) is None:
                raise
        if path is not None:
            _check_config(path, address)
    path = download.fetch(address.repo, address.file, address.revision)
    commit = re.search(r"snapshots[/\\]([0-9a-f]{40})[/\\]", path)
    if commit is not None and address.revision != commit[1]:
        logging.info("%s is at commit %s.", address, commit[1])
    return path


def _check_config(path: str, address: hub_address.HubAddress) -> None:
    try:
        config = read_json(path)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or config.get("format") != pretrained.FORMAT:
        raise pretrained.WeightsError(
            f'{address} holds no model of eqjax: its config.json has no entry "format": "{pretrained.FORMAT}". '
            "Models are pushed by eqjax.push_to_hub or `eqjax hub upload`."
        )


def _converted(name: str, model: published.PublishedModel) -> str:
    """Returns the path of a published model's weights file, which is fetched and converted the first time."""
    from eqjax.hub import download

    text = json.dumps([dataclasses.asdict(model), pretrained.FORMAT], sort_keys=True)
    path = os.path.join(weights_folder(), f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors")
    if os.path.isfile(path):
        return path
    with exclusive(f"{path}.lock", f"Another process converts {name}: waiting for it."):
        if os.path.isfile(path):
            return path
        parts, fetched = [], []
        for file in model.files:
            fetched.append(download.fetch(model.repo, file.name, model.revision))
            where = f"hf://{model.repo}/{file.name}"
            if file.sha256 is not None:
                download.check_sha256(fetched[-1], file.sha256, where)
            logging.info("Reading %s.", where)
            parts.append(convert_files.read_torch(fetched[-1], **model.generator_fields))
        files = ", ".join(file.name for file in model.files)
        weights = combining.join(parts, f"EMA weights of {files} of hf://{model.repo}")
        try:
            pretrained.save(path, dataclasses.replace(weights, class_names=model.class_names))
        except OSError as error:
            raise OSError(
                f"{name} cannot be kept as {path} ({error}): set EQJAX_WEIGHTS to a folder with "
                f"{sum(map(os.path.getsize, fetched)) / 1e9:.1f} GB to spare."
            ) from error
        logging.info("Converted %s once and for all: %s.", name, path)
    return path


def _from_bucket(source: str) -> str:
    """Returns the path of a copy of a weights file in a bucket; a changed file is copied again."""
    if scheme(source) not in _BUCKETS:
        raise ValueError(
            f"{source} is no address of weights: expected a path, hf://owner/name, or an address in a bucket, "
            f"{', '.join(f'{name}://…' for name in _BUCKETS)}."
        )
    from etils import epath

    try:
        remote = epath.Path(source)
        if not source.endswith(".safetensors"):
            remote /= hub_address.WEIGHTS_FILE
        about = remote.stat()
        identity = hashlib.sha256(f"{remote} {about.length} {about.mtime}".encode()).hexdigest()[:16]
        path = os.path.join(weights_folder(), "buckets", identity, remote.name)
        with exclusive(f"{os.path.dirname(path)}.lock", f"Another process copies {remote}: waiting for it."):
            if not os.path.isfile(path):
                logging.info("Copying %s, %.1f MB, to %s.", remote, about.length / 1e6, path)
                with atomic_write(path) as temporary, remote.open("rb") as opened, open(temporary, "wb") as file:
                    shutil.copyfileobj(opened, file, 2**20)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no weights file at {source}: give the address of a file or of a workdir.") from error
    except Exception as error:  # Each kind of bucket has a library of its own, with errors of its own.
        raise OSError(
            f"{source} cannot be read ({type(error).__name__}: {shorten(str(error))}): gs:// needs the package gcsfs, "
            "s3:// needs s3fs and az:// needs adlfs, each with your credentials. Or copy the file, and give its path."
        ) from error
    return path
