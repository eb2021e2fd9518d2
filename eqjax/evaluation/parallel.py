"""A traced function over any number of rows, split among devices so that their number changes nothing."""

import time

from absl import logging
import jax
from jax.sharding import PartitionSpec
import numpy as np

from eqjax import sharding


class BatchedShardMap:
    """Applies `fn(params, *arrays)` to rows (arrays [n, …], n ≤ batch_size), giving a tree of arrays [n, …].

    Every device runs the same program on `rows_per_device` rows and nothing is exchanged, so a row's result
    does not depend on how many devices there are. Fewer rows are filled up with copies of the last.

    Attributes:
      batch_size: rows that one call takes at most.
    """

    def __init__(self, fn, params, mesh, rows_per_device):
        """Makes the map; compiles at the first call.

        Args:
          fn: traced; each row of its result may depend on that row of the arrays and on `params` alone.
          params: a tree of arrays, the same on every process (a key as its data); copied to every device.
          mesh: of `sharding.make_mesh`.
          rows_per_device: at least 1.
        """
        if rows_per_device < 1:
            raise ValueError(f"rows_per_device={rows_per_device} must be ≥ 1.")
        self.batch_size = rows_per_device * mesh.size
        self._mesh = mesh
        self._params = sharding.put(params, sharding.replicated(mesh))
        rows = PartitionSpec(mesh.axis_names)
        # The check of replication would ask every loop's state to be marked as varying among devices.
        self._fn = jax.jit(
            jax.shard_map(
                lambda params, arrays: fn(params, *arrays),
                mesh=mesh,
                in_specs=(PartitionSpec(), rows),
                out_specs=rows,
                check_vma=False,
            )
        )

    def __call__(self, *arrays):
        count = len(arrays[0])
        if not 1 <= count <= self.batch_size:
            raise ValueError(f"{count} rows; one call takes 1 … {self.batch_size}.")
        share = self.batch_size // jax.process_count()
        places = jax.process_index() * share + np.arange(share)
        mine = tuple(np.asarray(array)[np.minimum(places, count - 1)] for array in arrays)
        out = self._fn(self._params, sharding.shard_batch(mine, self._mesh))
        return jax.tree.map(lambda array: array[:count], sharding.gather(out))


class ProgressLogger:
    """Log lines of progress with the rate and the time left, on process 0, at most one every few seconds."""

    def __init__(self, what, total, done=0, every=10.0):
        """Args: what, in plural; total and done, their numbers; every, seconds between lines."""
        self._what, self._total, self._done, self._every = what, total, done, every
        self._start, self._first = time.monotonic(), done
        self._last = self._start

    @property
    def seconds(self):
        """Since it was made."""
        return time.monotonic() - self._start

    def update(self, count):
        """Counts `count` more."""
        self._done += count
        now = time.monotonic()
        if jax.process_index() or (now - self._last < self._every and self._done < self._total):
            return
        self._last = now
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        left = int((self._total - self._done) / rate)
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        logging.info("%s: %d/%d, %.1f per second, %s left", self._what, self._done, self._total, rate, clock)
