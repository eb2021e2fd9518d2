"""Strips as files."""

import io

from jaxtyping import UInt8
import numpy as np
from PIL import Image


def to_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Returns an image as the bytes of a PNG file.

    Example:
      >>> to_png(np.zeros((16, 8, 3), np.uint8))[1:4]
      b'PNG'
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=4)
    return file.getvalue()
