r"""Samples images and panoramas, and outpaints images.

    eqjax sample --classes=flower,tissue --num_columns=32 --seeds=0,1,2 --output=outputs/grid.png
    eqjax sample --classes=flower:60,tissue:60,galaxies --transition=8 --num_columns=180 --animation=outputs/way.webp
    eqjax sample --image=cat.jpg --resize --classes=cat --left=32 --right=32 --output=outputs/longer.png

Classes with numbers of columns (`name:columns`, the last may stay open) follow one another in a panorama, which is
sampled and decoded strip by strip in constant memory. It is as long as its classes unless --num_columns is given.
Several seeds give several panoramas, one below another, and several continuations of an image. In outpainting, the
columns of classes and the values of --guidance_scale are counted from the image outwards, on both sides.

The extension of --output names the format: .png, .jpg or .webp. --animation writes a window that moves along the
image, as .webp, .gif or .mp4 (a tenth of the size; pip install 'eqjax[video]').

With --state a panorama has no end: the command writes whole strips up to --num_columns and saves its state, and the
same command writes the next ones. Images are numbered by their first column: `sample-000000.png`,
`sample-000032.png`, … The state is saved after the image is written, so an interrupted strip is sampled again. The
state holds the options: their flags may be left out when it is resumed, and flags that are given must agree with it.
"""

from collections.abc import Sequence
import os
from typing import TYPE_CHECKING, Any

from absl import flags, logging
import numpy as np

import eqjax
from eqjax import image_files
from eqjax.cli.command_line import flag_group
from eqjax.cli.model_flags import define_model_flags, load_model
from eqjax.cli.sample_files import check_files, write_files
from eqjax.cli.sampling_flags import define_sampling_flags, guidance_scales, parse_numbers, sampling_options
from eqjax.cli.sampling_progress import sampling_progress
from eqjax.progress import announced

if TYPE_CHECKING:
    from eqjax.sampling.panorama_options import PanoramaOptions

# Columns of an image if neither --num_columns nor the classes give a number.
_NUM_COLUMNS = 16

# A class, by name or label, and its number of columns, or None.
ClassColumns = tuple[str | int, int | None]


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "What"):
        define_model_flags(values)
        flags.DEFINE_list("classes", None, "Names or numbers; name:columns for one after another.", flag_values=values)
        flags.DEFINE_integer("num_columns", None, f"Width in columns; {_NUM_COLUMNS}, or that of all classes.", 1,
                             flag_values=values)  # fmt: skip
        flags.DEFINE_list("seeds", ["0"], "Seeds: an image per class and seed.", flag_values=values)
        flags.DEFINE_bool("panorama", False, "Sample strip by strip in constant memory, even a single class.",
                          flag_values=values)  # fmt: skip
        flags.DEFINE_integer("transition", 0, "Columns over which a class blends into the next.", flag_values=values)
        flags.DEFINE_string("state", None, "File (.npz) of a panorama's state, which is resumed if it exists.",
                            flag_values=values)  # fmt: skip
    with flag_group(values, "Outpainting"):
        flags.DEFINE_string("image", None, "Image file to continue, by --left and --right columns.", flag_values=values)
        flags.DEFINE_integer("left", 0, "Columns to add to the left.", flag_values=values)
        flags.DEFINE_integer("right", 0, "Columns to add to the right.", flag_values=values)
        flags.DEFINE_bool("resize", False, "Resize the image to the model's height and cut it to whole columns.",
                          flag_values=values)  # fmt: skip
    with flag_group(values, "How"):
        define_sampling_flags(
            values, guidance_help="Classifier-free guidance scale, 1 for none; or one per column, with commas."
        )
    with flag_group(values, "Output"):
        flags.DEFINE_string("output", os.path.join("outputs", "sample.png"),
                            "Image file (.png, .jpg, .webp); numbered with --state.", flag_values=values)  # fmt: skip
        flags.DEFINE_string("animation", None, "File (.webp, .gif, .mp4) of a window that moves along the image.",
                            flag_values=values)  # fmt: skip
        flags.DEFINE_integer("pixels_per_frame", 4, "Pixels by which the window moves from frame to frame.", 1,
                             flag_values=values)  # fmt: skip


def run(args: flags.FlagValues) -> None:
    """Samples, and writes the image."""
    pairs = [parse_class(text) for text in args.classes or ()]
    seeds = parse_numbers("seeds", args.seeds, parse_seed, "an integer of 32 bits")
    guidance_scales(args)
    check_flags(args, pairs)
    given = read_image(args.image) if args.image else None
    model = load_model(args)
    if given is None and (args.panorama or args.state or _are_segments(pairs)):
        write_panorama(model, pairs, seeds, args)
    elif given is not None:
        write_files(args, sample_outpainted(model, given, pairs, seeds, args), model)
    else:
        write_files(args, sample_images(model, [label for label, _ in pairs], seeds, args), model)


