"""Weights files that carry their configuration: safetensors files with modules, parameters and class names."""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import json
import os
import types
import typing
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np
import safetensors
import safetensors.numpy

from eqjax import checksums
from eqjax.arguments import shorten
from eqjax.differences import check_equal
from eqjax.generator import Generator
from eqjax.io import atomic_write, parse_json
from eqjax.tokenizer import SemanticConfig, Tokenizer
from eqjax.typing import Params, Tree

_MODULES: dict[str, Any] = {"tokenizer": Tokenizer, "generator": Generator}
_FORMAT = "eqjax-1"
_HEADER_FIELDS = ("format", "latent_scale", "class_names", "notes", *_MODULES)
# Types of tensors, as safetensors calls them; `load` converts them to float32.
_TENSOR_TYPES = ("F64", "F32", "F16", "BF16")
# Bounds of what a file may ask for. Length of the header: the published tokenizer's has 50 kB.
MAX_HEADER_BYTES = 2**20
# Blocks that are traced one by one, at up to 10 ms each: the published tokenizer has 31.
MAX_BLOCKS = 128
# Items of a list in the configuration: a tokenizer with more levels would need images of 2**32 rows.
MAX_LIST_LENGTH = 32
# Positions, windows and counts are 32-bit integers in JAX.
MAX_INTEGER = 2**31 - 1


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
      >>> from eqjax import loading
      >>> weights = load(loading.resolve_path("photos"))
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
      WeightsError: the file is truncated, damaged (if it has a checksum, as `save` writes it) or of another kind, its
        configuration has unknown, wrong or unbounded values, or arrays do not fit it. All but the checksum is
        compared before an array is read.

    Example:
      >>> from eqjax import loading
      >>> weights = load(loading.resolve_path("photos"))
      >>> weights.modules["generator"].num_classes
      8
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no weights file at {path}.")
    config, shapes = _read_header(path)
    modules = {name: build_module(name, config[name], path) for name in _MODULES if name in config}
    _check_names(path, shapes, modules)
    latent_scale, class_names = _latent_scale(path, config), _class_names(path, config, modules)
    notes = _checked(config.get("notes", ""), str, path, "notes")
    for name, module in modules.items():
        check_equal(
            {key.removeprefix(f"{name}/"): shape for key, shape in shapes.items() if key.startswith(f"{name}/")},
            _declared_shapes(path, name, module),
            f"the {name} arrays in {path} do not fit its configuration:",
            found_name="file",
            expected_name="configuration",
            error=WeightsError,
        )
    params = traverse_util.unflatten_dict(_read_tensors(path), sep="/")
    return Weights(modules, params, latent_scale, class_names, notes)


