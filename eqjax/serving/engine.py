"""The engine: draws panoramas for many viewers at once, strip by strip, as they ask for them.

One thread draws. It takes requests from a queue and gives each a slot of programs that draw for all slots in one call
(`eqjax.serving.programs`), and compile before the first request. A viewer has a session, whose state between two strips
is small and lies on the host. Nothing is drawn that nobody asked for.

Everything that a strip shows depends on the model and the options, on the seed and the photograph of its session, and
on what was chosen for the strips of its side up to it, and on nothing else.
"""

import collections
from collections.abc import Callable
import dataclasses
import math
import secrets
import statistics
import threading
import time
from typing import Any

from jaxtyping import UInt8
import numpy as np

from eqjax.model import Model
from eqjax.rules import Array, Instance, Integer, Number
from eqjax.sampling.options import SamplingOptions
from eqjax.sampling.outpainting import fit_image
from eqjax.serving.drawing import Artist
from eqjax.serving.errors import EngineClosed, EngineError, EngineFailed, Full, StripTimeout, UnknownSession, WrongOrder
from eqjax.serving.programs import MAX_PHOTO_COLUMNS
from eqjax.serving.sessions import PhotoRequest, Request, Session, SessionInfo, Side
from eqjax.serving.steering import Steering

# Seeds of sessions: JAX's have 32 bits, JavaScript's numbers and the next seed (of the left side) are safe in 31.
_SEED = Integer(least=0, most=2**31 - 1)
# The narrowest photograph: its first and its last column fade into the two sides.
_LEAST_PHOTO_COLUMNS = 3
# Seconds after which the thread looks for idle sessions at the latest.
_LOOK_SECONDS = 5.0
# Strips over which the latency is measured.
_LATENCIES = 100


@dataclasses.dataclass(frozen=True)
class Status:
    """How an engine does.

    Attributes:
      sessions: sessions that are alive.
      max_sessions: how many there may be.
      waiting: requests that wait for a slot.
      columns_per_second: columns that all slots together draw in a second, measured at the start.
      strips: strips drawn since the start.
      latency: median of the seconds from request to strip, over the last 100 strips; 0 before the first.
    """

    sessions: int
    max_sessions: int
    waiting: int
    columns_per_second: float
    strips: int
    latency: float


