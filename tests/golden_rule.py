"""Weights that follow from a name and a shape, with which recorded files and arrays were made."""

import zlib

import numpy as np


def weight(name, shape, salt=""):
    """The float32 parameter called `name`: Gaussian, seeded by the CRC of salt and name.

    Matrices and kernels have deviation 1/sqrt(fan-in); gains lie around 1, biases around 0.
    """
    noise = np.random.default_rng(zlib.crc32((salt + name).encode())).standard_normal(tuple(shape))
    if noise.ndim >= 2:
        noise = noise / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("running_var"):
        noise = 1 + 0.1 * np.abs(noise)
    else:
        noise = 0.1 * noise + name.endswith("weight")
    return np.asarray(noise, np.float32)


def state_dict(shapes, salt=""):
    """{name: weight} for a {name: shape} table."""
    return {name: weight(name, shape, salt) for name, shape in shapes.items()}
