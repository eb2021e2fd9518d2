"""Converts published PyTorch files to weights files, and back; PyTorch is not needed."""

from collections.abc import Iterable, Mapping
import json
import os
from typing import Any, Literal

from eqjax import convert, pretrained, published
from eqjax.convert import torch_archive
from eqjax.io import parse_json, read_text
from eqjax.messages import shorten

# A thousand names of ImageNet, with all synonyms, have 30 kB.
MAX_CLASS_FILE_BYTES = 2**22


def read_torch(
    source: str | os.PathLike[str],
    variant: Literal["ema", "raw"] = "ema",
    latent_scale: float | None = None,
    class_names: Iterable[str] | None = None,
    **generator_fields: Any,
) -> pretrained.Weights:
    """Reads a published file as weights of eqjax.

    Args:
      source: path of the file.
      variant: "ema" for EMA weights, "raw" for the weights of the last step.
      latent_scale: goes with the weights; None: the published one for a tokenizer, none for a generator, which then
        fits any tokenizer.
      class_names: names of a generator's classes, in the order of their labels.
      **generator_fields: fields that do not follow from shapes, see `eqjax.convert.infer_generator_config`.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointFileError: the file cannot be read.
      ConversionError: names or shapes of its arrays do not fit, or there is not one class name for every class.
    """
    source = os.fspath(source)
    checkpoint = convert.read_reference(source)
    try:
        kind, state_dict, arguments = convert.pick_weights(checkpoint, source, variant)
        names = None if class_names is None else tuple(class_names)
        if kind == "tokenizer":
            module = pretrained.build_module(kind, convert.infer_tokenizer_config(state_dict), source)
            pretrained.check_depth(kind, module, source)
            params = convert.tokenizer_params(state_dict, module)
            latent_scale = published.LATENT_SCALE if latent_scale is None else latent_scale
            if names is not None:
                raise convert.ConversionError(
                    f"{source} is a tokenizer, which has no classes: give names to a generator."
                )
        else:
            fields = convert.infer_generator_config(state_dict, arguments, **generator_fields)
            module = pretrained.build_module(kind, fields, source)
            pretrained.check_depth(kind, module, source)
            if names is not None and len(names) != module.num_classes:
                raise convert.ConversionError(
                    f"{len(names)} class names for the {module.num_classes} classes of {source}: give one for each, in "
                    "the order of the labels."
                )
            params = convert.generator_params(state_dict, module)
    except convert.ConversionError as error:
        raise error if source in str(error) else convert.ConversionError(f"{source}: {error}") from error
    notes = f"{'EMA' if variant == 'ema' else 'raw'} weights of a PyTorch file"
    return pretrained.Weights({kind: module}, {kind: params}, latent_scale, names, notes)


def from_torch(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *args: Any, **keywords: Any
) -> pretrained.Weights:
    """Converts a published file to a weights file of eqjax, whole or not at all.

    Args:
      source: path of the file to read.
      target: path of the file to write.
      *args, **keywords: further arguments of `read_torch`.

    Returns:
      The weights that were written.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointFileError: the file cannot be read.
      ConversionError: names or shapes of its arrays do not fit, or there is not one class name for every class.
    """
    weights = read_torch(source, *args, **keywords)
    pretrained.save(target, weights)
    return weights


def to_torch(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    part: str | None = None,
) -> pretrained.Weights:
    """Converts a weights file of eqjax to a PyTorch file in the published format.

    Args:
      source: path of the file to read.
      target: path of the file to write.
      part: "tokenizer" or "generator"; None: the only one in the file.

    Returns:
      The weights that were read, reduced to the part.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: the file cannot be read.
      ConversionError: the file holds both parts and none is named, or lacks the named one.
    """
    weights = pretrained.load(source)
    if part is None and len(weights.modules) != 1:
        raise convert.ConversionError(f"{source} holds {sorted(weights.modules)}: name one with --part.")
    part = part or next(iter(weights.modules))
    if part not in weights.modules:
        raise convert.ConversionError(f"{source} holds no {part}, but {sorted(weights.modules)}: name one with --part.")
    module, params = weights.modules[part], weights.params[part]
    export = convert.tokenizer_state_dict if part == "tokenizer" else convert.generator_state_dict
    torch_archive.save(target, convert.published_checkpoint(part, export(params, module)))
    return pretrained.Weights({part: module}, {part: params}, weights.latent_scale)


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Reads the names of classes from a file: one per line, or JSON.

    Args:
      path: a text file (UTF-8) with a name per line, in the order of the labels; or, named *.json, a list of names or
        an object {label: name}, as many sources of ImageNet's names have it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a name is empty or appears twice, a label is missing, or the file is none of these.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no class names at {path}.")
    text = read_text(path, MAX_CLASS_FILE_BYTES).removeprefix("\ufeff")
    if path.endswith(".json"):
        try:
            names = _names_of_json(parse_json(text), path)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON ({error}).") from error
    else:
        names = text.rstrip().split("\n")
    names = [" ".join(str(name).split()) for name in names]
    if "" in names:
        raise ValueError(f"{path} has no name for class {names.index('')}: give one per class.")
    places: dict[str, int] = {}
    for i, name in enumerate(names):
        if name in places:
            raise ValueError(
                f"{path} has the name {shorten(name)!r} for the classes {places[name]} and {i}: make both unique, as "
                f"in '{shorten(name)} (bird)'."
            )
        places[name] = i
    return tuple(names)


def _names_of_json(values: Any, path: str) -> list[Any]:
    """Returns the names in a JSON list, or in an object by label."""
    if isinstance(values, Mapping):
        missing = [label for label in map(str, range(len(values))) if label not in values]
        if missing:
            raise ValueError(f"{path} has no name for class {missing[0]}; expected the labels 0 … {len(values) - 1}.")
        values = [values[str(label)] for label in range(len(values))]
    if not isinstance(values, list) or not values or not all(isinstance(name, str) for name in values):
        raise ValueError(
            f"{path} holds {shorten(repr(values))}; expected a list of names, or an object {{label: name}}."
        )
    return values
