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


def define_flags(values=flags.FLAGS):
    """Defines the command's flags."""
    flags.DEFINE_list(
        "weights", ["photos"], "A shipped model's name, or weights files and workdirs, in order.", flag_values=values
    )
    flags.DEFINE_list(
        "classes", None, "Names or numbers; name:columns for one after another.", required=True, flag_values=values
    )
    flags.DEFINE_string("output", os.path.join("outputs", "sample.png"), "The PNG file.", flag_values=values)
    flags.DEFINE_integer("columns", 16, "Columns of the pictures, or of the panorama in all.", 1, flag_values=values)
    flags.DEFINE_list(
        "seeds", ["0"], "A picture per class and seed; panoramas and photographs take the first.", flag_values=values
    )
    flags.DEFINE_list("guidance", ["2.0"], "Guidance scale, or one for every column.", flag_values=values)
    flags.DEFINE_enum(
        "guidance_schedule", "constant", flow.SCHEDULES, "How one scale goes over columns.", flag_values=values
    )
    flags.DEFINE_integer("num_flow_steps", 25, "Solver steps per column.", flag_values=values)
    flags.DEFINE_enum("solver", "euler", flow.SOLVERS, "Of the flow; heun evaluates twice a step.", flag_values=values)
    flags.DEFINE_enum("time_grid", "uniform", flow.TIME_GRIDS, "Where the steps lie.", flag_values=values)
    flags.DEFINE_float("temperature", 1.0, "Scale on the initial noise.", flag_values=values)
    flags.DEFINE_integer("transition", 0, "Columns over which a class goes softly into the next.", flag_values=values)
    flags.DEFINE_integer(
        "max_position", None, "Cross-attention's positions stop here; none as published.", flag_values=values
    )
    flags.DEFINE_bool(
        "panorama", False, "Draw and decode as it comes, in constant memory, also one class.", flag_values=values
    )
    flags.DEFINE_string(
        "state", None, "File where a panorama's state is kept (.npz); goes on from it if there.", flag_values=values
    )
    flags.DEFINE_string("photograph", None, "A picture to continue, by --left and --right columns.", flag_values=values)
    flags.DEFINE_integer("left", 0, "Columns to the left of the photograph.", flag_values=values)
    flags.DEFINE_integer("right", 0, "Columns to the right of the photograph.", flag_values=values)
    flags.DEFINE_bool(
        "resize", False, "Bring the photograph to the model's height and to whole columns.", flag_values=values
    )
    flags.DEFINE_bool("gif", False, "Also a GIF that pans along the picture, beside the PNG.", flag_values=values)
    flags.DEFINE_integer("gif_pixels", 4, "Pixels that the GIF moves per frame.", 1, flag_values=values)


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


def draw_panorama(model, pairs, args, options):
    """The strips in one picture, uint8 [H, W, 3], with a bar on a terminal; keeps the state in --state."""
    columns, state = args.columns, args.state
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


def run(args):
    """What the command does with its flags; raises instead of ending the program."""
    model = load_pretrained(*args.weights)
    pairs = [parse_class(text) for text in args.classes]
    guidance = [float(g) for g in args.guidance]
    seeds = [int(seed) for seed in args.seeds]
    options = dict(
        guidance_scale=guidance[0] if len(guidance) == 1 else guidance,
        num_flow_steps=args.num_flow_steps,
        solver=args.solver,
        time_grid=args.time_grid,
        temperature=args.temperature,
        max_position=args.max_position,
    )
    schedule = any(columns is not None for _, columns in pairs)
    if args.photograph:
        with Image.open(args.photograph) as picture:
            photograph = np.array(picture.convert("RGB"))
        where = dict(left=args.left, right=args.right, resize=args.resize, seed=seeds[0])
        options["guidance_schedule"] = args.guidance_schedule
        image = continue_photograph(model, photograph, pairs[0][0], **where, **options)
    elif schedule or args.panorama or args.state:
        if args.guidance_schedule == "linear" and len(guidance) == 1:
            columns = np.arange(1, args.columns + 1)
            options["guidance_scale"] = 1 + (guidance[0] - 1) * columns / args.columns
        image = draw_panorama(model, pairs, args, dict(options, seed=seeds[0], transition=args.transition))
    else:
        labels = [label for label, _ in pairs for _ in seeds]
        options.update(guidance_schedule=args.guidance_schedule, seeds=seeds * len(pairs))
        image = pixels.grid(model.sample(labels, num_columns=args.columns, **options), columns=len(seeds))
    pixels.save_png(args.output, image)
    logging.info("Wrote %s: %d × %d pixels.", args.output, image.shape[1], image.shape[0])
    if args.gif:
        path = os.path.splitext(args.output)[0] + ".gif"
        write_gif(path, image, 4 * model.tokenizer.resolution, args.gif_pixels)
        logging.info("Wrote %s.", path)


def main(argv):
    """Samples, and says in one line what is wrong."""
    runner.set_up()
    try:
        if len(argv) > 1:
            raise ValueError(f"unknown arguments {argv[1:]}; see --helpfull.")
        run(flags.FLAGS)
    except (ValueError, OSError) as error:
        logging.error("%s", error)
        raise SystemExit(1) from error


if __name__ == "__main__":
    define_flags()
    app.run(main)
