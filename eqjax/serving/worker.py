"""The thread that draws: it takes requests from a queue and fills the slots of the programs with them."""

import collections
from collections.abc import Callable
from concurrent import futures
import statistics
import threading

from jaxtyping import UInt8
import numpy as np

from eqjax.serving.drawing import Artist
from eqjax.serving.errors import EngineClosed, EngineError, EngineFailed
from eqjax.serving.registry import Registry, settle
from eqjax.serving.sessions import PhotoRequest, Request, Session, Side
from eqjax.serving.steering import Steering

# Seconds after which the thread looks for idle sessions at the latest.
_LOOK_SECONDS = 5.0
# Strips over which the latency is measured.
_LATENCIES = 100


class Worker:
    """The thread and its queues. Its methods are called with the lock held, but for `start` and `close`.

    Attributes:
      drawn: strips drawn since the start.
    """

    def __init__(
        self, artist: Artist, sessions: Registry, lock: threading.Condition, clock: Callable[[], float]
    ) -> None:
        """Prepares the thread.

        Args:
          artist: draws.
          sessions: the sessions that are alive.
          lock: guards the sessions and everything here, and is notified of changes.
          clock: returns seconds.
        """
        self._artist, self._sessions, self._lock, self._clock = artist, sessions, lock, clock
        self._queue: collections.deque[Request] = collections.deque()
        self._photos: collections.deque[PhotoRequest] = collections.deque()
        self.drawn, self._latencies = 0, collections.deque[float](maxlen=_LATENCIES)
        self._thread = threading.Thread(target=self._serve, name="eqjax-engine", daemon=True)
        self._is_open = False

    def start(self) -> None:
        """Begins to serve."""
        self._is_open = True
        self._thread.start()

    def close(self) -> None:
        """Drops all sessions and photographs, with `EngineClosed` for those who wait; returns when the thread ends."""
        self._shut(EngineClosed("the engine was closed."))
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def check_open(self) -> None:
        """Raises an error unless the thread serves.

        Raises:
          EngineClosed: it does not.
        """
        if not self._is_open:
            raise EngineClosed("the engine is not started, or was closed.")

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._queue) + len(self._photos)

    def latency(self) -> float:
        """Returns the median of the seconds from request to strip, over the last 100 strips; 0 before the first."""
        return statistics.median(self._latencies) if self._latencies else 0.0

    def draw(self, side: Side, session: Session, steering: Steering) -> Request:
        """Returns the request for a side's next strip, which is queued."""
        request = Request(side, session, steering, self._clock())
        self._queue.append(request)
        self._lock.notify_all()
        return request

    def encode(self, photo: UInt8[np.ndarray, "H W 3"]) -> "futures.Future[np.ndarray]":
        """Returns the future latents of a photograph, which is queued."""
        request = PhotoRequest(photo)
        self._photos.append(request)
        self._lock.notify_all()
        return request.future

    # ── In the thread ───────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        """Draws until the engine is closed."""
        active: list[Request] = []
        try:
            with self._artist.with_precision():
                while self._fetch(active):
                    self._encode_photos()
                    if active:
                        self._draw(active)
        except BaseException as error:
            closed = EngineClosed("the engine ended by an error.")
            closed.__cause__ = error
            self._shut(closed)
            raise

    def _shut(self, error: EngineError) -> None:
        with self._lock:
            self._is_open = False
            self._sessions.clear(error)
            for request in self._photos:
                request.future.set_exception(error)
            self._photos.clear()
            self._lock.notify_all()

    def _fetch(self, active: list[Request]) -> bool:
        """Waits for requests and fills the slots with them; returns False when the engine is closed."""
        with self._lock:
            while self._is_open and not (active or self._queue or self._photos):
                self._lock.wait(_LOOK_SECONDS)
                self._sessions.drop_idle()
            active[:] = [request for request in active if not request.future.done()]
            while self._queue and len(active) < self._artist.num_slots:
                request = self._queue.popleft()
                if not request.future.done():  # Its session was not dropped.
                    active.append(request)
            return self._is_open

    def _draw(self, active: list[Request]) -> None:
        """Goes one step further with all requests in slots; leaves those in `active` that are not done."""
        try:
            done = [(request, self._artist.strip(request)) for request in self._artist.step(active)]
        except Exception as error:
            with self._lock:
                for request in active:
                    settle(request, _failed("a strip could not be drawn", error))
            active.clear()
            return
        with self._lock:
            for request, strip in done:
                active.remove(request)
                if request.future.done():  # Its session was dropped.
                    continue
                now = self._clock()
                request.side.keep(request, strip)
                request.session.last_used = now
                self._latencies.append(now - request.asked)
                self.drawn += 1
                settle(request, strip)

    def _encode_photos(self) -> None:
        """Encodes the photographs that wait."""
        while True:
            with self._lock:
                if not self._photos:
                    return
                request = self._photos.popleft()
            try:
                latents = self._artist.encode(request.photo)
            except Exception as error:
                request.future.set_exception(_failed("the photo could not be encoded", error))
            else:
                request.future.set_result(latents)


def _failed(what: str, cause: Exception) -> EngineFailed:
    error = EngineFailed(f"{what} ({type(cause).__name__}): try again.")
    error.__cause__ = cause
    return error
