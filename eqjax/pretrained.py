"""Weights files that carry their configuration: safetensors files with modules, parameters and class names."""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
import functools
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

from eqjax import checksums, config_fields, module_fields
from eqjax.config_fields import Table
from eqjax.differences import check_equal
from eqjax.generator import Generator
from eqjax.io import atomic_write, parse_json
from eqjax.messages import check_names, shorten, show
from eqjax.rules import Items, Number, Rule, Text
from eqjax.tokenizer import SemanticConfig, Tokenizer
from eqjax.typing import Params, Tree

_MODULES: dict[str, Any] = {"tokenizer": Tokenizer, "generator": Generator}
_TABLES: dict[str, Table] = {"tokenizer": module_fields.TOKENIZER, "generator": module_fields.GENERATOR}
FORMAT = "eqjax-1"
# Entries of a file's configuration besides its format and its modules.
_ENTRIES: dict[str, Rule] = {
    "latent_scale": Number(above=0, optional=True),
    "class_names": Items(Text(), optional=True),
    "notes": Text(may_be_empty=True),
}
# Types of tensors, as safetensors calls them; `load` converts them to float32.
_TENSOR_TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": jnp.dtype(jnp.bfloat16),
}
# Bounds of what a file may ask for. Length of the header: the published tokenizer's has 50 kB.
MAX_HEADER_BYTES = 2**20
# Absolute value of a weight: trained ones stay below a thousand, those of a run that diverged do not.
MAX_WEIGHT = 1e6
# Blocks that are traced one by one, at up to 10 ms each: the published tokenizer has 31.
MAX_BLOCKS = 128


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

    Raises:
      WeightsError: weights are not finite, or absurdly large; nothing is written.

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
    _check_values(os.fspath(path), tensors, "Nothing was written: the training that made them diverged, most likely.")
    text = json.dumps(config_of(weights))
    metadata = {"eqjax": text, "checksum": str(checksums.of_arrays(tensors, text))}
    with atomic_write(path) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata=metadata)


def config_of(weights: Weights) -> dict[str, Any]:
    """Returns everything in a weights file but the parameters, as JSON values."""
    return {
        "format": FORMAT,
        "latent_scale": weights.latent_scale,
        "class_names": weights.class_names,
        "notes": weights.notes,
        **{name: module_to_dict(module) for name, module in weights.modules.items()},
    }


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
      9
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no weights file at {path}.")
    config, shapes = _read_header(path)
    modules = {name: build_module(name, config[name], path) for name in _MODULES if name in config}
    _check_names(path, shapes, modules)
    try:
        entries = {name: rule.check(name, config[name]) for name, rule in _ENTRIES.items() if name in config}
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: {error}") from error
    class_names = entries.get("class_names") or None
    _check_class_names(path, class_names, modules)
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
    return Weights(modules, params, entries.get("latent_scale"), class_names, entries.get("notes", ""))


def storage_dtype(path: str | os.PathLike[str]) -> np.dtype:
    """Returns the dtype in which a weights file stores its arrays; float32 if there are several.

    Args:
      path: file name.

    Raises:
      WeightsError: the file is not a weights file.
    """
    with _explained(os.fspath(path)), safetensors.safe_open(path, framework="numpy") as file:
        types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - it is no dict
    return _TENSOR_TYPES.get(types.pop() if len(types) == 1 else "", np.dtype(np.float32))


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
    if not isinstance(config, dict) or found != FORMAT:
        raise WeightsError(
            f"{path} is a safetensors file without an eqjax configuration of format {FORMAT!r} "
            f"(found {shorten(repr(found))}); files are written by eqjax.pretrained.save, the training commands, and "
            "eqjax convert."
        )
    check_names(f"{path}: the configuration's entry", config, ("format", *_ENTRIES, *_MODULES), WeightsError)
    if not set(config) & set(_MODULES):
        raise WeightsError(f"{path} configures neither a tokenizer nor a generator.")
    if wrong := sorted(name for name, kind in types.items() if kind not in _TENSOR_TYPES):
        raise WeightsError(
            f"{path}: {shorten(wrong[0])} has type {types[wrong[0]]}; weights are of {tuple(_TENSOR_TYPES)}."
        )
    return config, shapes


def _read_tensors(path: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a weights file, float32, compared with its checksum if it has one.

    Raises:
      WeightsError: arrays or configuration are not those that were written, or no weights.
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
    _check_values(path, tensors, "A damaged file, or the model of a training run that diverged.")
    return {name: tensors.pop(name).astype(np.float32) for name in list(tensors)}


def _check_values(path: str, tensors: Mapping[str, np.ndarray], remedy: str) -> None:
    """Checks that weights are finite and of a size that weights can have.

    Raises:
      WeightsError: some are not; the message names the first array.
    """
    for name, array in tensors.items():
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (low >= -MAX_WEIGHT and high <= MAX_WEIGHT):  # Not a number is neither.
            raise WeightsError(
                f"{path}: {shorten(name)} has values from {low:.4g} to {high:.4g}; weights are finite, and at most "
                f"{MAX_WEIGHT:g} in size. {remedy}"
            )


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


def _check_class_names(path: str, names: tuple[str, ...] | None, modules: Mapping[str, Any]) -> None:
    """Checks that a generator has as many classes as the file has names, or more."""
    if names is not None and "generator" in modules and len(names) > modules["generator"].num_classes:
        raise WeightsError(
            f"{path}: class_names has {len(names)} names for the {modules['generator'].num_classes} classes of the "
            "generator."
        )


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
    if not isinstance(fields, Mapping):
        raise WeightsError(f"{where}: {name}={show(fields)} must be its fields by name.")
    try:
        check_names(f"field of the {name}", fields, tuple(_TABLES[name]))
        values = config_fields.checked(fields, _TABLES[name], f"{name}.")
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{where}: {error}") from error
    try:
        module = _MODULES[name](**values)
        module.dtype = jnp.dtype(module.dtype)
    except (ValueError, ArithmeticError) as error:  # The fields contradict each other.
        raise WeightsError(f"{where}: {name}: {error}") from error
    return module


def abstract_params(module: Any) -> Params:
    """Returns shapes and dtypes of a module's parameters (jax.ShapeDtypeStruct) without computing them."""
    return _abstract_params(module)


@functools.lru_cache(maxsize=16)
def _abstract_params(module: Any) -> Params:
    return jax.eval_shape(module.init_params, jax.random.key(0))


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    leaves: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}
