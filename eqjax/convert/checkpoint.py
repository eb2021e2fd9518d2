"""The reference's checkpoint files: their kinds, and the EMA and raw weights inside.

A tokenizer's file holds its raw weights, and EMA weights as `ema_<part>.<name without dots>`; a generator's
file holds a state_dict of each. Names of raw weights are the reference names of all of eqjax.convert.
"""

from collections.abc import Mapping
import os
import re
from typing import Any, Literal

from absl import logging
import numpy as np
import safetensors
import safetensors.numpy

from eqjax.arguments import check_arguments
from eqjax.convert import torch_archive
from eqjax.convert.rules import STATE_DICT, ConversionError, listing
from eqjax.messages import shorten
from eqjax.rules import Choice, PathName
from eqjax.typing import StateDict

# Networks of the training objective, and counters of the EMA.
BESIDE_WEIGHTS = re.compile(r"loss\..*|ema_\w+\.(decay|num_updates)")
_PARTS = ("encoder", "decoder", "semantic_decoder", "quant_layer", "post_quant_layer")

# Weights of a training file: the exponential moving average, which inference uses, or the raw ones.
Variant = Literal["ema", "raw"]


@check_arguments(path=PathName())
def read_reference(path: str | os.PathLike[str]) -> Any:
    """Reads a reference file: of torch.save, or (named *.safetensors) of safetensors.

    Args:
      path: the file.

    Returns:
      The content, as `eqjax.convert.torch_archive.load` describes it.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointFileError: it cannot be read.
    """
    path = os.fspath(path)
    if not path.endswith(".safetensors") or not os.path.isfile(path):
        return torch_archive.load(path)
    try:
        return safetensors.numpy.load_file(path)
    except MemoryError:  # Not a property of the file, whose arrays are as large as itself.
        raise
    except Exception as error:  # Among them TypeError and KeyError, for dtypes that numpy does not have.
        raise torch_archive.CheckpointFileError(
            f"{path} cannot be read as safetensors ({shorten(str(error))}): truncated or damaged. {torch_archive.AGAIN}"
        ) from error


