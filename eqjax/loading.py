"""Loads models: by name, from files and workdirs, and from the Hugging Face Hub."""

import importlib.resources
import os
from typing import Any

import jax
import jax.numpy as jnp

from eqjax import pretrained, published
from eqjax.model import Model, check_dtype, check_precision


def load_pretrained(
    source: str | os.PathLike[str] = "photos",
    *more: str | os.PathLike[str],
    dtype: Any = None,
    precision: Any = "highest",
) -> Model:
    """Loads a ready model from weights files.

    Args:
      source: "photos", the model shipped with the package, or the path of a weights file, or of a
        directory that holds `model.safetensors` (a training run's workdir).
      *more: further files, if tokenizer and generator are in separate ones; a later file takes precedence.
      dtype: "float32", "bfloat16" or "float16": the modules compute in it, and parameters are cast to it once, see
        `Model.astype`; None: the modules compute in the type of their configuration, and parameters are float32.
      precision: of products of float32 numbers, "highest" (float32), "tf32" or "bfloat16", see `Model`.

    Returns:
      The model; a module that no file holds is None.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: a file cannot be read, or tokenizer and generator do not fit together.
      ValueError, TypeError: dtype or precision is unknown.

    Example:
      >>> import eqjax
      >>> model = eqjax.load_pretrained("photos")
      >>> model.sample("cat", num_columns=8, num_flow_steps=5).shape
      (1, 64, 128, 3)
    """
    precision = check_precision(precision)
    if dtype is not None:
        check_dtype(dtype)  # Raises an error before anything is read.
    sources = [os.fspath(path) for path in (source, *more)]
    weights = pretrained.join([pretrained.load(resolve_path(path)) for path in sources], f"files: {sources}")
    model = Model(
        tokenizer=weights.modules.get("tokenizer"),
        tokenizer_params=weights.params.get("tokenizer", {}),
        generator=weights.modules.get("generator"),
        generator_params=weights.params.get("generator", {}),
        latent_scale=published.LATENT_SCALE if weights.latent_scale is None else weights.latent_scale,
        class_names=weights.class_names,
        precision=precision,
    )
    # Cast on the host, so that an accelerator never holds both copies.
    return jax.tree.map(jnp.asarray, model if dtype is None else model.astype(dtype))


def resolve_path(source: str | os.PathLike[str]) -> str:
    """Returns the path of a weights file: of a file, of a training run's workdir, or of a shipped model by its name.

    Raises:
      FileNotFoundError: it is none of these; the message names a run that has not ended.
    """
    source = os.fspath(source)
    exported = os.path.join(source, "model.safetensors")
    for path in (source, exported):
        if os.path.isfile(path):
            return path
    folder = importlib.resources.files("eqjax") / "weights"
    shipped = {
        entry.name.removesuffix(".safetensors"): str(entry)
        for entry in folder.iterdir()
        if entry.name.endswith(".safetensors")
    }
    if source in shipped:
        return shipped[source]
    if os.path.isdir(os.path.join(source, "checkpoints")):
        raise FileNotFoundError(
            f"{source} holds checkpoints of a training run, but no model.safetensors, which is written when the run "
            "ends: start the same command again, and the run resumes."
        )
    raise FileNotFoundError(
        f"no weights file at {source}: neither a file, nor a folder with model.safetensors, nor one of the shipped "
        f"models {sorted(shipped)}."
    )
