"""Says what long work is doing: what begins, how long it took, count, speed and time left."""

from collections.abc import Iterator
import contextlib
import sys
import threading
import time
from typing import Any
import weakref

from absl import logging

_PATIENCE = 2.0  # Seconds of waiting for the first items until that is said.


def format_duration(seconds: float) -> str:
    """Formats a duration as h:mm:ss; fractions of a second are dropped.

    Example:
      >>> format_duration(3725.9)
      '1:02:05'
    """
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


@contextlib.contextmanager
def announced(what: str, *, patience: float = 0.0) -> Iterator[None]:
    """Logs what the block does, and how long it took, on process 0.

    Nobody should wait in front of a silent terminal: announce compilation, and whatever else may take over 5 seconds.

    Args:
      what: the work, as the beginning of a sentence: "Compiling the training step".
      patience: seconds after which the work is announced; a block that ends earlier logs nothing.

    Example:
      >>> with announced("Compiling the sampler"):  # Logs "Compiling the sampler …" and "… took 7.1 s."
      ...     pass
    """
    start, announcement = time.monotonic(), _Announcement(f"{what} …", patience)
    try:
        yield
    finally:
        announcement.cancel()
    if announcement.was_made:
        _log(f"{what} took {time.monotonic() - start:.1f} s.")


class ProgressLogger:
    """Logs count, speed and time left on process 0, at most once every few seconds.

    The first items wait for their program to be compiled, which is said after two seconds.

    Example:
      >>> progress = ProgressLogger("images", total=100)
      >>> progress.update(50)  # Logs "images: 50/100, … per second, … left" after five seconds.
    """

    def __init__(self, what: str, total: int, done: int = 0, every: float = 5.0) -> None:
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
        self._announcement = _Announcement(f"{what}: {done}/{total}; compiling, and working on the first …", _PATIENCE)
        # An error may end the work before its first item.
        weakref.finalize(self, self._announcement.cancel)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def update(self, count: int) -> None:
        """Adds `count` to the items done, and logs if a line is due; 0 only says that the work goes on."""
        if not count:
            return
        self._announcement.cancel()
        is_answer = self._announcement.was_made and self._done == self._first
        self._done += count
        now = time.monotonic()
        if now - self._last < self._every and self._done < self._total and not is_answer:
            return
        self._last = now
        speed = (self._done - self._first) / max(now - self._start, 1e-9)
        left = format_duration((self._total - self._done) / max(speed, 1e-9))
        took = f", the first took {now - self._start:.1f} s" if is_answer else ""
        _log(f"{self._what}: {self._done}/{self._total}, {speed:.1f} per second, {left} left{took}")


class _Announcement:
    """A line that is logged after some seconds unless it is canceled before."""

    def __init__(self, text: str, patience: float) -> None:
        self._text, self._lock = text, threading.Lock()
        self.was_made, self._is_canceled = False, False
        self._timer = threading.Timer(patience, self._make)
        self._timer.daemon = True
        if patience > 0:
            self._timer.start()
        else:
            self._make()

    def _make(self) -> None:
        with self._lock:
            if not self._is_canceled:
                self.was_made = True
                _log(self._text)

    def cancel(self) -> None:
        with self._lock:
            self._is_canceled = True
        self._timer.cancel()


def _log(text: str) -> None:
    """Logs a line on process 0, without loading JAX or starting a backend where it is not known who else is there."""
    jax: Any = sys.modules.get("jax")
    distributed = getattr(jax, "distributed", None)  # None while another thread imports JAX.
    if distributed is None or not distributed.is_initialized() or jax.process_index() == 0:
        logging.info("%s", text)