@check_arguments(where=PathName(), variant=Choice(("ema", "raw")))
def pick_weights(
    checkpoint: Any, where: str | os.PathLike[str], variant: Variant = "ema"
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Returns the weights inside a published file, or in a bare state_dict.

    Args:
      checkpoint: content of the file, from `read_reference`.
      where: name of the file for messages.
      variant: EMA or raw weights. A bare state_dict without `ema_*` names has only one set of weights,
        which is taken.

    Returns:
      "tokenizer" or "generator"; {reference name: array}; the training arguments found in the file.

    Raises:
      CheckpointFileError: weights are not tensors.
      ConversionError: the file is of neither kind, or lacks the requested weights.

    Example:
      >>> checkpoint = read_reference("generator.ckpt")  # doctest: +SKIP
      >>> kind, state_dict, arguments = pick_weights(checkpoint, "generator.ckpt")  # doctest: +SKIP
    """
    where = os.fspath(where)
    if not isinstance(checkpoint, dict):
        raise ConversionError(f"{where} holds {type(checkpoint).__name__}, not a tokenizer or generator.")
    if "model" in checkpoint or "model_ema" in checkpoint:
        key = "model_ema" if variant == "ema" else "model"
        if key not in checkpoint:
            raise ConversionError(
                f"{where} has no {key!r}; it holds {_some_names(checkpoint)}. Try the other variant, EMA or raw."
            )
        return "generator", torch_archive.state_dict(checkpoint[key], f"{where}: {key}"), _arguments(checkpoint)
    if "class_emb.weight" in checkpoint:
        return "generator", torch_archive.state_dict(checkpoint, where), {}
    bare = "encoder.conv_in.weight" in checkpoint
    if not bare and "state_dict" not in checkpoint:
        raise ConversionError(
            f"{where} is neither a tokenizer (state_dict) nor a generator (model, model_ema); it holds "
            f"{_some_names(checkpoint)}."
        )
    full = torch_archive.state_dict(checkpoint if bare else checkpoint["state_dict"], where)
    if variant == "ema" and not (bare and not any(map(_is_ema, full))):
        return "tokenizer", ema_tokenizer_state_dict(full), {}
    return "tokenizer", raw_tokenizer_state_dict(full), {}


@check_arguments(kind=Choice(("tokenizer", "generator")), state_dict=STATE_DICT)
def published_checkpoint(kind: str, state_dict: StateDict) -> dict[str, Any]:
    """Returns a file's contents in the published format, with the same weights as raw and as EMA weights.

    Args:
      kind: "tokenizer" or "generator".
      state_dict: reference names to arrays.
    """
    if kind == "generator":
        return {"model": state_dict, "model_ema": state_dict}
    return {"state_dict": full_tokenizer_state_dict(state_dict)}


@check_arguments(full_state_dict=STATE_DICT)
def ema_tokenizer_state_dict(full_state_dict: StateDict) -> dict[str, Any]:
    """Returns the EMA weights of a full tokenizer file under the names of the raw ones.

    A part without EMA weights is taken from the raw ones (stage 2 has EMA weights of the decoder and its quant
    layer alone).

    Args:
      full_state_dict: names to arrays, raw and EMA.

    Returns:
      {reference name: array}.

    Raises:
      ConversionError: there are no EMA weights, an EMA name matches no raw name or several, or a part has EMA
        weights for some of its raw weights only.
    """
    out, unknown, without, taken_raw = {}, [], [], []
    for part in _PARTS:
        raw = _part(full_state_dict, part)
        ema = {n: array for n, array in _part(full_state_dict, f"ema_{part}").items() if _is_ema(n)}
        if not ema:
            out |= raw
            taken_raw += [part] if raw else []
            continue
        raw_names = _raw_names(raw, part)
        out |= {raw_names[name]: array for name, array in ema.items() if name in raw_names}
        unknown += [name for name in ema if name not in raw_names]
        without += [raw_names[name] for name in raw_names if name not in ema]
    if unknown or without:
        raise ConversionError(
            "EMA and raw weights do not match."
            + listing("EMA weights without raw ones", unknown)
            + listing("raw weights without EMA", without)
        )
    if not any(map(_is_ema, full_state_dict)):
        raise ConversionError("this state_dict holds no EMA weights (ema_*); use the raw ones (variant='raw').")
    if taken_raw:
        logging.info("Parts without EMA weights, taken from the raw ones: %s.", ", ".join(taken_raw))
    return out


@check_arguments(full_state_dict=STATE_DICT)
def raw_tokenizer_state_dict(full_state_dict: StateDict) -> dict[str, Any]:
    """Returns the raw weights of a full tokenizer file: all but the EMA weights."""
    return {name: array for name, array in full_state_dict.items() if not name.startswith("ema_")}


@check_arguments(state_dict=STATE_DICT)
def full_tokenizer_state_dict(state_dict: StateDict) -> dict[str, Any]:
    """Returns a full file's state_dict with the same weights as raw and as EMA weights."""
    out = dict(state_dict)
    for part in _PARTS:
        raw = _part(state_dict, part)
        if raw:
            out |= {f"ema_{part}.decay": np.float32(0.99), f"ema_{part}.num_updates": np.int32(0)}
            out |= {name: raw[raw_name] for name, raw_name in _raw_names(raw, part).items()}
    return out


def _arguments(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the training arguments, which the file keeps as an object of a class unknown here."""
    arguments = checkpoint.get("args")
    return arguments.state if isinstance(arguments, torch_archive.Inert) else {}


def _some_names(checkpoint: Mapping[Any, Any]) -> list[str]:
    """Returns a few names for a message."""
    return sorted(shorten(str(name)) for name in checkpoint)[:8]


def _is_ema(name: str) -> bool:
    return name.startswith("ema_") and not BESIDE_WEIGHTS.fullmatch(name)


def _part(state_dict: StateDict, part: str) -> dict[str, Any]:
    return {name: array for name, array in state_dict.items() if name.startswith(part + ".")}


def _raw_names(raw: StateDict, part: str) -> dict[str, str]:
    """Returns {EMA name: raw name} of one part; the dots, which EMA names lack, come from the raw names."""
    out: dict[str, str] = {}
    for name in raw:
        ema = f"ema_{part}." + name.removeprefix(part + ".").replace(".", "")
        if ema in out:
            raise ConversionError(f"{out[ema]} and {name} would both have the EMA name {ema}; use the raw weights.")
        out[ema] = name
    return out
