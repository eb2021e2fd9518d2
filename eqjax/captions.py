"""Writes short texts, such as names of classes, into images."""

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eqjax.arguments import check_arguments
from eqjax.rules import Array, Text

# Height of the letters as a fraction of the image's, within which they are legible and leave the image visible.
_RELATIVE_SIZE, _SMALLEST, _LARGEST = 0.13, 9, 40


@check_arguments(image=Array(("height", "width", 3), "uint8"), text=Text(may_be_empty=True))
def caption(image: UInt8[np.ndarray, "H W 3"], text: str) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a copy of an image with a text in its upper left corner, white with a dark outline.

    Args:
      image: the image, a numpy array, which is not changed.
      text: one line; what does not fit into the image's width is cut off.

    Raises:
      TypeError: the image is no array of uint8, or the text no string.
      ValueError: the image has another shape.

    Example:
      >>> gray = np.full((64, 128, 3), 127, np.uint8)
      >>> written = caption(gray, "flower")
      >>> written.shape, bool((written[:20, :60] != 127).any()), bool((written[40:] != 127).any())
      ((64, 128, 3), True, False)
    """
    canvas = Image.fromarray(np.array(image))
    size = float(np.clip(_RELATIVE_SIZE * canvas.height, _SMALLEST, _LARGEST))
    outline = max(1, round(size / 10))
    position = (2 + 2 * outline, outline)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(canvas).text(
        position, text, fill=(255, 255, 255), font=font, stroke_width=outline, stroke_fill=(24, 24, 24)
    )
    return np.asarray(canvas)
