r"""Draws what the shipped model can: a panorama per class, and a grid of samples with different seeds.

python -m eqjax.cli.demo
python -m eqjax.cli.demo --weights=runs/photos_generator --output=outputs/mine --num_flow_steps=100
"""

import os
import time

from absl import app, flags, logging
import jax
import numpy as np

from eqjax import load_pretrained, pixels
from eqjax.cli import runner

_WEIGHTS = flags.DEFINE_list("weights", ["photos"], "A shipped model's name, or weights files and workdirs, in order.")
_OUTPUT = flags.DEFINE_string("output", os.path.join("outputs", "demo"), "Folder for the images.")
_WIDTH = flags.DEFINE_integer("width", 2048, "Width of the panoramas, pixels; rounded up to whole columns.", 1)
_GUIDANCE = flags.DEFINE_float("guidance", 2.0, "Guidance scale, the same at all columns.", 0.0)
_STEPS = flags.DEFINE_integer("num_flow_steps", 25, "Euler steps per column.", 1)
_SEEDS = flags.DEFINE_integer("seeds", 6, "Samples per class in the grid.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "The first seed.")


def main(argv):
    """Samples, and ends with the exit code that says how it went."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; all are given as --name=value")
    runner.finish(draw)


def draw():
    """Samples, and writes PNG files.

    Raises:
      ValueError, FileNotFoundError: weights that are not there, of another kind, or without tokenizer or generator.
    """
    start = time.monotonic()
    model = load_pretrained(*_WEIGHTS.value)
    for part in ("tokenizer", "generator"):
        if getattr(model, part) is None:
            raise ValueError(f"--weights={','.join(_WEIGHTS.value)} holds no {part}; add a file or workdir that does.")
    names = model.class_names or tuple(map(str, range(model.generator.num_classes)))
    width = model.tokenizer.column_width
    kwargs = dict(guidance_scale=_GUIDANCE.value, guidance_schedule="constant", num_flow_steps=_STEPS.value)

    labels = np.arange(len(names))
    columns = -(-_WIDTH.value // width)
    panoramas = np.asarray(model.sample(labels, num_columns=columns, seed=_SEED.value, **kwargs))
    for name, panorama in zip(names, panoramas, strict=True):
        pixels.save_png(os.path.join(_OUTPUT.value, f"panorama_{name}.png"), panorama)
    every = pixels.grid(panoramas[:, :, : 1024 // width * width], columns=1)
    pixels.save_png(os.path.join(_OUTPUT.value, "panoramas.png"), every)

    columns = 2 * model.tokenizer.resolution // width
    samples = model.sample(np.repeat(labels, _SEEDS.value), num_columns=columns, seed=_SEED.value + 1, **kwargs)
    pixels.save_png(os.path.join(_OUTPUT.value, "grid.png"), pixels.grid(samples, columns=_SEEDS.value))
    logging.info(
        "%d panoramas of %d × %d pixels and a grid of %d samples (%s): %s, in %.0f s on %s.",
        len(names),
        panoramas.shape[2],
        panoramas.shape[1],
        len(samples),
        ", ".join(names),
        os.path.abspath(_OUTPUT.value),
        time.monotonic() - start,
        jax.devices()[0].platform,
    )


if __name__ == "__main__":
    app.run(main)
