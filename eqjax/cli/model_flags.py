"""Flags of the model, the same in every command that loads one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from eqjax.module_fields import PRECISION
from eqjax.progress import announced

if TYPE_CHECKING:
    from eqjax.model import Model

# As in eqjax.model, which is not imported here: it would import JAX, and --help should not wait for that.
DTYPES = ["float32", "bfloat16", "float16"]
WEIGHTS_HELP = "A model's name, files, workdirs, or hf://owner/name of the Hub."


def define_model_flags(values: flags.FlagValues) -> None:
    """Defines --weights, --dtype and --precision.

    Args:
      values: the flags to add to.
    """
    flags.DEFINE_list("weights", ["photos"], WEIGHTS_HELP, flag_values=values)
    flags.DEFINE_enum("dtype", None, DTYPES, "Type to compute in; the weights' own.",
                      flag_values=values)  # fmt: skip
    flags.DEFINE_enum("precision", "highest", list(PRECISION.choices),
                      "Of float32 products; highest is exact.",
                      flag_values=values)  # fmt: skip


def load_model(args: flags.FlagValues, parts: Sequence[str] = ("tokenizer", "generator")) -> "Model":
    """Returns the model of --weights, --dtype and --precision.

    Args:
      args: parsed flags, with those of `define_model_flags`.
      parts: what the command needs of "tokenizer" and "generator".

    Raises:
      FileNotFoundError: there are no such weights.
      ValueError: a file cannot be read, files do not fit together, or none of them holds a part.
      OSError: weights cannot be fetched from the Hub.
    """
    import eqjax

    with announced(f"Loading {','.join(args.weights)}", patience=2.0):
        model = eqjax.load_pretrained(*args.weights, dtype=args.dtype, precision=args.precision)
    weights = f"--weights={','.join(args.weights)}"
    for part in parts:
        if getattr(model, part) is None:
            raise ValueError(
                f"{weights} holds no {part}, which this command needs: add a weights file or a workdir that does, "
                f"{weights},{part.upper()}."
            )
    return model