# ── Flags ─────────────────────────────────────────────────────────────────────────────────────


def parse_class(text: str) -> ClassColumns:
    """Parses `name` or `name:columns`; a number is a label.

    Raises:
      ValueError: the text is neither.
    """
    name, colon, columns = text.partition(":")
    if colon and not columns.isdecimal():
        raise ValueError(f"--classes: {text!r} is neither name nor name:columns with a whole number.")
    return int(name) if name.isdecimal() else name, int(columns) if colon else None


def parse_seed(text: str) -> int:
    """Parses a seed, of which JAX keys use 32 bits.

    Raises:
      ValueError: the text is not an integer of 32 bits.
    """
    seed = int(text)
    if not -(2**31) <= seed < 2**32:
        raise ValueError(f"the seed {seed} does not fit 32 bits: give one from {-(2**31)} to {2**32 - 1}.")
    return seed


def read_image(path: str) -> np.ndarray:
    """Returns the image of --image.

    Raises:
      ValueError: there is no such file, or it cannot be read as an image.
    """
    try:
        return image_files.decode(path)
    except FileNotFoundError as error:
        raise ValueError(f"--image={path}: there is no such file; give the path of the image to continue.") from error
    except image_files.ImageError as error:
        raise ValueError(f"--image={path} cannot be read as an image ({error}); give another file.") from error


def check_flags(args: flags.FlagValues, pairs: Sequence[ClassColumns]) -> None:
    """Compares flags with each other.

    Raises:
      ValueError: some cannot be combined, or would have no effect.
    """
    if not pairs and not (args.state and os.path.exists(args.state)):
        raise ValueError("--classes is missing: names or numbers with commas, or name:columns for one after another.")
    check_files(args)
    if args.state and os.path.isdir(args.state):
        raise ValueError(f"--state={args.state} is a folder; give the name of a file (.npz).")
    if args.image:
        wrong = [name for name in ("num_columns", "panorama", "state") if args[name].value]
        advice = "an image is continued by --left and --right columns, all at once"
    else:
        wrong = [name for name in ("left", "right", "resize") if args[name].value]
        advice = "without --image there is nothing to continue"
    if pairs and not _are_segments(pairs) and args.transition:
        wrong, advice = ["transition"], "it needs --classes one after another, name:columns"
    if wrong:
        raise ValueError(f"{', '.join(f'--{name}' for name in wrong)} cannot be used here: {advice}.")


def _are_segments(pairs: Sequence[ClassColumns]) -> bool:
    """Returns whether classes follow one another in one image, rather than having an image each."""
    return any(columns is not None for _, columns in pairs)


def count_columns(pairs: Sequence[ClassColumns], num_columns: int | None) -> int:
    """Returns the columns of a panorama without --state: --num_columns, or those of all classes.

    Raises:
      ValueError: the last class is open and would get no column, or a class begins beyond the end.
    """
    known = sum(n or 0 for _, n in pairs)
    if num_columns is None and pairs[-1][1] is not None:
        return known
    if num_columns is None and known >= _NUM_COLUMNS:
        raise ValueError(
            f"--num_columns is missing: {pairs[-1][0]} begins at column {known} and has no end; give the columns of "
            "the whole panorama."
        )
    num_columns = num_columns or _NUM_COLUMNS
    check_reach(pairs, num_columns, f"--num_columns={num_columns}")
    return num_columns


def check_reach(pairs: Sequence[ClassColumns], num_columns: int, where: str) -> None:
    """Compares classes one after another with the number of columns.

    Raises:
      ValueError: a class begins beyond the end.
    """
    begin = np.cumsum([0, *(n or 0 for _, n in pairs)])
    beyond = [f"{label} (from column {n})" for (label, _), n in zip(pairs, begin, strict=False) if n >= num_columns > 0]
    if beyond:
        raise ValueError(f"{where} ends before {', '.join(beyond)} of --classes: add columns, or leave these out.")
    if begin[-1] > num_columns > 0:
        logging.warning("%s cuts %s short: --classes give %d columns.", where, pairs[-1][0], begin[-1])


# ── Sampling ──────────────────────────────────────────────────────────────────────────────────


def sample_images(
    model: "eqjax.Model", labels: Sequence[str | int], seeds: Sequence[int], args: flags.FlagValues
) -> np.ndarray:
    """Returns a grid of images, a row per class and a column per seed."""
    options, num_columns = sampling_options(args), args.num_columns or _NUM_COLUMNS
    check_files(args, width=len(seeds) * num_columns * model.require("tokenizer").column_width)
    with sampling_progress(num_columns) as report:
        images = model.sample(
            [label for label in labels for _ in seeds],
            num_columns=num_columns,
            seeds=list(seeds) * len(labels),
            progress=report,
            **options.to_dict(),
        )
    return eqjax.pixels.grid(images, columns=len(seeds))


