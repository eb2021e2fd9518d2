r"""Samples pictures, panoramas of any length, and continuations of photographs.

python -m launch.sample --classes=flower,tissue --columns=32 --seeds=0,1,2 --output=outputs/grid.png
python -m launch.sample --classes=flower:60,tissue:60,galaxies --transition=8 --columns=180 --gif
python -m launch.sample --photograph=cat.jpg --resize --classes=cat --left=32 --right=32 --output=outputs/longer.png

One class after another (`name:columns`, the last may stay open) makes a panorama, drawn and decoded as
it comes. With `--state` it has no end: whole strips up to `--columns` are written, the file keeps where it
stands, and the same command writes the next ones.
"""

import os
import sys

from absl import app, flags, logging
import numpy as np
from PIL import Image
import tqdm

from eqjax import atomic, continue_photograph, flow, load_pretrained, panorama, pixels
from launch import runner

_WEIGHTS = flags.DEFINE_list("weights", ["photos"], "A shipped model's name, or weights files and workdirs, in order.")
_CLASSES = flags.DEFINE_list("classes", None, "Names or numbers; name:columns for one after another.", required=True)
_OUTPUT = flags.DEFINE_string("output", os.path.join("outputs", "sample.png"), "The PNG file.")
_COLUMNS = flags.DEFINE_integer("columns", 16, "Columns of the pictures, or of the panorama in all.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "A picture per class and seed; panoramas and photographs take the first.")
_GUIDANCE = flags.DEFINE_list("guidance", ["2.0"], "Guidance scale, or one for every column.")
_SCHEDULE = flags.DEFINE_enum("guidance_schedule", "constant", flow.SCHEDULES, "How one scale goes over columns.")
_STEPS = flags.DEFINE_integer("num_flow_steps", 25, "Solver steps per column.")
_SOLVER = flags.DEFINE_enum("solver", "euler", flow.SOLVERS, "Of the flow; heun evaluates twice a step.")
_GRID = flags.DEFINE_enum("time_grid", "uniform", flow.TIME_GRIDS, "Where the steps lie.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Scale on the initial noise.")
_TRANSITION = flags.DEFINE_integer("transition", 0, "Columns over which a class goes softly into the next.")
_MAX_POSITION = flags.DEFINE_integer("max_position", None, "Cross-attention's positions stop here; none as published.")
_PANORAMA = flags.DEFINE_bool("panorama", False, "Draw and decode as it comes, in constant memory, also one class.")
_STATE = flags.DEFINE_string("state", None, "File where a panorama's state is kept (.npz); goes on from it if there.")
_PHOTOGRAPH = flags.DEFINE_string("photograph", None, "A picture to continue, by --left and --right columns.")
_LEFT = flags.DEFINE_integer("left", 0, "Columns to the left of the photograph.")
_RIGHT = flags.DEFINE_integer("right", 0, "Columns to the right of the photograph.")
_RESIZE = flags.DEFINE_bool("resize", False, "Bring the photograph to the model's height and to whole columns.")
_GIF = flags.DEFINE_bool("gif", False, "Also a GIF that pans along the picture, beside the PNG.")
_GIF_PIXELS = flags.DEFINE_integer("gif_pixels", 4, "Pixels that the GIF moves per frame.", 1)


def parse_class(text):
    """`name` or `name:columns` → (label, columns or None); a number is a label's number."""
    name, colon, columns = text.partition(":")
    if colon and not columns.isdecimal():
        raise ValueError(f"--classes: {text!r} is neither name nor name:columns.")
    return int(name) if name.isdecimal() else name, int(columns) if colon else None


def write_gif(path, image, window, step):
    """Writes an animation of a window moving over `image`, [H, W, 3] uint8, `step` pixels a frame, 25 frames a second.

    Frames are made one at a time.
    """
    window = min(window, image.shape[1])
    starts = range(0, image.shape[1] - window + 1, step)
    frames = (Image.fromarray(image[:, x : x + window]).quantize(128) for x in starts)
    with atomic.replacing(path) as temporary:
        next(frames).save(temporary, format="GIF", save_all=True, append_images=frames, duration=40, loop=0)


def draw_panorama(model, pairs, options):
    """The strips in one picture, uint8 [H, W, 3], with a bar on a terminal; keeps the state in --state."""
    columns, state = _COLUMNS.value, _STATE.value
    if state and os.path.exists(state):
        strips = panorama(model, state=state)
        logging.info("Going on from %s, behind column %d.", state, strips.emitted)
    else:
        # Only a picture without end can be gone on from.
        strips = panorama(model, pairs, num_columns=None if state else columns, **options)
    parts, done, width = [], 0, model.tokenizer.column_width
    with tqdm.tqdm(total=columns, unit="column", disable=not sys.stderr.isatty()) as bar:
        while done < columns:
            parts.append(next(strips))
            done += parts[-1].shape[1] // width
            bar.update(parts[-1].shape[1] // width)
    if state:
        strips.save(state)
    return np.concatenate(parts, axis=1)


def run(argv=()):
    """What the command does; raises instead of ending the program."""
    if len(argv) > 1:
        raise ValueError(f"unknown arguments {argv[1:]}; see --helpfull.")
    model = load_pretrained(*_WEIGHTS.value)
    pairs = [parse_class(text) for text in _CLASSES.value]
    guidance = [float(g) for g in _GUIDANCE.value]
    seeds = [int(seed) for seed in _SEEDS.value]
    options = dict(
        guidance_scale=guidance[0] if len(guidance) == 1 else guidance,
        num_flow_steps=_STEPS.value,
        solver=_SOLVER.value,
        time_grid=_GRID.value,
        temperature=_TEMPERATURE.value,
        max_position=_MAX_POSITION.value,
    )
    schedule = any(columns is not None for _, columns in pairs)
    if _PHOTOGRAPH.value:
        with Image.open(_PHOTOGRAPH.value) as picture:
            photograph = np.array(picture.convert("RGB"))
        where = dict(left=_LEFT.value, right=_RIGHT.value, resize=_RESIZE.value, seed=seeds[0])
        options["guidance_schedule"] = _SCHEDULE.value
        image = continue_photograph(model, photograph, pairs[0][0], **where, **options)
    elif schedule or _PANORAMA.value or _STATE.value:
        if _SCHEDULE.value == "linear" and len(guidance) == 1:
            columns = np.arange(1, _COLUMNS.value + 1)
            options["guidance_scale"] = 1 + (guidance[0] - 1) * columns / _COLUMNS.value
        image = draw_panorama(model, pairs, dict(options, seed=seeds[0], transition=_TRANSITION.value))
    else:
        labels = [label for label, _ in pairs for _ in seeds]
        options.update(guidance_schedule=_SCHEDULE.value, seeds=seeds * len(pairs))
        image = pixels.grid(model.sample(labels, num_columns=_COLUMNS.value, **options), columns=len(seeds))
    pixels.save_png(_OUTPUT.value, image)
    logging.info("Wrote %s: %d × %d pixels.", _OUTPUT.value, image.shape[1], image.shape[0])
    if _GIF.value:
        path = os.path.splitext(_OUTPUT.value)[0] + ".gif"
        write_gif(path, image, 4 * model.tokenizer.resolution, _GIF_PIXELS.value)
        logging.info("Wrote %s.", path)


def main(argv):
    """Samples, and says in one line what is wrong."""
    runner.set_up()
    try:
        run(argv)
    except (ValueError, FileNotFoundError) as error:
        logging.error("%s", error)
        raise SystemExit(1) from error


if __name__ == "__main__":
    app.run(main)
