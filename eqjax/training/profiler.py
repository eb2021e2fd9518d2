"""A profiler trace of some steps of a run."""

from absl import logging
import jax

from eqjax.training.fault_tolerance import StepWatch


class Profiler:
    """Traces `num_steps` steps from step `first` on, as far as this run does them; use it in a `with` statement."""

    def __init__(self, folder: str, first: int | None, num_steps: int) -> None:
        """Stores the range of steps; the trace starts later, see `before`.

        Args:
          folder: folder of the trace.
          first: first step of the trace, counted from 1; None: no trace.
          num_steps: length of the trace.
        """
        self._steps = range(0) if first is None else range(first, first + num_steps)
        self._folder, self._is_running = folder, False

    def before(self, step: int, watch: StepWatch) -> None:
        """Starts or stops the trace, if `step` is the first inside or after its steps."""
        if self._is_running and step not in self._steps:
            watch.drain()
            self._stop()
        elif not self._is_running and step in self._steps:
            jax.profiler.start_trace(self._folder)
            self._is_running = True

    def _stop(self) -> None:
        if self._is_running:
            self._is_running = False
            jax.profiler.stop_trace()
            logging.info("Wrote a trace under %s.", self._folder)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
