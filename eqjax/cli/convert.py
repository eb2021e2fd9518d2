r"""Converts published PyTorch weights to a weights file of eqjax, and back; PyTorch is not needed.

    eqjax convert --input=tokenizer.ckpt --output=tokenizer.safetensors
    eqjax convert --input=places_large.ckpt --output=places_large.safetensors
    eqjax convert --to_torch --input=generator.safetensors --output=generator.ckpt

The kind of file is recognized by its contents, and the fields of the module by the arrays' shapes. Files are read
without executing anything, and written whole or not at all.
"""

import math
import os
from typing import TYPE_CHECKING, Any, Literal

from absl import flags, logging

from eqjax.cli.runner import flag_group

if TYPE_CHECKING:
    from eqjax.pretrained import Weights


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "What"):
        flags.DEFINE_string("input", None, "File to read.", required=True, flag_values=values)
        flags.DEFINE_enum(
            "variant", "ema", ["ema", "raw"], "EMA weights of a training file, or raw weights.", flag_values=values
        )
        flags.DEFINE_bool("to_torch", False, "Convert a weights file of eqjax to a PyTorch file.", flag_values=values)
        flags.DEFINE_enum(
            "part",
            None,
            ["tokenizer", "generator"],
            "With --to_torch: the part to convert, if the file holds both.",
            flag_values=values,
        )
    with flag_group(values, "How"):
        flags.DEFINE_float(
            "latent_scale",
            None,
            "Factor that brings latents to unit scale. Default: the published one for a tokenizer, none for a "
            "generator.",
            flag_values=values,
        )
        flags.DEFINE_integer(
            "num_heads", None, "Attention heads of a generator of no published size.", 1, flag_values=values
        )
        flags.DEFINE_integer(
            "window_size",
            None,
            "Columns that a column attends to, itself included; 0: all. Default: as trained, 4.",
            0,
            flag_values=values,
        )
        flags.DEFINE_integer("max_rope_shift", 16, "Bound of the position shift in training.", 1, flag_values=values)
    with flag_group(values, "Output"):
        flags.DEFINE_string("output", None, "File to write.", required=True, flag_values=values)


def run(args: flags.FlagValues) -> None:
    """Converts a file, and logs a summary of the result."""
    if args.to_torch:
        weights = to_torch(args.input, args.output, args.part)
    else:
        fields = dict(num_heads=args.num_heads, window_size=args.window_size, max_rope_shift=args.max_rope_shift)
        weights = from_torch(args.input, args.output, args.variant, args.latent_scale, **fields)
    _log_summary(weights, args.output)


def from_torch(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    variant: Literal["ema", "raw"] = "ema",
    latent_scale: float | None = None,
    **generator_fields: Any,
) -> "Weights":
    """Converts a published file to a weights file of eqjax.

    Args:
      source: path of the file to read.
      target: path of the file to write.
      variant: "ema" for EMA weights, "raw" for the weights of the last step.
      latent_scale: stored with the weights; None: the published one for a tokenizer, none for a generator, which then
        fits any tokenizer.
      **generator_fields: fields that do not follow from shapes, see `eqjax.convert.infer_generator_config`.

    Returns:
      The weights that were written.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointFileError: the file cannot be read.
      ConversionError: names or shapes of its arrays do not fit.
    """
    from eqjax import convert, pretrained, published

    source = os.fspath(source)
    checkpoint = convert.read_reference(source)
    try:
        kind, state_dict, arguments = convert.pick_weights(checkpoint, source, variant)
        if kind == "tokenizer":
            module = pretrained.build_module(kind, convert.infer_tokenizer_config(state_dict), source)
            pretrained.check_depth(kind, module, source)
            params = convert.tokenizer_params(state_dict, module)
            latent_scale = published.LATENT_SCALE if latent_scale is None else latent_scale
        else:
            fields = convert.infer_generator_config(state_dict, arguments, **generator_fields)
            module = pretrained.build_module(kind, fields, source)
            pretrained.check_depth(kind, module, source)
            params = convert.generator_params(state_dict, module)
    except convert.ConversionError as error:
        raise error if source in str(error) else convert.ConversionError(f"{source}: {error}") from error
    notes = f"{'EMA' if variant == 'ema' else 'raw'} weights of a PyTorch file"
    weights = pretrained.Weights({kind: module}, {kind: params}, latent_scale, notes=notes)
    pretrained.save(target, weights)
    return weights


def to_torch(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    part: str | None = None,
) -> "Weights":
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
    from eqjax import convert, pretrained
    from eqjax.convert import torch_archive

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


def _log_summary(weights: "Weights", target: str) -> None:
    import jax

    from eqjax import pretrained

    for kind, module in weights.modules.items():
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights.params[kind]))
        fields = ", ".join(f"{name}={value}" for name, value in pretrained.module_to_dict(module).items())
        logging.info("%s with %.1f M parameters written to %s: %s", kind, count / 1e6, target, fields)
