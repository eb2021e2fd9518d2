"""The reference's files: what they hold, and which of it are the weights one wants."""

import os
import re

from absl import logging
import numpy as np
import safetensors
import safetensors.numpy

from eqjax.convert import torch_archive
from eqjax.convert.rules import ConversionError, listing

# Networks of the training objective, and counters of the averages.
BESIDE_WEIGHTS = re.compile(r"loss\..*|ema_\w+\.(decay|num_updates)")
_PARTS = ("encoder", "decoder", "semantic_decoder", "quant_layer", "post_quant_layer")


def read_reference(path):
    """Reads a reference file: of torch.save, or (named *.safetensors) of safetensors.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointFileError: it cannot be read.
    """
    path = os.fspath(path)
    if not path.endswith(".safetensors") or not os.path.isfile(path):
        return torch_archive.load(path)
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise torch_archive.CheckpointFileError(
            f"{path} cannot be read as safetensors ({error}): truncated or damaged. {torch_archive.AGAIN}"
        ) from error


def pick_weights(checkpoint, where, averaged=True):
    """The weights inside a published file, or in a bare state_dict.

    Args:
      checkpoint: from `read_reference`.
      where: what messages call it.
      averaged: the moving averages, which inference uses, or the live weights. A bare state_dict
        without `ema_*` names has only one set, which is taken.

    Returns:
      "tokenizer" or "generator"; {live name: array}; the training arguments found in the file, a dict.

    Raises:
      CheckpointFileError: something other than tensors stands where weights should.
      ConversionError: neither kind of file, or it lacks the weights asked for.
    """
    if not isinstance(checkpoint, dict):
        raise ConversionError(f"{where} holds {type(checkpoint).__name__}, not a tokenizer or generator.")
    if "model" in checkpoint or "model_ema" in checkpoint:
        key = "model_ema" if averaged else "model"
        if key not in checkpoint:
            raise ConversionError(f"{where} has no {key!r}; it holds {sorted(map(str, checkpoint))}.")
        return "generator", torch_archive.state_dict(checkpoint[key], f"{where}: {key}"), _arguments(checkpoint)
    if "class_emb.weight" in checkpoint:
        return "generator", torch_archive.state_dict(checkpoint, where), {}
    bare = "encoder.conv_in.weight" in checkpoint
    if not bare and "state_dict" not in checkpoint:
        raise ConversionError(
            f"{where} is neither a tokenizer (state_dict) nor a generator (model, model_ema); it holds "
            f"{sorted(map(str, checkpoint))[:8]}."
        )
    full = torch_archive.state_dict(checkpoint if bare else checkpoint["state_dict"], where)
    if averaged and not (bare and not any(map(_is_average, full))):
        return "tokenizer", averaged_tokenizer_state_dict(full), {}
    return "tokenizer", live_tokenizer_state_dict(full), {}


def published_checkpoint(kind, state_dict):
    """A file's contents in the published format: the same weights live and as averages.

    Args:
      kind: "tokenizer" or "generator".
      state_dict: {live name: array}.
    """
    if kind == "generator":
        return {"model": state_dict, "model_ema": state_dict}
    return {"state_dict": full_tokenizer_state_dict(state_dict)}


def averaged_tokenizer_state_dict(full_state_dict):
    """The averaged weights of a full tokenizer file, under live names.

    Averages are stored as `ema_<part>.<name without dots>`; the dots come from the live names. A part
    without averages (the second training stage averages the decoder and its quant layer alone) is
    taken live.

    Args:
      full_state_dict: {name: array}, live and averaged.

    Returns:
      {live name: array}.

    Raises:
      ConversionError: no averages at all, averages that no live name (or more than one) explains, or
        a part that is averaged in places only.
    """
    out, unknown, unaveraged, taken_live = {}, [], [], []
    for part in _PARTS:
        live = _part(full_state_dict, part)
        averages = {n: array for n, array in _part(full_state_dict, f"ema_{part}").items() if _is_average(n)}
        if not averages:
            out |= live
            taken_live += [part] if live else []
            continue
        dotted = _live_names(live, part)
        out |= {dotted[name]: array for name, array in averages.items() if name in dotted}
        unknown += [name for name in averages if name not in dotted]
        unaveraged += [dotted[name] for name in dotted if name not in averages]
    if unknown or unaveraged:
        raise ConversionError(
            "averaged and live weights do not match."
            + listing("averages of no live weight", unknown)
            + listing("live weights without an average", unaveraged)
        )
    if not any(map(_is_average, full_state_dict)):
        raise ConversionError("this state_dict holds no averaged weights (ema_*); use the live ones.")
    if taken_live:
        logging.info("Without averages, and therefore taken live: %s.", ", ".join(taken_live))
    return out


def live_tokenizer_state_dict(full_state_dict):
    """The live weights of a full tokenizer file: all but the averages."""
    return {name: array for name, array in full_state_dict.items() if not name.startswith("ema_")}


def full_tokenizer_state_dict(state_dict):
    """Weights under live names → a full file's state_dict, the same weights live and as averages."""
    out = dict(state_dict)
    for part in _PARTS:
        live = _part(state_dict, part)
        if live:
            out |= {f"ema_{part}.decay": np.float32(0.99), f"ema_{part}.num_updates": np.int32(0)}
            out |= {name: live[dotted] for name, dotted in _live_names(live, part).items()}
    return out


def _arguments(checkpoint):
    """The training arguments, which the file keeps as an object of a class unknown here."""
    arguments = checkpoint.get("args")
    return arguments.state if isinstance(arguments, torch_archive.Inert) else {}


def _is_average(name):
    return name.startswith("ema_") and not BESIDE_WEIGHTS.fullmatch(name)


def _part(state_dict, part):
    return {name: array for name, array in state_dict.items() if name.startswith(part + ".")}


def _live_names(live, part):
    """{averaged name: live name} of one part."""
    out = {}
    for name in live:
        averaged = f"ema_{part}." + name.removeprefix(part + ".").replace(".", "")
        if averaged in out:
            raise ConversionError(f"{out[averaged]} and {name} would both be averaged as {averaged}: ambiguous.")
        out[averaged] = name
    return out
