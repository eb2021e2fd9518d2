"""Weights that carry their configuration: one safetensors file in, a ready model out."""

import dataclasses
import functools
import importlib.resources
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from eqjax import published
from eqjax.generator import Generator
from eqjax.io import atomic_write
from eqjax.model import Model
from eqjax.tokenizer import Tokenizer

_MODULES = {"tokenizer": Tokenizer, "generator": Generator}
_FORMAT = "eqjax-1"


class WeightsError(ValueError):
    """A file is not what it should be; the message says what was expected and what to do."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """The contents of a weights file.

    Attributes:
      modules: {"tokenizer" and/or "generator": module}.
      params: {the same names: parameter tree, numpy float32}.
      latent_scale: what latents are multiplied by to have unit scale; None where unknown.
      class_names: names of the labels, or None.
      notes: free text: where the weights come from.
    """

    modules: dict
    params: dict
    latent_scale: float | None = None
    class_names: tuple[str, ...] | None = None
    notes: str = ""


def save(path, weights, dtype=np.float32):
    """Writes weights and their configuration to a safetensors file, whole or not at all.

    Args:
      path: file name.
      weights: a `Weights`; its parameters may be JAX arrays.
      dtype: storage dtype; they are read back as float32.
    """
    tensors = {}
    for name, params in weights.params.items():
        for keys, array in jax.tree_util.tree_leaves_with_path(params):
            full = "/".join([name, *(key.key for key in keys)])
            # safetensors writes garbage for arrays that are not contiguous.
            tensors[full] = np.ascontiguousarray(np.asarray(array).astype(dtype))
    config = {
        "format": _FORMAT,
        "latent_scale": weights.latent_scale,
        "class_names": weights.class_names,
        "notes": weights.notes,
        **{name: module_to_dict(module) for name, module in weights.modules.items()},
    }
    with atomic_write(path) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata={"eqjax": json.dumps(config)})


def load(path):
    """Reads a file that `save` wrote, checking every array against the configuration inside.

    Returns:
      `Weights`, parameters as numpy float32.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: truncated, of another kind, or arrays that do not fit the configuration.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no weights file at {path}.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            config = json.loads((file.metadata() or {}).get("eqjax", "null"))
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()} if config else {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read as safetensors ({error}): truncated, or not a weights file of eqjax. "
            "PyTorch files are converted with: python -m eqjax.cli.convert"
        ) from error
    if not config or config.get("format") != _FORMAT:
        raise WeightsError(
            f"{path} is a safetensors file without an eqjax configuration of format {_FORMAT!r} "
            f"(found {config and config.get('format')!r}); files are written by eqjax.pretrained.save, the "
            "training commands, and eqjax.cli.convert."
        )
    modules = {name: build_module(name, config[name], path) for name in _MODULES if name in config}
    params = {name: _unflatten(tensors, name) for name in modules}
    for name, module in modules.items():
        _check_shapes(path, name, params[name], abstract_params(module))
    names = config.get("class_names")
    return Weights(
        modules, params, config.get("latent_scale"), tuple(names) if names else None, config.get("notes", "")
    )


def load_pretrained(source="photos", *more):
    """A ready model from weights files.

    Args:
      source: "photos", the model shipped with the package, or the path of a weights file, or of a
        directory that holds `model.safetensors` (a training run's workdir).
      *more: further files, where tokenizer and generator lie apart; a later file takes precedence.

    Returns:
      A `Model`.

    Raises:
      FileNotFoundError, WeightsError: as `load`, or tokenizer and generator do not fit together.
    """
    modules, params, scales, names = {}, {}, {}, None
    for item in (source, *more):
        weights = load(resolve_path(item))
        modules |= weights.modules
        params |= weights.params
        scales |= dict.fromkeys(weights.modules, weights.latent_scale)
        names = weights.class_names or names
    scales = {name: scale for name, scale in scales.items() if scale is not None}
    if len(scales) == 2 and not np.isclose(*scales.values(), rtol=1e-3, atol=0):
        raise WeightsError(
            f"the tokenizer's latents are to be multiplied by {scales['tokenizer']:.6g}, the generator was trained on "
            f"latents multiplied by {scales['generator']:.6g}; files were {[str(source), *map(str, more)]}. Convert "
            "either again with the --latent_scale of the other, or give the tokenizer that the generator saw."
        )
    tokenizer, generator = modules.get("tokenizer"), modules.get("generator")
    if tokenizer and generator and tokenizer.embed_dim != generator.latent_dim:
        raise WeightsError(
            f"the tokenizer's latents have {tokenizer.embed_dim} channels, the generator draws "
            f"{generator.latent_dim}: these files do not belong together: {[str(s) for s in (source, *more)]}."
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


def resolve_path(source):
    """The path of a weights file: of a file, of a training run's workdir, or of a shipped model by its name.

    Raises:
      FileNotFoundError: it is none of these; a run that has not ended is named as such.
    """
    source = os.fspath(source)
    exported = os.path.join(source, "model.safetensors")
    for path in (source, exported):
        if os.path.isfile(path):
            return path
    shipped = {path.stem: str(path) for path in (importlib.resources.files("eqjax") / "weights").glob("*.safetensors")}
    if source in shipped:
        return shipped[source]
    if os.path.isdir(os.path.join(source, "checkpoints")):
        raise FileNotFoundError(
            f"{source} holds checkpoints of a training run, but no model.safetensors, which is written when the run "
            "ends: start the run again, and it goes on to its end."
        )
    raise FileNotFoundError(
        f"no weights file at {source}: neither a file, nor a folder with model.safetensors, nor one of the shipped "
        f"models {sorted(shipped)}."
    )


def module_to_dict(module):
    """The fields of a module as JSON values."""
    fields = {}
    for field in dataclasses.fields(module):
        if field.name in ("parent", "name"):
            continue
        value = getattr(module, field.name)
        if field.name == "dtype":
            value = jnp.dtype(value).name
        fields[field.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    return fields


def build_module(name, fields, where="the configuration"):
    """The module ("tokenizer" or "generator") with the given fields, the inverse of `module_to_dict`.

    Raises:
      WeightsError: a field that the module does not have.
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


@functools.lru_cache(maxsize=16)
def abstract_params(module):
    """Shapes and dtypes of a module's parameters (jax.ShapeDtypeStruct), at no cost."""
    return jax.eval_shape(module.init_params, jax.random.key(0))


def _unflatten(tensors, name):
    tree = {}
    for full, array in tensors.items():
        first, *rest, last = full.split("/")
        if first != name:
            continue
        node = tree
        for key in rest:
            node = node.setdefault(key, {})
        node[last] = array
    return tree


def _check_shapes(path, name, params, expected):
    have = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(params)}
    want = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(expected)}
    if have == want:
        return
    lines = [
        f"  {key}: file {have.get(key)}, configuration {want.get(key)}"
        for key in sorted(have.keys() | want.keys())
        if have.get(key) != want.get(key)
    ]
    more = f"\n  … and {len(lines) - 12} more" if len(lines) > 12 else ""
    raise WeightsError(f"the {name} arrays in {path} do not fit its configuration:\n" + "\n".join(lines[:12]) + more)
