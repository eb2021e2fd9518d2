"""The engine: draws panoramas for many viewers at once, strip by strip, as they ask for them.

One thread draws. It takes requests from a queue and gives each a slot of programs that draw for all slots in one call
(`eqjax.serving.programs`), and compile before the first request. A viewer has a session, whose state between two strips
is small and lies on the host. Nothing is drawn that nobody asked for.

Everything that a strip shows depends on the model and the options, on the seed and the photograph of its session, and
on what was chosen for the strips of its side up to it, and on nothing else.
"""

from collections.abc import Callable
import math
import threading
import time
from typing import Any

from jaxtyping import UInt8
import numpy as np

from eqjax.model import Model
from eqjax.rules import Instance, Integer, Number
from eqjax.sampling.options import SamplingOptions
from eqjax.serving.drawing import Artist
from eqjax.serving.errors import EngineClosed, Full, StripTimeout, WrongOrder
from eqjax.serving.registry import Registry
from eqjax.serving.sessions import SessionInfo, Status
from eqjax.serving.steering import Steering
from eqjax.serving.worker import Worker

# Seeds of sessions: JAX's have 32 bits, JavaScript's numbers and the next seed (of the left side) are safe in 31.
_SEED = Integer(least=0, most=2**31 - 1)


class Engine:
    """Draws endless panoramas for many viewers. Its methods may be called by any thread.

    Attributes:
      model: the model.
      strip_columns: columns of a strip.

    Example:
      >>> import eqjax
      >>> model = eqjax.load_pretrained("photos")
      >>> with Engine(model, num_slots=1, strip_columns=2, num_flow_steps=2, max_sessions=1) as engine:
      ...     session = engine.open(seed=3)
      ...     engine.strip(session.id, "right", 0, Steering(0, 1, mix=0.5)).shape
      (128, 32, 3)
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
            num_flow_steps=num_flow_steps,
            solver=solver,
            time_grid=time_grid,
            max_position=max_position,
            gpu_kernels="plain",  # The fused ones would compute a tile of 16 rows for every viewer.
        )
        at_least_1 = Integer(least=1, optional=True, none_means="by the measured speed")
        self._given_sessions = at_least_1.check("max_sessions", max_sessions)
        self._given_queue = Integer(least=1, optional=True).check("max_queue", max_queue)
        idle_seconds = Number(above=0).check("idle_seconds", idle_seconds)
        self._viewer_speed = Number(above=0).check("columns_per_second", columns_per_second)
        self._artist = Artist(model, options, slots, self.strip_columns)
        self._sessions, self._max_queue, self._speed = Registry(idle_seconds, clock), 0, 0.0
        self._lock = threading.Condition(threading.RLock())
        self._worker = Worker(self._artist, self._sessions, self._lock, clock)

    @property
    def max_sessions(self) -> int:
        """How many sessions there may be; 0 before `start`."""
        return self._sessions.most

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
        """Columns that are sampled ahead of a strip, because the decoder sees them.

        So what is chosen for a strip shows that many columns behind its beginning; of a tokenizer that sees whole
        windows, at most so many.
        """
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
        if self._speed:
            raise EngineClosed("an engine starts once: make another one.")
        tell = progress or (lambda _: None)
        self._speed = self._artist.prepare(tell)
        self._sessions.most = self._given_sessions or max(1, int(self._speed / self._viewer_speed))
        self._max_queue = self._given_queue or 2 * self.max_sessions
        tell(f"{self._speed:.0f} columns per second: room for {self.max_sessions} viewers")
        self._worker.start()
        return self

    def close(self) -> None:
        """Drops all sessions; whoever waits gets `EngineClosed`."""
        self._worker.close()

    def __enter__(self) -> "Engine":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

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
        fitted = None if photo is None else self._artist.fit(photo)
        with self._lock:
            self._worker.check_open()
            self._sessions.check_room()
            encoded = None if fitted is None else self._worker.encode(fitted)
        latents = None if encoded is None else encoded.result()
        sides = self._artist.sides(seed, fitted, latents)
        with self._lock:
            self._worker.check_open()
            session_id = self._sessions.add(sides)
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
            self._worker.check_open()
            session, found = self._sessions.find(session_id, side)
            if index in found.kept:
                return found.kept[index]
            if index != found.next_index:
                raise WrongOrder(
                    f"strip {index} of side {side!r} was asked for; the next one is {found.next_index}, and before it "
                    f"{list(found.kept)} are kept.",
                    found.next_index,
                )
            if found.request is None:
                self._check_queue()
                found.request = self._worker.draw(found, session, steering)
            request = found.request
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
            self._sessions.drop(session_id)

    def status(self) -> Status:
        """Returns how the engine does."""
        with self._lock:
            self._sessions.drop_idle()
            worker = self._worker
            return Status(
                len(self._sessions), self.max_sessions, worker.waiting, self._speed, worker.drawn, worker.latency()
            )

    # ── Checks ──────────────────────────────────────────────────────────────────────────────────

    def _check_classes(self, steering: Steering) -> None:
        count = self.model.require("generator").num_classes
        for name in ("first_class", "second_class"):
            Integer(least=0, most=count - 1).check(name, getattr(steering, name))

    def _check_queue(self) -> None:
        waiting = self._worker.waiting
        if waiting >= self._max_queue:
            wait = max(1, math.ceil(waiting * self.strip_columns / self._speed))
            raise Full(f"{waiting} strips are waited for: try again in {wait} s.", wait)
