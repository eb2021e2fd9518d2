"""Model FLOPs utilization: how much of the devices' peak a run's steps use."""

from typing import Any

from absl import logging
import jax

from eqjax.perf import chips, flops
from eqjax.training.trainer import Batch, State, Trainer


class Utilization:
    """Relates the time of steps to the time that their matrix products take at the peak of the devices."""

    def __init__(self, trainer: Trainer, mesh: jax.sharding.Mesh) -> None:
        """Has seen no step.

        Args:
          trainer: the trainer, whose `plain_step` is counted.
          mesh: the run's mesh.
        """
        self._trainer, self._mesh = trainer, mesh
        self._seconds_at_peak: dict[Any, float | None] = {}  # By the structure of the batch: each is a program.
        self._seconds, self._steps = 0.0, 0

    def has_seen(self, batch: Batch) -> bool:
        """Returns whether a step of this program was counted before."""
        return jax.tree.structure(batch) in self._seconds_at_peak

    def add(self, state: State, batch: Batch) -> None:
        """Adds a step; the first one of its program is traced, to count its FLOPs.

        Args:
          state: state before the step.
          batch: its batch.
        """
        program = jax.tree.structure(batch)
        if program not in self._seconds_at_peak:
            self._seconds_at_peak[program] = self._count_seconds_at_peak(state, batch)
        self._seconds += self._seconds_at_peak[program] or 0.0
        self._steps += 1

    def take(self, steps_per_second: float) -> float | None:
        """Returns the utilization of the steps since the last call; None if the peak of the devices is unknown.

        Args:
          steps_per_second: the speed of these steps.
        """
        mean = self._seconds / self._steps if self._seconds else None
        self._seconds, self._steps = 0.0, 0
        return None if mean is None else steps_per_second * mean

    def _count_seconds_at_peak(self, state: State, batch: Batch) -> float | None:
        """Returns the seconds of a step at the peak of the devices; None if the peak is unknown."""
        peak = chips.peak_flops(self._mesh.devices.flat[0].device_kind)
        if not peak:
            return None
        step = jax.tree_util.Partial(self._trainer.plain_step, self._trainer.frozen)
        needed = flops.count(step, state, batch, jax.random.key(0))
        logging.info("A step takes %.4g FLOPs of the model.", needed)
        return needed / (peak * self._mesh.size)
