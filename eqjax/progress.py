"""Logs the progress of long jobs: count, speed and time left."""

import time

from absl import logging
import jax


def format_duration(seconds: float) -> str:
    """Formats a duration as h:mm:ss; fractions of a second are dropped.

    Example:
      >>> format_duration(3725.9)
      '1:02:05'
    """
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class ProgressLogger:
    """Logs count, speed and time left on process 0, at most once every few seconds.

    Example:
      >>> progress = ProgressLogger("images", total=100)
      >>> progress.update(50)  # Logs "images: 50/100, … per second, … left" after ten seconds.
    """

    def __init__(self, what: str, total: int, done: int = 0, every: float = 10.0) -> None:
        """Starts the clock.

        Args:
          what: plural name of the items.
          total: number of items.
          done: number of items done before, which do not count in the speed.
          every: shortest time between two lines, seconds.
        """
        self._what, self._total, self._done, self._every = what, total, done, every
        self._start, self._first = time.monotonic(), done
        self._last = self._start

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def update(self, count: int) -> None:
        """Adds `count` to the items done, and logs if a line is due."""
        self._done += count
        now = time.monotonic()
        if jax.process_index() or (now - self._last < self._every and self._done < self._total):
            return
        self._last = now
        speed = (self._done - self._first) / max(now - self._start, 1e-9)
        left = format_duration((self._total - self._done) / max(speed, 1e-9))
        logging.info("%s: %d/%d, %.1f per second, %s left", self._what, self._done, self._total, speed, left)