def _read_header(path: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Returns the configuration and the arrays' shapes, without reading the arrays."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if MAX_HEADER_BYTES < length < os.path.getsize(path):
        raise WeightsError(f"{path} has a header of {length} bytes; weights files have at most {MAX_HEADER_BYTES}.")
    with _explained(path), safetensors.safe_open(path, framework="numpy") as file:
        config = parse_json((file.metadata() or {}).get("eqjax", "null"))
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        shapes = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
        types = {name: tensor.get_dtype() for name, tensor in tensors.items()}
    found = config.get("format") if isinstance(config, dict) else None
    if not isinstance(config, dict) or found != _FORMAT:
        raise WeightsError(
            f"{path} is a safetensors file without an eqjax configuration of format {_FORMAT!r} "
            f"(found {shorten(repr(found))}); files are written by eqjax.pretrained.save, the training commands, and "
            "eqjax convert."
        )
    if unknown := sorted(set(config) - set(_HEADER_FIELDS)):
        raise WeightsError(
            f"{path} has a configuration with entries {shorten(str(unknown))} that eqjax does not know; known: "
            f"{list(_HEADER_FIELDS)}."
        )
    if not set(config) & set(_MODULES):
        raise WeightsError(f"{path} configures neither a tokenizer nor a generator.")
    if wrong := sorted(name for name, kind in types.items() if kind not in _TENSOR_TYPES):
        raise WeightsError(f"{path}: {shorten(wrong[0])} has type {types[wrong[0]]}; weights are of {_TENSOR_TYPES}.")
    return config, shapes


def _read_tensors(path: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a weights file, float32, compared with its checksum if it has one.

    Raises:
      WeightsError: arrays or configuration are not those that were written.
    """
    with _explained(path), safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    if unknown := sorted(set(metadata) - {"eqjax", "checksum"}):
        raise WeightsError(
            f"{path} has unknown metadata {shorten(str(unknown))}: damaged, or not a weights file of eqjax."
        )
    saved = metadata.get("checksum")
    if saved not in (None, str(checksums.of_arrays(tensors, metadata["eqjax"]))):
        raise WeightsError(
            f"{path} is damaged: its weights or its configuration are not those that were written, as their checksum "
            "differs. Copy, download or convert it again."
        )
    return {name: tensors.pop(name).astype(np.float32) for name in list(tensors)}


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turns the exceptions that a damaged file provokes into one clear error."""
    try:
        yield
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{path} cannot be read as safetensors ({shorten(str(error))}): truncated, or not a weights file of eqjax. "
            "PyTorch files are converted with: eqjax convert"
        ) from error


def _check_names(path: str, names: Iterable[str], modules: Mapping[str, Any]) -> None:
    """Checks that every array belongs to a module of the file."""
    for name in names:
        part, slash, _ = name.partition("/")
        if not slash or part not in modules:
            raise WeightsError(
                f"{path} has an array called {shorten(name)!r}; names begin with "
                f"{' or '.join(f'{part}/' for part in modules)} in a file with this configuration."
            )


def _latent_scale(path: str, config: Mapping[str, Any]) -> float | None:
    scale = _checked(config.get("latent_scale"), float | None, path, "latent_scale")
    if scale is not None and scale <= 0:
        raise WeightsError(f"{path}: latent_scale is {scale}; expected a positive number, or null.")
    return scale


def _class_names(path: str, config: Mapping[str, Any], modules: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = config.get("class_names")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WeightsError(f"{path}: class_names is {shorten(repr(names))}; expected a list of strings, or null.")
    if "generator" in modules and len(names) > modules["generator"].num_classes:
        raise WeightsError(
            f"{path}: class_names has {len(names)} names for the {modules['generator'].num_classes} classes of the "
            "generator."
        )
    return tuple(names) or None


def _declared_shapes(path: str, name: str, module: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a module's parameters, at a bounded cost."""
    check_depth(name, module, path)
    try:
        return _shapes(abstract_params(module))
    except Exception as error:  # The fields are valid one by one; JAX and Flax raise anything at sizes out of reach.
        raise WeightsError(
            f"{path}: the {name} of its configuration cannot be built ({shorten(str(error))})."
        ) from error


def check_depth(name: str, module: Any, where: str) -> None:
    """Checks that a module from outside can be traced within about a second.

    Args:
      name: "tokenizer" or "generator".
      module: the module.
      where: name of its source for messages.

    Raises:
      WeightsError: the module has more than `MAX_BLOCKS` blocks.
    """
    if isinstance(module, Tokenizer):
        blocks = (2 * module.num_res_blocks + 1) * len(module.channel_multipliers)
        if isinstance(module.semantic, SemanticConfig):
            blocks += module.semantic.num_res_blocks * len(module.semantic.channel_multipliers)
        fields = "num_res_blocks and channel_multipliers"
    else:
        blocks, fields = module.flow_depth, "flow_depth"  # The generator's layers are stacked: traced once.
    if blocks > MAX_BLOCKS:
        raise WeightsError(f"{where}: {fields} of the {name} make {blocks} blocks; at most {MAX_BLOCKS} are built.")


def join(parts: Iterable[Weights], notes: str) -> Weights:
    """Joins a tokenizer's and a generator's weights; a later part takes precedence.

    Args:
      parts: the weights.
      notes: free text on their origin.

    Raises:
      WeightsError: tokenizer and generator do not fit together.
    """
    modules: dict[str, Any] = {}
    params: dict[str, Any] = {}
    scales: dict[str, float | None] = {}
    names = None
    for part in parts:
        modules |= part.modules
        params |= part.params
        scales |= dict.fromkeys(part.modules, part.latent_scale)
        names = part.class_names or names
    known = {name: scale for name, scale in scales.items() if scale is not None}
    if len(known) == 2 and not np.isclose(*known.values(), rtol=1e-3, atol=0):
        raise WeightsError(
            f"the tokenizer's latent scale is {known['tokenizer']:.6g}, but the generator was trained with "
            f"{known['generator']:.6g} ({notes}). Convert either again with the --latent_scale of the other, or give "
            "the tokenizer that the generator was trained with."
        )
    tokenizer, generator = modules.get("tokenizer"), modules.get("generator")
    if tokenizer and generator and tokenizer.embed_dim != generator.latent_dim:
        raise WeightsError(
            f"the tokenizer's latents have {tokenizer.embed_dim} channels, the generator's {generator.latent_dim} "
            f"({notes}). Give the tokenizer that the generator was trained with."
        )
    return Weights(modules, params, next(iter(known.values()), None), names, notes)


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


def build_module(name: str, fields: Any, where: str = "the configuration") -> Any:
    """Builds the module with the given fields, the inverse of `module_to_dict`.

    Args:
      name: "tokenizer" or "generator".
      fields: its fields, a mapping; missing ones have their defaults.
      where: name of their source for messages.

    Returns:
      The Flax module.

    Raises:
      WeightsError: the module has no such field, or a value is of another type or out of range.

    Example:
      >>> build_module("generator", {"width": 64, "num_heads": 2}).head_dim
      32
    """
    cls = _MODULES[name]
    values = _checked_fields(cls, fields, where, name)
    semantic = values.get("semantic")
    if semantic is not None and not isinstance(semantic, SemanticConfig):
        values["semantic"] = _build_semantic(semantic, where, f"{name}.semantic")
    if "dtype" in values:
        values["dtype"] = _float_dtype(values["dtype"], where, f"{name}.dtype")
    try:
        return cls(**values)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise WeightsError(f"{where}: {name}: {error}") from error


def _build_semantic(fields: Any, where: str, name: str) -> SemanticConfig:
    if not isinstance(fields, Mapping):
        raise WeightsError(
            f"{where}: {name} is {shorten(repr(fields))}; expected the fields of a semantic head, or null."
        )
    values = _checked_fields(SemanticConfig, fields, where, name)
    if missing := [field.name for field in dataclasses.fields(SemanticConfig) if field.name not in values]:
        raise WeightsError(f"{where}: {name} lacks {missing}.")
    for key, value in values.items():
        least = 0 if key == "downsamples" else 1
        if min(value if isinstance(value, tuple) else (value,), default=-1) < least:
            raise WeightsError(f"{where}: {name}.{key} is {value}; expected at least {least}.")
    return SemanticConfig(**values)


def _checked_fields(cls: Any, fields: Any, where: str, name: str) -> dict[str, Any]:
    """Checks names and types of a dataclass's fields against its annotations; lists become tuples."""
    if not isinstance(fields, Mapping):
        raise WeightsError(f"{where}: {name} is {shorten(repr(fields))}; expected its fields by name.")
    known = {field.name for field in dataclasses.fields(cls)} - {"parent", "name"}
    if unknown := sorted(set(map(str, fields)) - known):
        raise WeightsError(
            f"{where} has {name} fields {shorten(str(unknown))} that eqjax does not know; known: {sorted(known)}."
        )
    hints = typing.get_type_hints(cls)
    # The types of these two are checked where they are built.
    values = {
        key: value if key in ("dtype", "semantic") else _checked(value, hints[key], where, f"{name}.{key}")
        for key, value in fields.items()
    }
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _float_dtype(value: Any, where: str, name: str) -> np.dtype:
    try:
        dtype = jnp.dtype("bool" if value is None else value)  # None is numpy's name for float64.
    except (TypeError, ValueError):
        dtype = np.dtype("bool")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise WeightsError(f"{where}: {name} is {shorten(repr(value))}; expected a floating-point type like 'float32'.")
    return dtype


def _checked(value: Any, hint: Any, where: str, name: str) -> Any:
    """Returns a value from outside if it is of the type that an annotation says."""
    if not _is_of(value, hint):
        raise WeightsError(f"{where}: {name} is {shorten(repr(value))}; expected {_in_words(hint)}.")
    return value


def _is_of(value: Any, hint: Any) -> bool:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_is_of(value, argument) for argument in arguments)
    if arguments:  # A sequence.
        fits = isinstance(value, (list, tuple)) and len(value) <= MAX_LIST_LENGTH
        return fits and all(_is_of(item, arguments[0]) for item in value)
    if hint in (int, float):
        kinds = (int, np.integer) if hint is int else (int, float, np.integer, np.floating)
        return isinstance(value, kinds) and not isinstance(value, bool) and bool(abs(value) <= MAX_INTEGER)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, arguments))
    if arguments:
        return f"a list of at most {MAX_LIST_LENGTH} integers"
    words = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "null"}
    return f"{words[hint]} up to {MAX_INTEGER}" if hint in (int, float) else words[hint]


def abstract_params(module: Any) -> Params:
    """Returns shapes and dtypes of a module's parameters (jax.ShapeDtypeStruct) without computing them."""
    return _abstract_params(module)


@functools.lru_cache(maxsize=16)
def _abstract_params(module: Any) -> Params:
    return jax.eval_shape(module.init_params, jax.random.key(0))


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    leaves: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}
