"""The device mesh, and how batches and state lie on it."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

DATA_AXIS = "data"


def make_mesh(devices=None):
    """A mesh of all devices (of all processes) along the data axis.

    Args:
      devices: the devices to use; None: all.
    """
    devices = jax.devices() if devices is None else devices
    # Auto axes: with the Explicit ones that jax ≥ 0.8 makes by default, jit would ask for a
    # sharding of every intermediate.
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh):
    """The sharding of values that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch, mesh):
    """Puts a process's share of a batch (arrays [b, …]) on its devices, split along the data axis.

    Raises:
      ValueError: the global batch does not divide among the devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))

    def put(array):
        array = np.asarray(array)
        size = array.shape[0] * jax.process_count()
        if size % mesh.size:
            raise ValueError(
                f"a global batch of {size} does not divide among {mesh.size} devices; "
                f"set batch_size to a multiple of {mesh.size}."
            )
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree.map(put, batch)
