"""Images as numbers: between uint8 and [-1, 1], grids, and PNG files."""

import math

import jax.numpy as jnp
import numpy as np
from PIL import Image

from eqjax.io import atomic_write


def from_uint8(images):
    """uint8 images to float32 in [-1, 1]: x / 127.5 − 1."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def to_uint8(images):
    """Images in [-1, 1] (clipped to it) to uint8, rounded to the nearest."""
    images = jnp.clip(jnp.asarray(images, jnp.float32), -1, 1)
    return jnp.round((images + 1) * 127.5).astype(jnp.uint8)


def grid(images, columns=None, gap=2):
    """Puts images of one size into one image, row by row, on white.

    Args:
      images: uint8 [N, H, W, 3].
      columns: images per row; None: about as many as rows.
      gap: white pixels between images.

    Returns:
      uint8 [rows · (H + gap) − gap, columns · (W + gap) − gap, 3].
    """
    images = np.asarray(images)
    n, h, w, c = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    out = np.full((rows * (h + gap), columns * (w + gap), c), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (h + gap), i % columns * (w + gap)
        out[y : y + h, x : x + w] = image
    return out[: out.shape[0] - gap, : out.shape[1] - gap]


def save_png(path, image):
    """Writes a uint8 image [H, W, 3] to `path`; the file appears whole or not at all."""
    with atomic_write(path) as temporary:
        Image.fromarray(np.asarray(image)).save(temporary, format="PNG")
