"""Puts the batch of the next step on the devices while they compute a step."""

from collections.abc import Callable
from typing import Any

from eqjax.data import BatchIterator
from eqjax.training.trainer import Batch


class DevicePrefetch:
    """Batches on the devices, one ahead of the step; the data's position is that of the batch of the step.

    Call `take` for a step's batch, start the step, then call `read_ahead`: reading and copying the next batch takes
    place while the devices compute. An error in reading it is raised by the `take` that asks for it, so that the step
    before is evaluated and saved as if nothing was read ahead.
    """

    def __init__(self, data: BatchIterator, place: Callable[[Any, int], Batch]) -> None:
        """Stores where batches come from; nothing is read yet.

        Args:
          data: batches of the host; nobody else may read from it.
          place: (batch of the host, number of its step) → batch on the devices.
        """
        self._data, self._place = data, place
        self._position: dict[str, int] | None = None
        self._ahead: tuple[int, Batch | Exception, dict[str, int]] | None = None

    def take(self, step: int) -> Batch:
        """Returns the batch of a step; steps follow each other.

        Raises:
          Exception: whatever reading the batch raised.
        """
        if self._ahead is None:
            self.read_ahead(step)
        assert self._ahead is not None and self._ahead[0] == step
        (_, batch, self._position), self._ahead = self._ahead, None
        if isinstance(batch, Exception):
            raise batch
        return batch

    def read_ahead(self, step: int) -> None:
        """Reads the batch of the step after the current one, and starts to copy it to the devices."""
        batch: Batch | Exception
        try:
            batch = self._place(next(self._data), step)
        except Exception as error:  # For `take`.
            batch = error
        self._ahead = step, batch, self._data.get_state()

    def get_state(self) -> dict[str, int]:
        """Returns the data's position after the batch that `take` returned last, whatever was read ahead."""
        return dict(self._position) if self._position is not None else self._data.get_state()

    def set_state(self, state: dict[str, int]) -> None:
        """Moves the data to a position of `get_state`, and forgets what was read ahead.

        Raises:
          ValueError: the state belongs to another stream of records.
        """
        self._data.set_state(state)
        self._position = self._ahead = None
