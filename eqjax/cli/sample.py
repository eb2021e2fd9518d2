r"""Samples images, panoramas of any length, and continuations of photographs.

python -m eqjax.cli.sample --classes=flower,tissue --columns=32 --seeds=0,1,2 --output=outputs/grid.png
python -m eqjax.cli.sample --classes=flower:60,tissue:60,galaxies --transition=8 --columns=180 --gif
python -m eqjax.cli.sample --photograph=cat.jpg --resize --classes=cat --left=32 --right=32 --output=outputs/longer.png

One class after another (`name:columns`, the last may stay open) makes a panorama, drawn and decoded as
it comes, as long as its classes unless `--columns` says otherwise. Several seeds give several panoramas, one below
another, and several continuations. Beside a photograph, columns are counted from it outwards on both sides: those of
classes, and values of `--guidance`.

With `--state` a panorama has no end: whole strips up to `--columns` are written, the file keeps where it
stands, and the same command writes the next ones. Images are numbered by their first column: `sample-000000.png`,
`sample-000032.png`, … The state is kept after the image is written: what is cut off in between is drawn again.
Settings are in the state: they may be left out then, and flags that are given must agree with it.
"""

import contextlib
import os
import struct
import sys

from absl import app, flags, logging
import numpy as np
from PIL import GifImagePlugin, Image, ImageOps
import tqdm

from eqjax import flow, load_pretrained, outpaint, panorama, pixels
from eqjax.cli import runner
from eqjax.io import atomic_write

# Of images, where neither --columns nor classes say how many.
COLUMNS = 16


def define_flags(values=flags.FLAGS):
    """Defines the command's flags."""
    flags.DEFINE_list(
        "weights", ["photos"], "A shipped model's name, or weights files and workdirs, in order.", flag_values=values
    )
    flags.DEFINE_list("classes", None, "Names or numbers; name:columns for one after another.", flag_values=values)
    flags.DEFINE_string(
        "output", os.path.join("outputs", "sample.png"), "The PNG file; with --state numbered.", flag_values=values
    )
    flags.DEFINE_integer(
        "columns",
        None,
        f"Columns of the images, or of the panorama in all; {COLUMNS}, or all of its classes.",
        1,
        flag_values=values,
    )
    flags.DEFINE_list("seeds", ["0"], "An image per class and seed.", flag_values=values)
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
    flags.DEFINE_string("photograph", None, "An image to continue, by --left and --right columns.", flag_values=values)
    flags.DEFINE_integer("left", 0, "Columns to the left of the photograph.", flag_values=values)
    flags.DEFINE_integer("right", 0, "Columns to the right of the photograph.", flag_values=values)
    flags.DEFINE_bool(
        "resize", False, "Bring the photograph to the model's height and to whole columns.", flag_values=values
    )
    flags.DEFINE_bool("gif", False, "Also a GIF that pans along the image, beside the PNG.", flag_values=values)
    flags.DEFINE_integer("gif_pixels", 4, "Pixels that the GIF moves per frame.", 1, flag_values=values)


def parse_class(text):
    """`name` or `name:columns` → (label, columns or None); a number is a label's number."""
    name, colon, columns = text.partition(":")
    if colon and not columns.isdecimal():
        raise ValueError(f"--classes: {text!r} is neither name nor name:columns.")
    return int(name) if name.isdecimal() else name, int(columns) if colon else None


def parse_numbers(flag, texts, kind, what):
    """The numbers of a list flag; `kind` turns one into a number, `what` says in words what it must be.

    Raises:
      ValueError: there is none, or one is no number.
    """
    try:
        numbers = [kind(text) for text in texts]
    except ValueError as error:
        raise ValueError(f"--{flag}={','.join(texts)}: each must be {what}.") from error
    if not numbers:
        raise ValueError(f"--{flag} is empty; give {what}, or several with commas.")
    return numbers


def parse_seed(text):
    """A seed as JAX keys take it apart, in 32 bits."""
    seed = int(text)
    if not -(2**31) <= seed < 2**32:
        raise ValueError(f"{seed} is beyond 32 bits.")
    return seed


def write_gif(path, image, window, step):
    """Writes an animation of a window moving over `image`, [H, W, 3] uint8, `step` pixels a frame, 25 frames a second.

    Frames are made and written one at a time: memory does not grow with the image's width.
    """
    window = min(window, image.shape[1])
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        # Pillow's own saving keeps all frames until the last, so the file's head and end are written here.
        file.write(b"GIF89a" + struct.pack("<HHBBB", window, image.shape[0], 0x70, 0, 0))  # No common palette.
        file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # Again and again.
        for x in range(0, image.shape[1] - window + 1, step):
            frame = Image.fromarray(image[:, x : x + window]).quantize(128)
            file.writelines(GifImagePlugin.getdata(frame, duration=40, include_color_table=True))
        file.write(b";")