def sample_outpainted(
    model: "eqjax.Model",
    image: np.ndarray,
    pairs: Sequence[ClassColumns],
    seeds: Sequence[int],
    args: flags.FlagValues,
) -> np.ndarray:
    """Returns continuations of an image, one below another: one per class and seed."""
    if _are_segments(pairs):
        check_reach(pairs, max(args.left, args.right), f"--left={args.left} --right={args.right}")
    tokenizer = model.require("tokenizer")
    width = round(image.shape[1] * tokenizer.resolution / image.shape[0]) if args.resize else image.shape[1]
    check_files(args, width=width + (args.left + args.right) * tokenizer.column_width)
    labels = [list(pairs)] if _are_segments(pairs) else [label for label, _ in pairs]
    options = dict(sampling_options(args).to_dict(), transition=args.transition, seeds=seeds)
    with sampling_progress(len(labels) * (args.left + args.right)) as report:
        images = [
            eqjax.outpaint(
                model, image, label, left=args.left, right=args.right, resize=args.resize, progress=report, **options
            )
            for label in labels
        ]
    return eqjax.pixels.grid(np.concatenate(images), columns=1)


def write_panorama(
    model: "eqjax.Model", pairs: Sequence[ClassColumns], seeds: Sequence[int], args: flags.FlagValues
) -> None:
    """Writes a panorama, or its next part, and saves its state."""
    with announced("Preparing the panorama", patience=2.0):
        strips, num_columns = open_panorama(model, pairs, seeds, args)
    check_files(args, width=num_columns * model.require("tokenizer").column_width)
    first_column = strips.emitted if args.state else None
    write_files(args, sample_strips(strips, num_columns), model, first_column)
    if args.state:
        # Saved last, so that a failed image write does not advance the state.
        strips.save(args.state)


def open_panorama(
    model: "eqjax.Model", pairs: Sequence[ClassColumns], seeds: Sequence[int], args: flags.FlagValues
) -> tuple[Any, int]:
    """Returns the `Panorama` of the flags, new or resumed from --state, and the number of columns to sample."""
    if args.state and os.path.exists(args.state):
        strips = eqjax.panorama(model, state=args.state)
        check_state(model, strips.options, args, pairs, seeds)
        logging.info("Resuming %s after column %d.", args.state, strips.emitted)
        return strips, args.num_columns or _NUM_COLUMNS
    num_columns = args.num_columns or _NUM_COLUMNS if args.state else count_columns(pairs, args.num_columns)
    options = sampling_options(args).to_dict()
    # A panorama with an end could not be resumed beyond it.
    end = None if args.state else num_columns
    options |= dict(seeds=seeds, transition=args.transition)
    return eqjax.panorama(model, pairs, num_columns=end, **options), num_columns


def check_state(
    model: "eqjax.Model",
    options: "PanoramaOptions",
    args: flags.FlagValues,
    pairs: Sequence[ClassColumns],
    seeds: Sequence[int],
) -> None:
    """Compares flags that were given with the options of a saved panorama.

    Raises:
      ValueError: they differ; both sides are named.
    """
    names = dict(enumerate(model.class_names or ()))

    def text(labels: Any, columns: Sequence[int | None]) -> str:
        parts = zip((names.get(int(n), str(n)) for n in labels), columns, strict=True)
        return ",".join(name if n is None else f"{name}:{n}" for name, n in parts)

    saved = options.to_dict()
    saved |= dict(classes=text(options.labels, options.class_columns), seeds=list(options.row_seeds))
    flag_values = dict(sampling_options(args).to_dict(), seeds=list(seeds), transition=args.transition)
    given = {name: value for name, value in flag_values.items() if args[name].present}
    if pairs:
        given["classes"] = text(np.asarray(model.labels([label for label, _ in pairs])).tolist(), [n for _, n in pairs])
    lines = [f"  --{name}: saved {saved[name]}, given {given[name]}" for name in given if saved[name] != given[name]]
    if lines:
        raise ValueError(
            f"{args.state} holds a panorama of other options; leave these flags out, or name another --state:\n"
            + "\n".join(lines)
        )


def sample_strips(strips: Any, num_columns: int) -> np.ndarray:
    """Samples strips of at least `num_columns` columns, or all the rest, as one image, seeds one below another.

    Raises:
      ValueError: no column is left.
    """
    parts, begin = [], strips.emitted
    with sampling_progress(num_columns) as report:
        while strips.emitted < begin + num_columns:
            before = strips.emitted
            strip = next(strips, None)
            if strip is None:
                break
            parts.append(strip if strip.ndim == 4 else strip[None])
            report(strips.emitted - before)
    if not parts:
        raise ValueError(
            f"this panorama ends after {begin} columns, which are all sampled: begin another one, with another --state."
        )
    return eqjax.pixels.grid(np.concatenate(parts, axis=2), columns=1)
