r"""Samples with the shipped weights: a panorama per class, and a grid of images with different seeds.

    eqjax demo
    eqjax demo --weights=runs/photos_generator --output=outputs/mine --num_flow_steps=100

The defaults of its sampling flags are chosen for speed; other commands have the paper's.
"""

import os
import time

from absl import flags, logging
import numpy as np

import eqjax
from eqjax.cli.command_line import flag_group
from eqjax.cli.model_flags import define_model_flags, load_model
from eqjax.cli.sampling_flags import define_sampling_flags, sampling_options
from eqjax.cli.sampling_progress import sampling_progress


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "What"):
        define_model_flags(values)
        flags.DEFINE_integer("width", 2048, "Width of the panoramas, pixels.", 1, flag_values=values)
        flags.DEFINE_integer("num_seeds", 6, "Images per class in the grid.", 1, flag_values=values)
        flags.DEFINE_integer("seed", 0, "Seed of the panoramas; the grid takes the next one.", flag_values=values)
    with flag_group(values, "How"):
        define_sampling_flags(values, guidance_scale=2.0, guidance_schedule="constant", num_flow_steps=25)
    with flag_group(values, "Output"):
        flags.DEFINE_string("output", os.path.join("outputs", "demo"), "Folder of the images.", flag_values=values)


def run(args: flags.FlagValues) -> None:
    """Samples, and writes PNG files.

    Raises:
      FileNotFoundError: there are no such weights.
      ValueError: the weights lack a tokenizer or a generator.
    """
    import jax

    start = time.monotonic()
    options = sampling_options(args).to_dict()
    model = load_model(args)
    for part in ("tokenizer", "generator"):
        if getattr(model, part) is None:
            raise ValueError(f"--weights={','.join(args.weights)} holds no {part}; add a file or workdir that does.")
    tokenizer, generator = model.require("tokenizer"), model.require("generator")
    names = model.class_names or tuple(map(str, range(generator.num_classes)))
    width, labels = tokenizer.column_width, np.arange(len(names))

    num_columns = -(-args.width // width)
    with sampling_progress(num_columns, "columns of the panoramas") as report:
        panoramas = np.asarray(
            model.sample(labels, num_columns=num_columns, seed=args.seed, progress=report, **options)
        )
    for name, panorama in zip(names, panoramas, strict=True):
        eqjax.save_image(os.path.join(args.output, f"panorama_{name}.png"), panorama)
    beginnings = eqjax.pixels.grid(panoramas[:, :, : 1024 // width * width], columns=1)
    eqjax.save_image(os.path.join(args.output, "panoramas.png"), beginnings)

    num_columns = 2 * tokenizer.resolution // width
    labels = np.repeat(labels, args.num_seeds)
    with sampling_progress(num_columns, "columns of the grid") as report:
        images = model.sample(labels, num_columns=num_columns, seed=args.seed + 1, progress=report, **options)
    eqjax.save_image(os.path.join(args.output, "grid.png"), eqjax.pixels.grid(images, columns=args.num_seeds))
    logging.info(
        "%d panoramas of %d × %d pixels and a grid of %d images (%s): %s, in %.0f s on %s.",
        len(names),
        panoramas.shape[2],
        panoramas.shape[1],
        len(images),
        ", ".join(names),
        os.path.abspath(args.output),
        time.monotonic() - start,
        jax.devices()[0].platform,
    )