@contextlib.contextmanager
def progress(columns):
    """A function that is called with numbers of new columns, and moves a bar on a terminal."""
    with tqdm.tqdm(total=columns, unit="column", disable=not sys.stderr.isatty()) as bar:
        yield bar.update


def check_flags(args, pairs):
    """Compares flags with each other.

    Raises:
      ValueError: some cannot be combined, or would have no effect.
    """
    schedule = any(columns is not None for _, columns in pairs)
    if not pairs and not (args.state and os.path.exists(args.state)):
        raise ValueError("--classes is missing: names or numbers with commas, or name:columns for one after another.")
    if os.path.isdir(args.output):
        raise ValueError(f"--output={args.output} is a folder; give the name of a PNG file.")
    if args.photograph:
        wrong = [name for name in ("columns", "panorama", "state") if args[name].value]
        advice = "a photograph goes on by --left and --right columns, in one piece"
    else:
        wrong = [name for name in ("left", "right", "resize") if args[name].value]
        advice = "without --photograph there is nothing to continue"
    if pairs and not schedule and args.transition:
        wrong, advice = ["transition"], "it needs --classes one after another, name:columns"
    if wrong:
        raise ValueError(f"{', '.join(f'--{name}' for name in wrong)} cannot be used here: {advice}.")


def count_columns(pairs, columns):
    """Columns of a panorama without --state: --columns, else all of its classes.

    Raises:
      ValueError: the last class is open and would get nothing, or classes begin behind the end.
    """
    known = sum(n or 0 for _, n in pairs)
    if columns is None and pairs[-1][1] is not None:
        return known
    if columns is None and known >= COLUMNS:
        raise ValueError(
            f"--columns is missing: {pairs[-1][0]} begins at column {known} and has no end; say how many columns the "
            "panorama has in all."
        )
    columns = columns or COLUMNS
    check_reach(pairs, columns, f"--columns={columns}")
    return columns


def check_reach(pairs, columns, where):
    """Compares classes one after another with the columns there are.

    Raises:
      ValueError: classes begin behind the end.
    """
    begin = np.cumsum([0, *(n or 0 for _, n in pairs)])
    if behind := [
        f"{label} (from column {n})" for (label, _), n in zip(pairs, begin, strict=False) if n >= columns > 0
    ]:
        raise ValueError(
            f"{where} ends before {', '.join(behind)} of --classes: add columns, or leave out what is not to be seen."
        )
    if begin[-1] > columns > 0:
        logging.warning("%s cuts %s short: --classes give %d columns.", where, pairs[-1][0], begin[-1])


def panorama_guidance(args, columns):
    """Guidance of a panorama: a number, or one per column."""
    guidance = [float(g) for g in args.guidance]
    if len(guidance) > 1:
        return guidance
    if args.guidance_schedule == "constant":
        return guidance[0]
    return (1 + (guidance[0] - 1) * np.arange(1, columns + 1) / columns).tolist()


def check_state(model, settings, args, pairs, options):
    """Compares flags that were given with the settings of a saved panorama.

    Raises:
      ValueError: they differ; both sides are named.
    """
    names = dict(enumerate(model.class_names or ()))

    def text(labels, columns):
        parts = zip((names.get(int(n), str(n)) for n in labels), columns, strict=True)
        return ",".join(name if n is None else f"{name}:{n}" for name, n in parts)

    saved = dict(
        vars(settings),
        classes=text(settings.labels, settings.class_columns),
        seeds=list(settings.seeds or [settings.seed]),
        guidance=np.ravel(settings.guidance_scale).tolist(),
    )
    given = {name: value for name, value in options.items() if name in args and args[name].present}
    if pairs:
        given["classes"] = text(model.labels([label for label, _ in pairs]), [n for _, n in pairs])
    if args["guidance"].present or args["guidance_schedule"].present:
        # One scale went over the columns of the first call.
        columns = len(saved["guidance"]) if isinstance(settings.guidance_scale, tuple) else args.columns or COLUMNS
        given["guidance"] = np.ravel(panorama_guidance(args, columns)).tolist()
    lines = [f"  --{name}: saved {saved[name]}, given {given[name]}" for name in given if saved[name] != given[name]]
    if lines:
        raise ValueError(
            f"{args.state} holds a panorama of other settings; leave these flags out, or name another --state:\n"
            + "\n".join(lines)
        )


