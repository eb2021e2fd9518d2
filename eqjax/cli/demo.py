r"""Samples with the shipped weights: a panorama per class, a grid of images, and a pan through all classes.

    eqjax demo
    eqjax demo --weights=runs/photos_generator --output=outputs/mine --num_flow_steps=100

The defaults of its sampling flags are chosen for speed; other commands have the paper's.
"""

import os
import time
from typing import Any

from absl import flags, logging
import numpy as np

import eqjax
from eqjax.captions import caption
from eqjax.cli.command_line import define_folder, flag_group
from eqjax.cli.model_flags import define_model_flags, load_model
from eqjax.cli.sampling_flags import define_sampling_flags, sampling_options
from eqjax.cli.sampling_progress import sampling_progress

# Widths in heights of the image: of the panoramas in the overview, and of a class in the pan.
_BEGINNING, _PAN_HEIGHTS = 6, 3


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "What"):
        define_model_flags(values)
        flags.DEFINE_integer("width", 2048, "Width of the panoramas, pixels.", 1, flag_values=values)
        flags.DEFINE_integer("num_seeds", 6, "Images per class in the grid.", 1, flag_values=values)
        flags.DEFINE_integer("seed", 0, "Seed of the panoramas; the grid takes the next one.", flag_values=values)
    with flag_group(values, "How"):
        define_sampling_flags(values, guidance_scale=1.25, guidance_schedule="constant", num_flow_steps=25)
    with flag_group(values, "Output"):
        define_folder(values, os.path.join("outputs", "demo"), "Folder of the images.")


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
    names = list(model.class_names or map(str, range(model.require("generator").num_classes)))
    width = _write_panoramas(model, names, args, options)
    _write_grid(model, names, args, options)
    animation = _write_pan(model, names, args, options)
    logging.info(
        "%d panoramas %d pixels wide, a grid of %d images of each class (%s) and a pan through all (%s): %s, in %.0f s "
        "on %s.",
        len(names),
        width,
        args.num_seeds,
        ", ".join(names),
        os.path.basename(animation),
        os.path.abspath(args.output),
        time.monotonic() - start,
        jax.devices()[0].platform,
    )


def _write_panoramas(model: "eqjax.Model", names: list[str], args: flags.FlagValues, options: dict[str, Any]) -> int:
    """Writes a panorama per class, and the beginnings of all with their names; returns their width in pixels."""
    tokenizer = model.require("tokenizer")
    num_columns = -(-args.width // tokenizer.column_width)
    with sampling_progress(num_columns, "columns of the panoramas") as report:
        panoramas = np.asarray(
            model.sample(np.arange(len(names)), num_columns=num_columns, seed=args.seed, progress=report, **options)
        )
    for name, panorama in zip(names, panoramas, strict=True):
        eqjax.save_image(os.path.join(args.output, f"panorama_{name}.png"), panorama)
    beginnings = [
        caption(panorama[:, : _BEGINNING * tokenizer.resolution], name)
        for name, panorama in zip(names, panoramas, strict=True)
    ]
    columns = 1 if len(names) < 3 else 2
    overview = eqjax.pixels.grid(np.stack(beginnings), columns=columns)
    eqjax.save_image(os.path.join(args.output, "panoramas.png"), overview)
    return panoramas.shape[2]


def _write_grid(model: "eqjax.Model", names: list[str], args: flags.FlagValues, options: dict[str, Any]) -> None:
    """Writes a grid: a row per class, its name in the first image, and a column per seed."""
    tokenizer = model.require("tokenizer")
    num_columns = max(1, tokenizer.resolution // tokenizer.column_width)
    labels = np.repeat(np.arange(len(names)), args.num_seeds)
    with sampling_progress(num_columns, "columns of the grid") as report:
        images = model.sample(labels, num_columns=num_columns, seed=args.seed + 1, progress=report, **options)
    captioned = [
        image if i % args.num_seeds else caption(image, names[i // args.num_seeds])
        for i, image in enumerate(np.asarray(images))
    ]
    grid = eqjax.pixels.grid(np.stack(captioned), columns=args.num_seeds)
    eqjax.save_image(os.path.join(args.output, "grid.png"), grid)


def _write_pan(model: "eqjax.Model", names: list[str], args: flags.FlagValues, options: dict[str, Any]) -> str:
    """Writes an animation that pans through one image of all classes; returns its path."""
    tokenizer = model.require("tokenizer")
    height, width = tokenizer.resolution, tokenizer.column_width
    columns = max(2, _PAN_HEIGHTS * height // width)
    schedule = [(label, columns) for label in range(len(names))]
    num_columns = columns * len(names)
    path = os.path.join(args.output, "pan.webp")
    panorama = eqjax.panorama(
        model, schedule, seed=args.seed, num_columns=num_columns, transition=columns // 3, **options
    )
    strips = []
    with sampling_progress(num_columns, "columns of the pan") as report:
        for strip in panorama:
            strips.append(strip)
            report(strip.shape[1] // width)
    eqjax.save_animation(path, strips, frame_width=min(4 * height, num_columns * width), pixels_per_frame=height // 32)
    return path
