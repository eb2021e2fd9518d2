"""Pushes models to the Hugging Face Hub: weights, configuration, model card, samples and results."""

from collections.abc import Callable
import dataclasses
import glob
import os
import re
import tempfile
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import loading, pixels, pretrained, published
from eqjax.addresses import local_path
from eqjax.arguments import check_arguments
from eqjax.evaluation import results
from eqjax.evaluation.protocol import weights_id
from eqjax.hub.address import WEIGHTS_FILE, check_repo
from eqjax.hub.card import Card, public_notes
from eqjax.hub.download import HubError, explain
from eqjax.image_output import save_image
from eqjax.io import write_json
from eqjax.model import COMPUTE_DTYPES, Model
from eqjax.rules import Boolean, Either, Instance, PathName, Text

# Classes of the samples on a card, and the width of each in images.
_NUM_CLASSES, _NUM_WIDTHS = 8, 4
# Options of the samples: good ones in few steps.
_SAMPLING = {"num_flow_steps": 25, "solver": "adams_bashforth", "guidance_scale": 2.0, "guidance_schedule": "constant"}


@check_arguments(
    source=Either((Instance(Model, "an eqjax.Model"), PathName())),
    repo=Text(),
    revision=Text(optional=True),
    private=Boolean(),
    message=Text(),
    results_folder=PathName(optional=True),
    samples=Either((Boolean(), PathName())),
    license=Text(optional=True),
    base_model=Text(optional=True),
)
def push_to_hub(
    source: Model | str | os.PathLike[str],
    repo: str,
    *,
    revision: str | None = None,
    private: bool = False,
    message: str = "Upload a model of eqjax",
    results_folder: str | os.PathLike[str] | None = None,
    samples: str | os.PathLike[str] | bool = True,
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """Pushes a model to the Hugging Face Hub, in one commit, and returns its address.

    The repository gets model.safetensors, config.json (by which the Hub counts downloads), README.md (the model card,
    see `eqjax.hub.card`), samples.png and results.json. It is made if it does not exist. Log in before, with
    `hf auth login` or HF_TOKEN. Of several processes, only the first one pushes.

    Args:
      source: a model, or anything that `load_pretrained` takes: a weights file, a workdir, a name. The weights of a
        model are stored in float32.
      repo: the repository, owner/name.
      revision: the branch to push to, which is made if it does not exist; None: main.
      private: whether a new repository is private.
      message: message of the commit.
      results_folder: folder of `eqjax evaluate` (its --output), whose results.json is pushed and shown on the card;
        None: the workdir, if it has results.
      samples: an image file; True: the newest samples in the workdir, or samples drawn here; False: none.
      license: license of the weights, as the Hub abbreviates it ("mit", "cc-by-4.0"); None: the card says that none is
        stated.
      base_model: the model on the Hub that the weights were made from, owner/name; None: that of a published name.

    Returns:
      hf://owner/name@commit, which `load_pretrained` takes.

    Raises:
      FileNotFoundError: there are no such weights, results or samples.
      ValueError: the repository's name is malformed, or the results are those of other weights.
      HubError: the Hub refuses, or cannot be reached; nothing was pushed.

    Example:
      >>> push_to_hub("runs/generator", "owner/name", results_folder="outputs/evaluation")  # doctest: +SKIP
      'hf://owner/name@8f6e2a…'
    """
    check_repo(repo, repo)
    with tempfile.TemporaryDirectory(prefix="eqjax-hub-") as folder:
        prepare(
            folder,
            source,
            repo,
            results_folder=results_folder,
            samples=samples,
            license=license,
            base_model=base_model,
        )
        if jax.process_index() != 0:
            return f"hf://{repo}"
        sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
        logging.info(
            "Pushing %s to %s.", ", ".join(f"{name} ({size / 1e6:,.1f} MB)" for name, size in sizes.items()), repo
        )
        commit = _push(folder, repo, revision, private, message)
    logging.info("Pushed: %s", commit.commit_url)
    return f"hf://{repo}@{commit.oid}"


def prepare(
    folder: str | os.PathLike[str],
    source: Model | str | os.PathLike[str],
    repo: str,
    *,
    results_folder: str | os.PathLike[str] | None = None,
    samples: str | os.PathLike[str] | bool = True,
    license: str | None = None,
    base_model: str | None = None,
) -> None:
    """Writes the files of a repository into a folder, as `push_to_hub` pushes them.

    Args:
      folder: the folder; it exists.
      source, repo, results_folder, samples, license, base_model: as for `push_to_hub`.

    Raises:
      FileNotFoundError: there are no such weights, results or samples.
      ValueError: the results are those of other weights.
    """
    weights, model = _read(source)
    weights = dataclasses.replace(weights, notes=public_notes(weights.notes))
    workdir = None if isinstance(source, Model) or not os.path.isdir(source) else os.fspath(source)
    rows = _results(model, results_folder, workdir)
    image = _samples(model, samples, workdir)
    dtype = np.float32 if isinstance(source, Model) else pretrained.storage_dtype(loading.resolve_path(source))
    pretrained.save(os.path.join(folder, WEIGHTS_FILE), weights, dtype)
    write_json(os.path.join(folder, "config.json"), pretrained.config_of(weights))
    if rows:
        write_json(os.path.join(folder, "results.json"), rows)
    if image is not None:
        save_image(os.path.join(folder, "samples.png"), image)
    if base_model is None and not isinstance(source, Model):
        named = published.MODELS.get(os.fspath(source))
        base_model = named.repo if isinstance(named, published.PublishedModel) else None
    card = Card(weights, repo, rows, image is not None, license, base_model)
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as file:
        file.write(card.text())


def _read(source: Any) -> tuple[pretrained.Weights, Model]:
    """Returns weights and model of a source."""
    if not isinstance(source, Model):
        weights = loading.load_weights(source)
        return weights, loading.build_model(weights)
    names = [name for name in ("tokenizer", "generator") if getattr(source, name) is not None]
    weights = pretrained.Weights(
        {name: getattr(source, name) for name in names},
        {name: jax.device_get(getattr(source, f"{name}_params")) for name in names},
        source.latent_scale,
        source.class_names,
    )
    return weights, source


def _results(model: Model, folder: Any, workdir: str | None) -> list[results.Result]:
    """Returns the rows of results.json, of these weights in whatever type they were evaluated in."""
    where = os.fspath(folder) if folder is not None else workdir
    if where is None:
        return []
    where = local_path(where, "the folder of results")
    rows = [row for row in results.load(where) if row["metrics"]]
    if folder is not None and not rows:
        raise FileNotFoundError(f"no results with metrics in {where}: give the --output of `eqjax evaluate`.")
    known = {weights_id(model)}
    if {row["protocol"].get("weights") for row in rows} - known:
        known |= {weights_id(model.astype(dtype)) for dtype in COMPUTE_DTYPES}
    others = sorted({str(row["protocol"].get("weights")) for row in rows} - known)
    if others:
        raise ValueError(
            f"{os.path.join(where, 'results.json')} has results of other weights ({', '.join(others)}; these are "
            f"{weights_id(model)}): evaluate the weights that are pushed, or give another folder."
        )
    return rows


def _samples(model: Model, samples: Any, workdir: str | None) -> np.ndarray | None:
    """Returns the image of the card: the given one, the newest of the workdir, or one that is drawn."""
    if samples is False:
        return None
    if samples is not True:
        from eqjax import image_files

        return image_files.read(local_path(samples, "samples"))
    found = sorted(glob.glob(os.path.join(glob.escape(workdir), "images", "samples_*.png"))) if workdir else []
    if found:
        from eqjax import image_files

        return image_files.read(found[-1])
    if model.tokenizer is None or model.generator is None:
        return None
    labels = jnp.arange(min(_NUM_CLASSES, model.generator.num_classes))
    columns = _NUM_WIDTHS * max(1, model.tokenizer.resolution // model.tokenizer.column_width)
    logging.info("Sampling %d images for the card.", len(labels))
    return pixels.grid(np.asarray(model.sample(labels, num_columns=columns, **_SAMPLING)), columns=1)


def _push(folder: str, repo: str, revision: str | None, private: bool, message: str) -> Any:
    """Makes the repository and the branch, and commits the folder."""
    import huggingface_hub

    api = huggingface_hub.HfApi(library_name="eqjax")
    calls: list[Callable[[], Any]] = [lambda: api.create_repo(repo, private=private, exist_ok=True)]
    if revision is not None and not re.fullmatch("refs/pr/[0-9]+", revision):
        calls.append(lambda: api.create_branch(repo, branch=revision, exist_ok=True))
    calls.append(lambda: api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, revision=revision))
    try:
        return [call() for call in calls][-1]
    except Exception as error:  # Errors of huggingface_hub and of the library below it, which is not always the same.
        explained = explain(error, f"pushing to hf://{repo}", repo, revision)
        raise HubError(f"nothing was pushed: {explained}") from error
