"""How many images a device processes at a time, where nobody says so: as its memory allows.

Results of a row do not depend on the others, up to rounding, so the number changes time and memory alone.
"""

from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from eqjax.generator import Generator
from eqjax.tables import with_unit
from eqjax.tokenizer import Tokenizer

# Rates hardly rise from here on.
MOST_IMAGES = 256
# On devices that do not report their memory, such as CPUs.
DEFAULT_IMAGES = 16
# Part of the free memory that is planned for; the rest is for what the estimates leave out.
_PART = 0.6
# Arrays of a convolutional network's widest layer that a device holds at once: input and output of a convolution, and a
# residual. The GPU compiler needs less for the published tokenizer.
_LIVE_ARRAYS = 4


def decoder_bytes(tokenizer: Tokenizer, num_columns: int) -> int:
    """Returns the bytes that decoding, or encoding, takes for every image, by the layers of full resolution.

    Args:
      tokenizer: the module.
      num_columns: columns of an image.
    """
    pixels = tokenizer.resolution * num_columns * tokenizer.column_width
    return _LIVE_ARRAYS * pixels * tokenizer.channels * jnp.dtype(tokenizer.dtype).itemsize


def sampler_bytes(generator: Generator, num_columns: int) -> int:
    """Returns the bytes that sampling takes for every image: keys and values of columns and condition tokens.

    Args:
      generator: the module.
      num_columns: columns of an image; a window bounds those that are kept.
    """
    window = min(num_columns, generator.window_size or num_columns)
    positions = window + generator.num_cond_tokens
    rows = 2  # With the null class, for guidance.
    return rows * generator.depth * positions * 2 * generator.width * jnp.dtype(generator.dtype).itemsize


def by_memory(bytes_per_image: int, mesh: Mesh, *, num_images: int | None = None, default: int = DEFAULT_IMAGES) -> int:
    """Returns the number of images for every device of a mesh, the same on all processes, and logs it.

    It is a power of two of at most `MOST_IMAGES`, unless there are fewer images.

    Args:
      bytes_per_image: memory that an image takes.
      mesh: the devices.
      num_images: images in all, if known; a device gets no more than its part of them.
      default: the number for devices that do not report their memory.
    """
    free = free_bytes(mesh)
    if free is None:
        return default
    fitting = max(1, min(MOST_IMAGES, int(_PART * free) // bytes_per_image))
    count = 1 << (fitting.bit_length() - 1)
    if num_images is not None:
        count = min(count, -(-num_images // mesh.size))
    logging.info(
        "%d images at a time on each device, as %s of its memory are free; --batch_size sets another number.",
        count,
        with_unit(free, "B"),
    )
    return count


def free_bytes(mesh: Mesh) -> int | None:
    """Returns the free bytes of the device that has least, of all processes; None if one does not report it.

    All processes must call it together.
    """
    found = [_free_bytes(device) for device in mesh.local_devices]
    least = min(found, default=0)
    if jax.process_count() > 1:  # In KiB, as integers are of 32 bits.
        least = 1024 * int(np.min(multihost_utils.process_allgather(np.asarray(least // 1024, np.int32))))
    return least or None


def _free_bytes(device: Any) -> int:
    """Returns the bytes that JAX may still allocate on a device; 0 if it does not report them."""
    stats = device.memory_stats() or {}
    return max(0, stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0))