def open_panorama(model, pairs, args, options):
    """The `Panorama` of the flags, begun or gone on from --state, and how many of its columns to draw."""
    if args.state and os.path.exists(args.state):
        strips = panorama(model, state=args.state)
        check_state(model, strips.settings, args, pairs, options)
        logging.info("Going on from %s, behind column %d.", args.state, strips.emitted)
        return strips, args.columns or COLUMNS
    columns = args.columns or COLUMNS if args.state else count_columns(pairs, args.columns)
    guidance = panorama_guidance(args, columns)
    # Only an image without end can be gone on from.
    end = None if args.state else columns
    return panorama(model, pairs, num_columns=end, guidance_scale=guidance, **options), columns


def draw_strips(strips, columns):
    """Strips of at least `columns` columns, or what is left, as one image with seeds one below another.

    Raises:
      ValueError: nothing is left.
    """
    parts, begin = [], strips.emitted
    with progress(columns) as report:
        while strips.emitted < begin + columns:
            before = strips.emitted
            strip = next(strips, None)
            if strip is None:
                break
            parts.append(strip if strip.ndim == 4 else strip[None])
            report(strips.emitted - before)
    if not parts:
        raise ValueError(f"this panorama has an end, and its {begin} columns are all drawn: begin another.")
    return pixels.grid(np.concatenate(parts, axis=2), columns=1)


def draw_photographs(model, photograph, pairs, args, options):
    """Continuations of a photograph, uint8 [H, W, 3], one below another: for every class and seed."""
    reach = max(args.left, args.right)
    schedule = any(columns is not None for _, columns in pairs)
    if schedule:
        check_reach(pairs, reach, f"--left={args.left} --right={args.right}")
    labels = [pairs] if schedule else [label for label, _ in pairs]
    where = dict(left=args.left, right=args.right, resize=args.resize)
    with progress(len(labels) * (args.left + args.right)) as report:
        images = [outpaint(model, photograph, n, **where, **options, progress=report) for n in labels]
    return pixels.grid(np.concatenate(images), columns=1)


def read_photograph(path):
    """An image file as uint8 [H, W, 3], upright as viewers show it (training images stay as they are stored)."""
    with Image.open(path) as picture:
        return np.array(ImageOps.exif_transpose(picture).convert("RGB"))


def run(args):
    """What the command does with its flags; raises instead of ending the program."""
    pairs = [parse_class(text) for text in args.classes or ()]
    seeds = parse_numbers("seeds", args.seeds, parse_seed, "an integer of 32 bits")
    guidance = parse_numbers("guidance", args.guidance, float, "a number")
    check_flags(args, pairs)
    photograph = read_photograph(args.photograph) if args.photograph else None
    model = load_pretrained(*args.weights)
    output, strips = args.output, None
    options = dict(
        seeds=seeds,
        num_flow_steps=args.num_flow_steps,
        solver=args.solver,
        time_grid=args.time_grid,
        temperature=args.temperature,
        max_position=args.max_position,
    )
    if photograph is None and (args.panorama or args.state or any(columns is not None for _, columns in pairs)):
        strips, columns = open_panorama(model, pairs, args, dict(options, transition=args.transition))
        if args.state:
            stem, ending = os.path.splitext(output)
            output = f"{stem}-{strips.emitted:06d}{ending}"
        image = draw_strips(strips, columns)
    else:
        options["guidance_schedule"] = args.guidance_schedule
        options["guidance_scale"] = guidance[0] if len(guidance) == 1 else guidance
        if photograph is not None:
            image = draw_photographs(model, photograph, pairs, args, dict(options, transition=args.transition))
        else:
            labels, columns = [label for label, _ in pairs for _ in seeds], args.columns or COLUMNS
            options["seeds"] = seeds * len(pairs)
            with progress(columns) as report:
                images = model.sample(labels, num_columns=columns, progress=report, **options)
            image = pixels.grid(images, columns=len(seeds))
    pixels.save_png(output, image)
    logging.info("Wrote %s: %d × %d pixels.", output, image.shape[1], image.shape[0])
    if args.gif:
        path = os.path.splitext(output)[0] + ".gif"
        write_gif(path, image, 4 * model.tokenizer.resolution, args.gif_pixels)
        logging.info("Wrote %s.", path)
    if args.state:
        # After the images: what cannot be written is not lost.
        strips.save(args.state)


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
