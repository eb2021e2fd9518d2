"""Inputs that follow from a name and a shape. The recorded files and arrays were made with them."""

import zlib

import numpy as np

from eqjax.recorded.weights import state_dict, weight

__all__ = ["data", "image", "state_dict", "weight"]


def image(tag, shape):
    """Returns smooth images with a little noise, float32 [B, H, W, C] in [-1, 1], seeded by the CRC of the tag."""
    rng = np.random.default_rng(zlib.crc32(tag.encode()))
    batch, height, width, channels = shape
    y, x = np.mgrid[:height, :width] / 16
    out = np.zeros(shape)
    for b in range(batch):
        for c in range(channels):
            for _ in range(4):
                fx, fy, phase, amplitude = (rng.uniform(*r) for r in ((-2, 2), (-2, 2), (0, 6.28), (0.1, 0.4)))
                out[b, :, :, c] += amplitude * np.sin(fx * x + fy * y + phase)
    return np.clip(out + 0.05 * rng.standard_normal(shape), -1, 1).astype(np.float32)


def data(tag, shape):
    """Returns standard normal float32 numbers, seeded by the CRC of the tag."""
    return np.random.default_rng(zlib.crc32(tag.encode())).standard_normal(shape).astype(np.float32)
