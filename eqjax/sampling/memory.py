"""Compares what a request takes at least with the memory there is, before any work.

What is counted cannot be avoided, so no request is refused that could succeed. Requests that pass can still be too
large: the activations of a batch are not counted.
"""

from collections.abc import Sequence
import contextlib
import os
from typing import Any

import jax
import jax.numpy as jnp

from eqjax.generator import Generator
from eqjax.tokenizer import Tokenizer
from eqjax.tracing import is_tracing

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def format_bytes(number: float) -> str:
    """Returns a number of bytes as text.

    Example:
      >>> format_bytes(24.6e9), format_bytes(1.5e15)
      ('25 GB', '1500 TB')
    """
    for name, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.0f} {name}" if number >= 10 * size else f"{number / size:.1f} {name}"
    return f"{number / 1e3:.0f} kB"


def host_bytes() -> int | None:
    """Returns the memory of the host, or of the container; None if the system does not say."""
    found = []
    with contextlib.suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _CGROUP_LIMITS:
        # ValueError: "max", no limit.
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            found.append(int(file.read()))
    return min(found, default=None)


def device_bytes() -> int | None:
    """Returns the memory of this process's first device; None if it does not say."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return host_bytes()
    return (device.memory_stats() or {}).get("bytes_limit")


def count_devices(labels: Any, mesh: Any) -> int | None:
    """Returns among how many devices a batch is divided; None while JAX traces, when it is not known."""
    if is_tracing(labels):
        return None
    if isinstance(mesh, jax.sharding.Mesh):
        return mesh.size
    return len(labels.sharding.device_set) if isinstance(labels, jax.Array) else 1


def check_latents(
    generator: Generator,
    label_shape: Sequence[int],
    num_columns: int,
    is_guided: bool,
    num_devices: int | None = 1,
    modulations_at_once: int = 1,
) -> None:
    """Checks that the latents of an image fit the host, and the state between two columns a device.

    Args:
      generator: the module.
      label_shape: [B] or [B, S].
      num_columns: columns of the images.
      is_guided: whether rows of the null class are computed too.
      num_devices: devices among which the batch is divided; None: unknown, and what they hold is not checked.
      modulations_at_once: evaluations of the flow head whose modulations are in memory at once, at least.

    Raises:
      MemoryError: something does not fit; the message names what it takes and what to lower.
    """
    batch_size, rows = label_shape[0], label_shape[0] * (2 if is_guided else 1)
    host = host_bytes()
    latents = batch_size * num_columns * generator.latent_dim * 4
    if host is not None and latents > host:
        raise MemoryError(
            f"num_columns={num_columns} of {batch_size} images make {format_bytes(latents)} of latents, and this "
            f"machine has {format_bytes(host)}: lower num_columns or the number of images, or stream strips with "
            "eqjax.panorama, whose memory does not grow."
        )
    if num_devices is None:
        return
    segments = label_shape[1] if len(label_shape) == 2 else 1
    slots = num_columns if generator.window_size is None else min(generator.window_size, num_columns)
    per_row = 2 * generator.depth * generator.width * (generator.num_cond_tokens * segments + slots)
    per_row += modulations_at_once * (3 * generator.flow_depth + 2) * generator.flow_width
    needed, device = rows * per_row * jnp.dtype(generator.dtype).itemsize / num_devices, device_bytes()
    if device is not None and needed > device:
        raise MemoryError(
            f"a batch of {batch_size} images ({rows} rows{' with guidance' if is_guided else ''}, {num_columns} "
            f"columns) takes at least {format_bytes(needed)} for conditions, KV cache and modulations on a device, "
            f"which has {format_bytes(device)}: sample fewer images at a time"
            f"{', or leave parallel_steps out' if modulations_at_once > 1 else ''}"
            f"{'.' if generator.window_size is not None else ', or fewer columns: this generator has no window.'}"
        )


def check_images(tokenizer: Tokenizer, batch_size: int, num_columns: int) -> None:
    """Checks that decoded images fit the host.

    Args:
      tokenizer: the module.
      batch_size: number of images.
      num_columns: columns of the images.

    Raises:
      MemoryError: they do not; the message names what they take and what to lower.
    """
    width, host = num_columns * tokenizer.column_width, host_bytes()
    needed = batch_size * tokenizer.resolution * width * 3
    if host is not None and needed > host:
        raise MemoryError(
            f"{batch_size} images of {width} × {tokenizer.resolution} pixels (num_columns={num_columns}) take "
            f"{format_bytes(needed)}, and this machine has {format_bytes(host)}: lower num_columns or the number of "
            "images, or stream strips with eqjax.panorama, whose memory does not grow."
        )
