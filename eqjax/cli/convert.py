r"""Converts published PyTorch weights to a weights file of eqjax, and back. PyTorch is not needed.

    python -m eqjax.cli.convert --input=tokenizer.ckpt --output=tokenizer.safetensors
    python -m eqjax.cli.convert --input=places_large.ckpt --output=places_large.safetensors
    python -m eqjax.cli.convert --to_torch --input=generator.safetensors --output=generator.ckpt

The kind of file is recognized by its contents, and the configuration by the arrays' shapes. Files are
read without executing anything, and written whole or not at all.
"""

import math

from absl import app, flags, logging
import jax

from eqjax import convert, pretrained, published
from eqjax.convert import torch_archive

_INPUT = flags.DEFINE_string("input", None, "File to read.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write.")
_WEIGHTS = flags.DEFINE_enum("weights", "averaged", ["averaged", "live"], "Which of the weights in a training file.")
_SCALE = flags.DEFINE_float(
    "latent_scale",
    None,
    "What latents are multiplied by to have unit scale. Default: that of the tokenizer, for it the published one.",
)
_HEADS = flags.DEFINE_integer("num_heads", None, "Attention heads of a generator of no published size.", lower_bound=1)
_WINDOW = flags.DEFINE_integer(
    "window_size", None, "Columns a column sees, itself included; 0: all. Default: as trained, 4.", lower_bound=0
)
_SHIFT = flags.DEFINE_integer("max_rope_shift", 16, "Bound of the position shift in training.", lower_bound=1)
_TO_TORCH = flags.DEFINE_bool("to_torch", False, "From a weights file of eqjax to a PyTorch file.")
_PART = flags.DEFINE_enum("part", None, ["tokenizer", "generator"], "With --to_torch: which, if the file holds both.")


def from_torch(source, target, averaged=True, latent_scale=None, **generator_fields):
    """Converts a published file to a weights file of eqjax.

    Args:
      source, target: paths.
      averaged: the moving averages, or the live weights.
      latent_scale: stored with the weights; None: the published one for a tokenizer, none for a generator,
        which then goes with any.
      **generator_fields: what shapes do not tell: see `eqjax.convert.infer_generator_config`.

    Returns:
      The `eqjax.pretrained.Weights` that were written.

    Raises:
      FileNotFoundError, CheckpointFileError, ConversionError: as the reader and `eqjax.convert`.
    """
    kind, state_dict, arguments = convert.pick_weights(convert.read_reference(source), source, averaged)
    if kind == "tokenizer":
        module = pretrained.build_module(kind, convert.infer_tokenizer_config(state_dict))
        params = convert.tokenizer_params(state_dict, module)
        latent_scale = published.LATENT_SCALE if latent_scale is None else latent_scale
    else:
        fields = convert.infer_generator_config(state_dict, arguments, **generator_fields)
        module = pretrained.build_module(kind, fields)
        params = convert.generator_params(state_dict, module)
    notes = f"{'averaged' if averaged else 'live'} weights of a PyTorch file"
    weights = pretrained.Weights({kind: module}, {kind: params}, latent_scale, notes=notes)
    pretrained.save(target, weights)
    return weights


def to_torch(source, target, part=None):
    """Converts a weights file of eqjax to a PyTorch file in the published format.

    Args:
      source, target: paths.
      part: "tokenizer" or "generator"; None: the only one that the file holds.

    Returns:
      The `eqjax.pretrained.Weights` that were read, reduced to the part.

    Raises:
      FileNotFoundError, WeightsError, ConversionError: as `eqjax.pretrained.load` and `eqjax.convert`;
        the file holds both parts and none is named, or lacks the named one.
    """
    weights = pretrained.load(source)
    if part is None and len(weights.modules) != 1:
        raise convert.ConversionError(f"{source} holds {sorted(weights.modules)}: name one with --part.")
    part = part or next(iter(weights.modules))
    if part not in weights.modules:
        raise convert.ConversionError(f"{source} holds no {part}, but {sorted(weights.modules)}.")
    module, params = weights.modules[part], weights.params[part]
    export = convert.tokenizer_state_dict if part == "tokenizer" else convert.generator_state_dict
    torch_archive.save(target, convert.published_checkpoint(part, export(params, module)))
    return pretrained.Weights({part: module}, {part: params}, weights.latent_scale)


def _log_summary(weights, target):
    for kind, module in weights.modules.items():
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights.params[kind]))
        fields = ", ".join(f"{name}={value}" for name, value in pretrained.module_to_dict(module).items())
        logging.info("%s with %.1f M parameters written to %s: %s", kind, count / 1e6, target, fields)


def _main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; all are given as --name=value")
    logging.set_verbosity(logging.INFO)
    try:
        if _TO_TORCH.value:
            weights = to_torch(_INPUT.value, _OUTPUT.value, _PART.value)
        else:
            fields = dict(num_heads=_HEADS.value, window_size=_WINDOW.value, max_rope_shift=_SHIFT.value)
            averaged = _WEIGHTS.value == "averaged"
            weights = from_torch(_INPUT.value, _OUTPUT.value, averaged, _SCALE.value, **fields)
    except (ValueError, OSError) as error:
        logging.error("%s", error)
        raise SystemExit(1) from error
    _log_summary(weights, _OUTPUT.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["input", "output"])
    app.run(_main)
