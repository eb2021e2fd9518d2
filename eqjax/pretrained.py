"""Weights files that carry their configuration: from one safetensors file to a ready model."""

from collections.abc import Mapping
import dataclasses
import functools
import importlib.resources
import json
import os
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np
import safetensors
import safetensors.numpy

from eqjax import checksums, published
from eqjax.differences import check_equal
from eqjax.generator import Generator
from eqjax.io import atomic_write
from eqjax.model import Model
from eqjax.tokenizer import SemanticConfig, Tokenizer
from eqjax.typing import Params, Tree

_MODULES: dict[str, Any] = {"tokenizer": Tokenizer, "generator": Generator}
_FORMAT = "eqjax-1"


class WeightsError(ValueError):
    """A file holds other contents than expected; the message names both, and the remedy."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """The contents of a weights file.

    Attributes:
      modules: {"tokenizer" and/or "generator": module}.
      params: {the same names: parameter tree}; numpy float32 after `load`.
      latent_scale: factor that brings latents to unit scale; None if unknown.
      class_names: names of the labels, or None.
      notes: free text on the origin of the weights.
    """

    modules: Mapping[str, Any]
    params: Mapping[str, Params]
    latent_scale: float | None = None
    class_names: tuple[str, ...] | None = None
    notes: str = ""


def save(path: str | os.PathLike[str], weights: Weights, dtype: DTypeLike = np.float32) -> None:
    """Writes weights and their configuration to a safetensors file, whole or not at all.

    Args:
      path: file name.
      weights: modules, parameters and the rest.
      dtype: storage dtype; `load` always returns float32.

    Example:
      >>> import os, tempfile
      >>> weights = load(resolve_path("photos"))
      >>> path = os.path.join(tempfile.mkdtemp(), "tokenizer.safetensors")
      >>> save(path, Weights({"tokenizer": weights.modules["tokenizer"]}, {"tokenizer": weights.params["tokenizer"]}))
      >>> load(path).modules == {"tokenizer": weights.modules["tokenizer"]}
      True
    """
    tensors = {
        # safetensors writes garbage for arrays that are not contiguous.
        name: np.ascontiguousarray(np.asarray(array).astype(dtype))
        for name, array in traverse_util.flatten_dict(weights.params, sep="/").items()
    }
    config = {
        "format": _FORMAT,
        "latent_scale": weights.latent_scale,
        "class_names": weights.class_names,
        "notes": weights.notes,
        **{name: module_to_dict(module) for name, module in weights.modules.items()},
    }
    text = json.dumps(config)
    metadata = {"eqjax": text, "checksum": str(checksums.of_arrays(tensors, text))}
    with atomic_write(path) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata=metadata)


def load(path: str | os.PathLike[str]) -> Weights:
    """Reads a file that `save` wrote, and checks every array against the configuration inside.

    Args:
      path: file name.

    Returns:
      The weights, parameters as numpy float32.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: the file is truncated, damaged (if it has a checksum, as `save` writes it) or of another kind, or
        arrays do not fit the configuration.

    Example:
      >>> weights = load(resolve_path("photos"))
      >>> weights.modules["generator"].num_classes
      8
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no weights file at {path}.")
    config, tensors = _read(path)
    modules = {name: build_module(name, config[name], path) for name in _MODULES if name in config}
    tree = traverse_util.unflatten_dict(tensors, sep="/")
    params = {name: tree.get(name, {}) for name in modules}
    for name, module in modules.items():
        check_equal(
            _shapes(params[name]),
            _shapes(abstract_params(module)),
            f"the {name} arrays in {path} do not fit its configuration:",
            found_name="file",
            expected_name="configuration",
            error=WeightsError,
        )
    names = config.get("class_names")
    return Weights(
        modules, params, config.get("latent_scale"), tuple(names) if names else None, config.get("notes", "")
    )


def _read(path: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the configuration and the arrays, float32, of a weights file."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            config = json.loads((file.metadata() or {}).get("eqjax", "null"))
            tensors = _read_tensors(path, file) if config else {}
    except WeightsError:
        raise
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read as safetensors ({error}): truncated, or not a weights file of eqjax. "
            "PyTorch files are converted with: eqjax convert"
        ) from error
    if not config or config.get("format") != _FORMAT:
        raise WeightsError(
            f"{path} is a safetensors file without an eqjax configuration of format {_FORMAT!r} "
            f"(found {config and config.get('format')!r}); files are written by eqjax.pretrained.save, the "
            "training commands, and eqjax convert."
        )
    return config, tensors


