"""Weights that follow from a name and a shape; the recorded outputs were made with them."""

from collections.abc import Mapping, Sequence
import zlib

from jaxtyping import Float
import numpy as np


def weight(name: str, shape: Sequence[int], salt: str = "") -> Float[np.ndarray, "..."]:
    """Returns the parameter called `name`: Gaussian, seeded by the CRC of salt and name.

    Matrices and kernels have deviation 1/sqrt(fan-in); gains are around 1, biases around 0.

    Args:
      name: its name in the original's state dict.
      shape: its shape there.
      salt: what makes other weights of the same names.
    """
    noise = np.random.default_rng(zlib.crc32((salt + name).encode())).standard_normal(tuple(shape))
    if noise.ndim >= 2:
        noise = noise / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("running_var"):
        noise = 1 + 0.1 * np.abs(noise)
    else:
        noise = 0.1 * noise + name.endswith("weight")
    return np.asarray(noise, np.float32)


def state_dict(shapes: Mapping[str, Sequence[int]], salt: str = "") -> dict[str, Float[np.ndarray, "..."]]:
    """Returns {name: weight} for a {name: shape} table.

    Example:
      >>> {name: array.shape for name, array in state_dict({"a.weight": [2, 3]}).items()}
      {'a.weight': (2, 3)}
    """
    return {name: weight(name, shape, salt) for name, shape in shapes.items()}
