"""Flags of the sampling options, the same in every command that samples."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:
    from eqjax.sampling.options import SamplingOptions

# The fields of `SamplingOptions`. Flags without a default of their own have its defaults, which are only named here:
# importing the class would import JAX, and --help should not wait for that.
_HELP = {
    "guidance_scale": "Classifier-free guidance scale; 1 disables guidance.",
    "guidance_schedule": "The scale over columns: linear (rises to it) or constant.",
    "num_flow_steps": "Solver steps per column.",
    "solver": "Flow solver: euler, heun (two evaluations per step) or adams_bashforth.",
    "time_grid": "Times of the solver's steps: uniform, shifted or cosine.",
    "temperature": "Scale on the initial noise.",
    "max_position": "Bound on cross-attention's positions; none as published.",
    "modulation_times": "Times of modulations, interpolated (12, say); none: exact.",
    "parallel_steps": "Solver steps computed at once (20, say); none: one by one.",
    "parallel_tolerance": "Largest RMS error of --parallel_steps.",
    "gpu_kernels": "Kernels of a column: auto, fused (NVIDIA) or plain.",
}
DEFAULTS: dict[str, Any] = {
    "guidance_scale": 1.0,
    "guidance_schedule": "linear",
    "num_flow_steps": 100,
    "solver": "euler",
    "time_grid": "uniform",
    "temperature": 1.0,
    "max_position": None,
    "modulation_times": None,
    "parallel_steps": None,
    "parallel_tolerance": 1e-4,
    "gpu_kernels": "auto",
}


def define_sampling_flags(values: flags.FlagValues, *, guidance_help: str = "", **defaults: Any) -> None:
    """Defines a flag for every field of `SamplingOptions`, with its default.

    Args:
      values: the flags to add to.
      guidance_help: text for --guidance_scale, which is a list flag: one number, or several.
      **defaults: defaults other than those of `SamplingOptions`.
    """
    define = {"num_flow_steps": flags.DEFINE_integer, "temperature": flags.DEFINE_float}
    define |= dict.fromkeys(("max_position", "modulation_times", "parallel_steps"), flags.DEFINE_integer)
    define["parallel_tolerance"] = flags.DEFINE_float
    for name, text in _HELP.items():
        default = {**DEFAULTS, **defaults}[name]
        if name == "guidance_scale":
            flags.DEFINE_list(name, [f"{default:g}"], guidance_help or text, flag_values=values)
        else:
            define.get(name, flags.DEFINE_string)(name, default, text, flag_values=values)


def guidance_scales(args: flags.FlagValues) -> list[float]:
    """Returns the numbers of --guidance_scale.

    Raises:
      ValueError: there is none, or one is not a number.
    """
    return parse_numbers("guidance_scale", args.guidance_scale, float, "a number")


def sampling_options(args: flags.FlagValues, **replaced: Any) -> "SamplingOptions":
    """Returns the `SamplingOptions` of the flags; several guidance scales are one for every column.

    Args:
      args: parsed flags, with those of `define_sampling_flags`.
      **replaced: options that take the place of the flags, such as the guidance scale of a sweep.

    Raises:
      ValueError: an option is out of its range.
    """
    from eqjax.sampling.options import SamplingOptions

    options: dict[str, Any] = {name: args[name].value for name in DEFAULTS}
    if "guidance_scale" not in replaced:
        scales = guidance_scales(args)
        options["guidance_scale"] = scales[0] if len(scales) == 1 else scales
    return SamplingOptions(**{**options, **replaced})


def parse_numbers(flag: str, texts: Sequence[str], kind: Any, expected: str) -> list[Any]:
    """Returns the numbers of a list flag.

    Args:
      flag: its name, for messages.
      texts: its value.
      kind: function that converts one text.
      expected: description of a valid text, for messages.

    Raises:
      ValueError: there is none, or one cannot be converted.
    """
    try:
        numbers = [kind(text) for text in texts]
    except ValueError as error:
        raise ValueError(f"--{flag}={','.join(texts)}: each must be {expected}.") from error
    if not numbers:
        raise ValueError(f"--{flag} is empty; give {expected}, or several with commas.")
    return numbers