def _read_tensors(path: str, file: Any) -> dict[str, np.ndarray]:
    """Returns the arrays of an open weights file, float32, compared with its checksum if it has one.

    Raises:
      WeightsError: arrays or configuration are not those that were written.
    """
    metadata = file.metadata()
    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    if unknown := sorted(set(metadata) - {"eqjax", "checksum"}):
        raise WeightsError(f"{path} has unknown metadata {unknown}: damaged, or not a weights file of eqjax.")
    saved = metadata.get("checksum")
    if saved not in (None, str(checksums.of_arrays(tensors, metadata["eqjax"]))):
        raise WeightsError(
            f"{path} is damaged: its weights or its configuration are not those that were written, as their checksum "
            "differs. Copy, download or convert it again."
        )
    return {name: tensors.pop(name).astype(np.float32) for name in list(tensors)}


def load_pretrained(source: str | os.PathLike[str] = "photos", *more: str | os.PathLike[str]) -> Model:
    """Loads a ready model from weights files.

    Args:
      source: "photos", the model shipped with the package, or the path of a weights file, or of a
        directory that holds `model.safetensors` (a training run's workdir).
      *more: further files, if tokenizer and generator are in separate ones; a later file takes precedence.

    Returns:
      The model; a module that no file holds is None.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: a file cannot be read, or tokenizer and generator do not fit together.

    Example:
      >>> import eqjax
      >>> model = eqjax.load_pretrained("photos")
      >>> model.sample("cat", num_columns=8, num_flow_steps=5).shape
      (1, 64, 128, 3)
    """
    sources = [os.fspath(path) for path in (source, *more)]
    modules, params, scales, names = {}, {}, {}, None
    for path in sources:
        weights = load(resolve_path(path))
        modules |= weights.modules
        params |= weights.params
        scales |= dict.fromkeys(weights.modules, weights.latent_scale)
        names = weights.class_names or names
    scales = {name: scale for name, scale in scales.items() if scale is not None}
    tokenizer, generator = modules.get("tokenizer"), modules.get("generator")
    if len(scales) == 2 and not np.isclose(*scales.values(), rtol=1e-3, atol=0):
        raise WeightsError(
            f"the tokenizer's latent scale is {scales['tokenizer']:.6g}, but the generator was trained with "
            f"{scales['generator']:.6g} (files: {sources}). Convert either again with the "
            "--latent_scale of the other, or give the tokenizer that the generator was trained with."
        )
    if tokenizer and generator and tokenizer.embed_dim != generator.latent_dim:
        raise WeightsError(
            f"the tokenizer's latents have {tokenizer.embed_dim} channels, the generator's "
            f"{generator.latent_dim} (files: {sources}). Give the tokenizer that the generator was trained with."
        )
    params = jax.tree.map(jnp.asarray, params)
    return Model(
        tokenizer=tokenizer,
        tokenizer_params=params.get("tokenizer", {}),
        generator=generator,
        generator_params=params.get("generator", {}),
        latent_scale=next(iter(scales.values()), published.LATENT_SCALE),
        class_names=names,
    )


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


def module_to_dict(module: Any) -> dict[str, Any]:
    """Returns the fields of a Flax module as JSON values.

    Example:
      >>> from eqjax import Generator
      >>> module_to_dict(Generator(width=64))["width"]
      64
    """
    fields = {}
    for field in dataclasses.fields(module):
        if field.name in ("parent", "name"):
            continue
        value: Any = getattr(module, field.name)
        if field.name == "dtype":
            value = jnp.dtype(value).name
        fields[field.name] = dataclasses.asdict(value) if isinstance(value, SemanticConfig) else value
    return fields


def build_module(name: str, fields: Mapping[str, Any], where: str = "the configuration") -> Any:
    """Builds the module with the given fields, the inverse of `module_to_dict`.

    Args:
      name: "tokenizer" or "generator".
      fields: its fields; missing ones have their defaults.
      where: name of their source for messages.

    Returns:
      The Flax module.

    Raises:
      WeightsError: the module has no such field.
    """
    cls = _MODULES[name]
    known = {field.name for field in dataclasses.fields(cls)} - {"parent", "name"}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise WeightsError(f"{where} has {name} fields {unknown} that eqjax does not know; known: {sorted(known)}.")
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    if "dtype" in fields:
        fields["dtype"] = jnp.dtype(fields["dtype"])
    return cls(**fields)


def abstract_params(module: Any) -> Params:
    """Returns shapes and dtypes of a module's parameters (jax.ShapeDtypeStruct) without computing them."""
    return _abstract_params(module)


@functools.lru_cache(maxsize=16)
def _abstract_params(module: Any) -> Params:
    return jax.eval_shape(module.init_params, jax.random.key(0))


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    leaves: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}
