r"""Measures whether all columns are one task, how a model follows transforms, and which symmetries images have.

    eqjax analyze columns --weights=photos --output=outputs/analysis
    eqjax analyze columns --weights=runs/generator --data.source=folder --data.root=/path/to/root
    eqjax analyze equivariance --weights=photos --output=outputs/equivariance
    eqjax analyze symmetries --data.source=folder --data.root=/path/to/root --data.flip=False
    eqjax analyze comparison --config=comparison --config.num_seeds=5 --output=outputs/comparison
    eqjax analyze comparison --config=comparison:equivariance --output=outputs/comparison_equivariance

"columns" asks whether all columns are one task for the generator, and whether latents shift with the image.
"equivariance" follows encoder, decoder, generator and sampler along shifts, flips, scalings and warps. Both analyze one
model and train nothing. The images are the built-in photographs if they are the model's classes; otherwise --data.…
names them as training configurations do.

"symmetries" needs no model: for shifts, flips, scalings and warps it trains a small network to tell images from
transformed ones, and says how often it cannot. Images are cropped and mirrored as for training, --data.height high and
--num_columns columns of 16 pixels wide.

"comparison" trains small models on the built-in photographs, with several seeds each: every generator of --config on
every one of its tokenizers. The default compares tokenizers as published and strictly equivariant, and generators with
a window and with full causal attention. An interrupted comparison resumes when the command is run again: trained
tokenizers and the results of each seed are under --output.

All write plots (PNG), their data (CSV), table.md and results.json. Plots need matplotlib: pip install 'eqjax[analysis]'
"""

import os

from absl import flags
from ml_collections import config_flags

from eqjax.cli.analyze_images import BATCH_SIZE, photo_config
from eqjax.cli.command_line import define_folder, flag_group
from eqjax.cli.model_flags import define_model_flags

KINDS = ("columns", "equivariance", "symmetries", "comparison")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "One model"):
        define_model_flags(values)
        config_flags.DEFINE_config_dict("data", photo_config(), "Images: --data.source, --data.root …",
                                        flag_values=values)  # fmt: skip
    with flag_group(values, "Measures"):
        _define_integers(
            values,
            ("num_columns", 8, "Width of the images in columns.", 4),
            ("num_batches", 8, f"Batches of {BATCH_SIZE} images behind every error bar.", 2),
        )
    with flag_group(values, "Equivariance"):
        flags.DEFINE_enum("boundary", "crop", ["crop", "circular"], "Whether images close, as 360° panoramas do.",
                          flag_values=values)  # fmt: skip
        flags.DEFINE_enum("interpolation", "linear", ["linear", "fourier"], "Values between pixels and columns.",
                          flag_values=values)  # fmt: skip
        flags.DEFINE_bool("stereo", True, "Compare the views of scikit-image's stereo pair.", flag_values=values)
    with flag_group(values, "Symmetries"):
        _define_integers(values, ("critic_steps", 500, "Steps of the network that tells transformed images apart.", 1))
    with flag_group(values, "Comparison"):
        config_flags.DEFINE_config_file("config", None, "What is compared: a shipped name or a file, with :variant.",
                                        flag_values=values)  # fmt: skip
    with flag_group(values, "Output"):
        define_folder(values, os.path.join("outputs", "analysis"), "Folder of plots, tables and models.")


def _define_integers(values: flags.FlagValues, *definitions: tuple[str, int, str, int]) -> None:
    for name, default, text, least in definitions:
        flags.DEFINE_integer(name, default, text, least, flag_values=values)


def run(args: flags.FlagValues, words: list[str]) -> None:
    """Runs the analysis that the only word names.

    Raises:
      ModuleNotFoundError: matplotlib is missing.
      ValueError: the word is missing or unknown.
    """
    from eqjax.evaluation import plots

    if len(words) != 1 or words[0] not in KINDS:
        raise ValueError(f"name what to analyze: {', '.join(KINDS)}; got {words}.")
    plots.check_installed()  # Fails here rather than after half an hour of training.
    if words[0] == "comparison":
        from eqjax.cli.analyze_comparison import compare

        compare(args)
    elif words[0] == "symmetries":
        from eqjax.cli.analyze_symmetries import analyze_symmetries

        analyze_symmetries(args)
    elif words[0] == "equivariance":
        from eqjax.cli.analyze_equivariance import analyze_equivariance

        analyze_equivariance(args)
    else:
        from eqjax.cli.analyze_model import analyze

        analyze(args)
