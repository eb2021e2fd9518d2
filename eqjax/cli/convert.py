r"""Converts published PyTorch weights to a weights file of eqjax, and back; PyTorch is not needed.

    eqjax convert --input=tokenizer.ckpt --output=tokenizer.safetensors
    eqjax convert --input=places_large.ckpt --output=places_large.safetensors --class_file=names.txt
    eqjax convert --to_torch --input=generator.safetensors --output=generator.ckpt

The kind of file is recognized by its contents, and the fields of the module by the arrays' shapes. Files are read
without executing anything, and written whole or not at all.
"""

import math
from typing import TYPE_CHECKING

from absl import flags, logging

from eqjax.cli.command_line import flag_group
from eqjax.progress import announced

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
        flags.DEFINE_string(
            "class_file",
            None,
            "Names of a generator's classes: one per line, or JSON (a list, or {label: name}).",
            flag_values=values,
        )
        flags.DEFINE_integer("max_rope_shift", 16, "Bound of the position shift in training.", 1, flag_values=values)
    with flag_group(values, "Output"):
        flags.DEFINE_string("output", None, "File to write.", required=True, flag_values=values)


def run(args: flags.FlagValues) -> None:
    """Converts a file, and logs a summary of the result."""
    with announced("Loading the libraries", patience=2.0):
        from eqjax import convert_files

    if args.to_torch:
        if args.class_file:
            raise ValueError("--class_file has no effect with --to_torch: PyTorch files hold no class names.")
        with announced(f"Converting {args.input}", patience=2.0):
            weights = convert_files.to_torch(args.input, args.output, args.part)
    else:
        names = convert_files.read_class_names(args.class_file) if args.class_file else None
        fields = dict(num_heads=args.num_heads, window_size=args.window_size, max_rope_shift=args.max_rope_shift)
        with announced(f"Converting {args.input}", patience=2.0):
            weights = convert_files.from_torch(
                args.input, args.output, args.variant, args.latent_scale, class_names=names, **fields
            )
    _log_summary(weights, args.output)


def _log_summary(weights: "Weights", target: str) -> None:
    import jax

    from eqjax import pretrained

    for kind, module in weights.modules.items():
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights.params[kind]))
        fields = ", ".join(f"{name}={value}" for name, value in pretrained.module_to_dict(module).items())
        logging.info("%s with %.1f M parameters written to %s: %s", kind, count / 1e6, target, fields)
