"""Runs a traced function over batches of any size on all devices, with results independent of their number."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec
import numpy as np

from eqjax import sharding
from eqjax.typing import AnyArray, Tree


class BatchedShardMap:
    """Applies `fn(params, *arrays)` to batches of at most `batch_size` rows.

    Every device runs the same program on `per_device_batch_size` rows and exchanges nothing, so a row's result does
    not depend on the number of devices. Smaller batches are padded with copies of their last row.

    Attributes:
      batch_size: largest number of rows of one call.

    Example:
      >>> double = BatchedShardMap(lambda params, x: params * x, np.float32(2), sharding.make_mesh(), 4)
      >>> double(np.arange(3, dtype=np.float32)).tolist()
      [0.0, 2.0, 4.0]
    """

    def __init__(self, fn: Callable[..., Tree], params: Tree, mesh: Mesh, per_device_batch_size: int) -> None:
        """Copies the parameters to every device; `fn` compiles at the first call.

        Args:
          fn: traceable function; each row of its result may depend only on that row of the arrays and on `params`.
          params: tree of arrays, the same on every process (random keys as their data).
          mesh: mesh of `sharding.make_mesh`.
          per_device_batch_size: rows that each device processes at a time.

        Raises:
          ValueError: `per_device_batch_size` is below 1.
        """
        if per_device_batch_size < 1:
            raise ValueError(f"per_device_batch_size={per_device_batch_size} must be ≥ 1.")
        self.batch_size = per_device_batch_size * mesh.size
        self._mesh = mesh
        self._params = sharding.put(params, sharding.replicated(mesh))
        rows = PartitionSpec(mesh.axis_names)
        # The check of replication would require marking every loop's state as varying among devices.
        self._fn = jax.jit(
            jax.shard_map(
                lambda params, arrays: fn(params, *arrays),
                mesh=mesh,
                in_specs=(PartitionSpec(), rows),
                out_specs=rows,
                check_vma=False,
            )
        )

    def __call__(self, *arrays: AnyArray) -> Any:
        """Returns the result for arrays [n, …] as a tree of numpy arrays [n, …].

        Raises:
          ValueError: there are no rows, or more than `batch_size`.
        """
        count = len(arrays[0])
        if not 1 <= count <= self.batch_size:
            raise ValueError(f"got {count} rows; one call takes 1 … {self.batch_size}.")
        per_process = self.batch_size // jax.process_count()
        indices = jax.process_index() * per_process + np.arange(per_process)
        local = tuple(np.asarray(array)[np.minimum(indices, count - 1)] for array in arrays)
        out = self._fn(self._params, sharding.shard_batch(local, self._mesh))
        return jax.tree.map(lambda array: array[:count], sharding.gather(out))
