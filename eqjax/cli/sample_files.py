"""The files of the sampling command: an image, and an animation of it."""

import os
from typing import TYPE_CHECKING

from absl import flags, logging
import numpy as np

from eqjax import image_output
from eqjax.progress import announced

if TYPE_CHECKING:
    import eqjax


def check_files(args: flags.FlagValues, *, height: int = 1, width: int = 1) -> None:
    """Checks that the files of --output and --animation can be written.

    Args:
      args: the flags.
      height, width: size of the image in pixels, if it is known.

    Raises:
      ValueError: an extension names no known format, or the format cannot hold the image.
      IsADirectoryError: a path is a folder.
      ModuleNotFoundError: a format needs an optional package that is not installed.
    """
    image_output.check_image_path(args.output, height=height, width=width)
    if args.animation:
        image_output.check_animation_path(args.animation)


def write_files(
    args: flags.FlagValues, image: np.ndarray, model: "eqjax.Model", first_column: int | None = None
) -> None:
    """Writes an image, and the animation of it.

    Args:
      args: the flags.
      image: uint8 [H, W, 3].
      model: the model, for the size of a frame.
      first_column: number for the names of the files; None for none.
    """

    def numbered(path: str) -> str:
        stem, extension = os.path.splitext(path)
        return path if first_column is None else f"{stem}-{first_column:06d}{extension}"

    path = numbered(args.output)
    image_output.save_image(path, image)
    logging.info("Wrote %s: %d × %d pixels.", path, image.shape[1], image.shape[0])
    if not args.animation:
        return
    path, frame_width = numbered(args.animation), 4 * model.require("tokenizer").resolution
    with announced(f"Writing {path}", patience=2.0):
        size = image_output.save_animation(path, image, frame_width=frame_width, pixels_per_frame=args.pixels_per_frame)
    if size.num_frames == 1:
        logging.warning(
            "%s is a still: the image is %d pixels wide, and a frame %d. More columns make it move.",
            path,
            image.shape[1],
            frame_width,
        )
    seconds, kilobytes = size.num_frames / image_output.FRAMES_PER_SECOND, os.path.getsize(path) / 1000
    logging.info(
        "Wrote %s: %d frames of %d × %d pixels, %.1f s, %.0f KB.",
        path,
        size.num_frames,
        size.width,
        size.height,
        seconds,
        kilobytes,
    )