class Engine:
    """Draws endless panoramas for many viewers. Its methods may be called by any thread.

    Attributes:
      model: the model.
      height: height of strips, pixels.
      column_width: width of a column, pixels.
      strip_columns: columns of a strip.
      lookahead_columns: columns that are sampled ahead of a strip, because the decoder sees them: what is chosen for a
        strip shows that many columns behind its beginning. Of a tokenizer that sees whole windows, at most so many.
      max_sessions: how many sessions there may be; known after `start`.

    Example:
      >>> import eqjax
      >>> model = eqjax.load_pretrained("photos")
      >>> with Engine(model, num_slots=1, strip_columns=2, num_flow_steps=2, max_sessions=1) as engine:
      ...     session = engine.open(seed=3)
      ...     engine.strip(session.id, "right", 0, Steering(0, 1, mix=0.5)).shape
      (64, 32, 3)
    """

    def __init__(
        self,
        model: Any,
        *,
        num_slots: Any = 8,
        strip_columns: Any = 8,
        num_flow_steps: Any = 16,
        solver: Any = "adams_bashforth",
        time_grid: Any = "uniform",
        max_position: Any = None,
        max_sessions: Any = None,
        max_queue: Any = None,
        idle_seconds: Any = 60.0,
        columns_per_second: Any = 7.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares an engine; `start`, or a `with` statement, makes it draw.

        Args:
          model: a `Model` with tokenizer and generator.
          num_slots: viewers drawn for in one call, 1 … 1024. More are drawn for faster, each of them later.
          strip_columns: columns of a strip, 1 … 256.
          num_flow_steps: solver steps per column.
          solver: flow solver, see `SamplingOptions`.
          time_grid: times of its steps.
          max_position: bound of positions, see `SamplingOptions`.
          max_sessions: how many sessions there may be; None: as many as the measured speed serves.
          max_queue: how many strips may be asked for and not yet be drawn; None: two per session.
          idle_seconds: a session that asks for nothing so long is dropped.
          columns_per_second: columns that one viewer looks at in a second, for `max_sessions`.
          clock: returns seconds.

        Raises:
          ValueError: an option is out of its range, or the generator has no window, so that a panorama has to end.
          TypeError: an option is of another type.
        """
        self.model = Instance(Model, "a model, as eqjax.load_pretrained returns it").check("model", model)
        slots = Integer(least=1, most=1024).check("num_slots", num_slots)
        self.strip_columns = Integer(least=1, most=256).check("strip_columns", strip_columns)
        options = SamplingOptions(
            num_flow_steps=num_flow_steps, solver=solver, time_grid=time_grid, max_position=max_position
        )
        at_least_1 = Integer(least=1, optional=True, none_means="by the measured speed")
        self._given_sessions = at_least_1.check("max_sessions", max_sessions)
        self._given_queue = Integer(least=1, optional=True).check("max_queue", max_queue)
        self._idle_seconds = Number(above=0).check("idle_seconds", idle_seconds)
        self._viewer_speed = Number(above=0).check("columns_per_second", columns_per_second)
        self._artist = Artist(model, options, slots, self.strip_columns)
        self.max_sessions, self._max_queue, self._speed = self._given_sessions or 0, 0, 0.0
        self._clock, self._lock = clock, threading.Condition(threading.RLock())
        self._sessions: dict[str, Session] = {}
        self._queue: collections.deque[Request] = collections.deque()
        self._photos: collections.deque[PhotoRequest] = collections.deque()
        self._drawn, self._latencies = 0, collections.deque[float](maxlen=_LATENCIES)
        self._thread: threading.Thread | None = None
        self._is_open = False

    @property
    def height(self) -> int:
        """Height of strips, pixels."""
        return self.model.require("tokenizer").resolution

    @property
    def column_width(self) -> int:
        """Width of a column, pixels."""
        return self.model.require("tokenizer").column_width

    @property
    def strip_width(self) -> int:
        """Width of strips, pixels."""
        return self.strip_columns * self.column_width

    @property
    def lookahead_columns(self) -> int:
        """Columns that are sampled ahead of a strip."""
        return self._artist.lookahead_columns

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; their numbers if they have none."""
        count = self.model.require("generator").num_classes
        return tuple(self.model.class_names or map(str, range(count)))

    # ── Beginning and end ───────────────────────────────────────────────────────────────────────

    def start(self, progress: Callable[[str], object] | None = None) -> "Engine":
        """Compiles the programs, measures how fast they are, and begins to serve; it takes seconds.

        Args:
          progress: called with a few words on what is done next.

        Returns:
          The engine.

        Raises:
          EngineClosed: it was started before.
        """
        if self._thread is not None:
            raise EngineClosed("an engine starts once: make another one.")
        tell = progress or (lambda text: None)
        self._speed = self._artist.prepare(tell)
        self.max_sessions = self._given_sessions or max(1, int(self._speed / self._viewer_speed))
        self._max_queue = self._given_queue or 2 * self.max_sessions
        tell(f"{self._speed:.0f} columns per second: room for {self.max_sessions} viewers")
        self._is_open = True
        self._thread = threading.Thread(target=self._serve, name="eqjax-engine", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Drops all sessions; whoever waits gets `EngineClosed`."""
        self._shut(EngineClosed("the engine was closed."))
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> "Engine":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _shut(self, error: EngineError) -> None:
        with self._lock:
            self._is_open = False
            for session_id in list(self._sessions):
                self._forget(session_id, error)
            for request in self._photos:
                request.future.set_exception(error)
            self._photos.clear()
            self._lock.notify_all()

    # ── What viewers call ───────────────────────────────────────────────────────────────────────

    def open(self, *, seed: Any, photo: Any = None) -> SessionInfo:
        """Begins a session.

        Args:
          seed: an integer, 0 … 2³¹ − 1. The left side of a photograph has the next seed, as in `eqjax.outpaint`.
          photo: an image [H, W, 3], uint8, of any size, which the session continues to both sides. It is resized to the
            model's height and cropped to whole columns.

        Raises:
          ValueError: the seed is out of its range; the photograph is narrower than 3 columns at the model's height, or
            wider than 64.
          TypeError: an argument is of another type.
          Full: there are as many sessions as there may be.
          EngineClosed: the engine is not started, or was closed.
          EngineFailed: the photograph could not be encoded.
        """
        seed = _SEED.check("seed", seed)
        fitted = None if photo is None else self._fit(photo)
        with self._lock:
            self._check_room()
            request = None
            if fitted is not None:
                request = PhotoRequest(fitted)
                self._photos.append(request)
                self._lock.notify_all()
        latents = None if request is None else request.future.result()
        sides = self._artist.sides(seed, fitted, latents)
        with self._lock:
            self._check_room()
            session_id = secrets.token_urlsafe(16)
            self._sessions[session_id] = Session(sides, self._clock())
        width = self.column_width
        shown = None if fitted is None else np.ascontiguousarray(fitted[:, width:-width])
        return SessionInfo(session_id, seed, tuple(sides), shown)

    def strip(
        self, session_id: str, side: Any, index: Any, steering: Any, timeout: float | None = 30.0
    ) -> UInt8[np.ndarray, "H w 3"]:
        """Returns a strip, and draws it first if need be.

        The last three strips of a side are kept, so asking again for one of them, or for one that is being drawn,
        returns the same pixels, whatever the steering.

        Args:
          session_id: the session.
          side: "right", or "left" with a photograph.
          index: number of the strip, from 0 on.
          steering: what governs all columns that are sampled for this strip; they are the columns that it needs and
            that no strip before has needed.
          timeout: seconds to wait; None: until it is drawn.

        Raises:
          UnknownSession: there is no such session, or there is none any more.
          WrongOrder: the strip is neither the next one nor one of the last three.
          Full: too many strips are waited for.
          StripTimeout: it is not drawn in time; it will be, and asking again returns it.
          EngineFailed: drawing raised an error. The session is as it was before.
          EngineClosed: the engine is not started, or was closed.
          ValueError, TypeError: an argument is out of its range, or of another type.
        """
        steering = Instance(Steering, "an eqjax.serving.steering.Steering").check("steering", steering)
        index = Integer(least=0).check("index", index)
        self._check_classes(steering)
        with self._lock:
            self._check_open()
            self._drop_idle()
            session, found = self._find(session_id, side)
            session.last_used = self._clock()
            if index in found.kept:
                return found.kept[index]
            if index != found.next_index:
                raise WrongOrder(
                    f"strip {index} of side {side!r} was asked for; the next one is {found.next_index}, and before it "
                    f"{list(found.kept)} are kept.",
                    found.next_index,
                )
            request = found.request
            if request is None:
                self._check_queue()
                request = found.request = Request(found, session, steering, session.last_used)
                self._queue.append(request)
                self._lock.notify_all()
        try:
            return request.future.result(timeout)
        except TimeoutError as error:
            raise StripTimeout(f"strip {index} was not drawn in {timeout:g} s: ask for it again.") from error

    def drop(self, session_id: str) -> None:
        """Ends a session; whoever waits for a strip of it gets `UnknownSession`.

        Raises:
          UnknownSession: there is no such session.
        """
        with self._lock:
            if session_id not in self._sessions:
                raise _unknown()
            self._forget(session_id, _unknown())

    def status(self) -> Status:
        """Returns how the engine does."""
        with self._lock:
            self._drop_idle()
            latency = statistics.median(self._latencies) if self._latencies else 0.0
            waiting = len(self._queue) + len(self._photos)
            return Status(len(self._sessions), self.max_sessions, waiting, self._speed, self._drawn, latency)

    # ── Checks, with the lock held ──────────────────────────────────────────────────────────────

    def _fit(self, photo: Any) -> UInt8[np.ndarray, "H w 3"]:
        """Returns a photograph of the model's height and of whole columns."""
        photo = np.asarray(Array(("height", "width", 3), "uint8").check("photo", photo))
        tokenizer, columns = self.model.require("tokenizer"), 0
        if photo.size:
            photo = fit_image(photo, tokenizer)
            columns = photo.shape[1] // tokenizer.column_width
        if not _LEAST_PHOTO_COLUMNS <= columns <= MAX_PHOTO_COLUMNS:
            least, most = (n * tokenizer.column_width for n in (_LEAST_PHOTO_COLUMNS, MAX_PHOTO_COLUMNS))
            raise ValueError(
                f"the photo is {columns * tokenizer.column_width} pixels wide at a height of {tokenizer.resolution}; "
                f"expected {least} … {most}: cut out a part of another shape."
            )
        return photo

    def _check_classes(self, steering: Steering) -> None:
        count = self.model.require("generator").num_classes
        for name in ("first_class", "second_class"):
            Integer(least=0, most=count - 1).check(name, getattr(steering, name))

    def _check_open(self) -> None:
        if not self._is_open:
            raise EngineClosed("the engine is not started, or was closed.")

    def _check_room(self) -> None:
        """Raises `Full` if there are as many sessions as there may be."""
        self._check_open()
        self._drop_idle()
        if len(self._sessions) >= self.max_sessions:
            oldest = min(session.last_used for session in self._sessions.values())
            wait = max(1, math.ceil(oldest + self._idle_seconds - self._clock()))
            raise Full(f"all {self.max_sessions} places are taken: try again in {wait} s.", wait)

    def _check_queue(self) -> None:
        if len(self._queue) >= self._max_queue:
            wait = max(1, math.ceil(len(self._queue) * self.strip_columns / max(self._speed, 1e-9)))
            raise Full(f"{len(self._queue)} strips are waited for: try again in {wait} s.", wait)

    def _find(self, session_id: str, side: Any) -> tuple[Session, Side]:
        """Returns a session, and one of its sides."""
        session = self._sessions.get(session_id)
        if session is None:
            raise _unknown()
        if side not in session.sides:
            raise ValueError(f"side={side!r} is not one of this session's sides, {list(session.sides)}.")
        return session, session.sides[side]

    def _drop_idle(self) -> None:
        """Drops sessions that have asked for nothing for too long."""
        before = self._clock() - self._idle_seconds
        for session_id, session in list(self._sessions.items()):
            if session.last_used < before and not session.is_waiting:
                self._forget(session_id, _unknown())

    def _forget(self, session_id: str, error: EngineError) -> None:
        """Drops a session, with an error for those who wait."""
        for side in self._sessions.pop(session_id).sides.values():
            if side.request is not None:
                self._settle(side.request, error)

    def _settle(self, request: Request, result: Any) -> None:
        """Answers a request with a strip or an error, unless it has been answered."""
        if not request.future.done():
            request.side.request = None
            if isinstance(result, BaseException):
                request.future.set_exception(result)
            else:
                request.future.set_result(result)

    # ── The thread ──────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        """Draws until the engine is closed."""
        active: list[Request] = []
        try:
            with self.model.with_precision():
                while self._fetch(active):
                    self._encode_photos()
                    if active:
                        self._draw(active)
        except BaseException as error:
            closed = EngineClosed("the engine ended by an error.")
            closed.__cause__ = error
            self._shut(closed)
            raise

    def _fetch(self, active: list[Request]) -> bool:
        """Waits for requests and fills the slots with them; returns False when the engine is closed."""
        with self._lock:
            while self._is_open and not (active or self._queue or self._photos):
                self._lock.wait(min(_LOOK_SECONDS, self._idle_seconds))
                self._drop_idle()
            active[:] = [request for request in active if not request.future.done()]
            while self._queue and len(active) < self._artist.num_slots:
                request = self._queue.popleft()
                if not request.future.done():
                    active.append(request)
            return self._is_open

    def _draw(self, active: list[Request]) -> None:
        """Goes one step further with all requests in slots; leaves those in `active` that are not done."""
        try:
            done = self._artist.step(active)
        except Exception as error:
            with self._lock:
                for request in active:
                    self._settle(request, _failed("a strip could not be drawn", error))
            active.clear()
            return
        with self._lock:
            for request in done:
                active.remove(request)
                if request.future.done():  # Its session was dropped.
                    continue
                now, drawing = self._clock(), request.drawing
                assert drawing is not None
                strip = request.side.keep(drawing, self.strip_width)
                request.session.last_used = now
                self._latencies.append(now - request.asked)
                self._drawn += 1
                self._settle(request, strip)

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


def _unknown() -> UnknownSession:
    return UnknownSession("there is no such session, or it was dropped after a pause: open another one.")


def _failed(what: str, cause: Exception) -> EngineFailed:
    error = EngineFailed(f"{what} ({type(cause).__name__}): try again.")
    error.__cause__ = cause
    return error
