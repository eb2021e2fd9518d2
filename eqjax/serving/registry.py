"""The sessions that are alive: how many there may be, and when they end."""

from collections.abc import Callable, Mapping
import math
import secrets
from typing import Any

from eqjax.messages import show
from eqjax.serving.errors import EngineError, Full, UnknownSession
from eqjax.serving.sessions import Request, Session, Side


class Registry:
    """Sessions by their ids; used by one thread at a time.

    Attributes:
      most: how many sessions there may be.
    """

    def __init__(self, idle_seconds: float, clock: Callable[[], float]) -> None:
        """Begins without sessions, and with room for none.

        Args:
          idle_seconds: a session that asks for nothing so long is dropped.
          clock: returns seconds.
        """
        self.most, self._idle_seconds, self._clock = 0, idle_seconds, clock
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def check_room(self) -> None:
        """Raises an error if there are as many sessions as there may be.

        Raises:
          Full: there are.
        """
        self.drop_idle()
        if len(self) >= self.most:
            oldest = min(session.last_used for session in self._sessions.values())
            wait = max(1, math.ceil(oldest + self._idle_seconds - self._clock()))
            raise Full(f"all {self.most} places are taken: try again in {wait} s.", wait)

    def add(self, sides: Mapping[str, Side]) -> str:
        """Adds a session and returns its id, which nobody can guess.

        Raises:
          Full: there are as many sessions as there may be.
        """
        self.check_room()
        session_id = secrets.token_urlsafe(16)
        self._sessions[session_id] = Session(dict(sides), self._clock())
        return session_id

    def find(self, session_id: Any, side: Any) -> tuple[Session, Side]:
        """Returns a session, which is used now, and one of its sides.

        Raises:
          UnknownSession: there is no such session.
          ValueError: it has no such side.
        """
        self.drop_idle()
        session = self._sessions.get(session_id)
        if session is None:
            raise _unknown()
        if side not in session.sides:
            raise ValueError(f"side={show(side)} is not one of this session's sides, {list(session.sides)}.")
        session.last_used = self._clock()
        return session, session.sides[side]

    def drop(self, session_id: Any) -> None:
        """Drops a session; whoever waits for a strip of it gets `UnknownSession`.

        Raises:
          UnknownSession: there is no such session.
        """
        if session_id not in self._sessions:
            raise _unknown()
        self._drop(session_id, _unknown())

    def drop_idle(self) -> None:
        """Drops sessions that have asked for nothing for too long."""
        before = self._clock() - self._idle_seconds
        for session_id, session in list(self._sessions.items()):
            if session.last_used < before and not session.is_waiting:
                self._drop(session_id, _unknown())

    def clear(self, error: EngineError) -> None:
        """Drops all sessions, with an error for those who wait."""
        for session_id in list(self._sessions):
            self._drop(session_id, error)

    def _drop(self, session_id: str, error: EngineError) -> None:
        for side in self._sessions.pop(session_id).sides.values():
            if side.request is not None:
                settle(side.request, error)


def settle(request: Request, result: Any) -> None:
    """Answers a request with a strip or an error, unless it has been answered."""
    if not request.future.done():
        request.side.request = None
        if isinstance(result, BaseException):
            request.future.set_exception(result)
        else:
            request.future.set_result(result)


def _unknown() -> UnknownSession:
    return UnknownSession("there is no such session, or it was dropped after a pause: open another one.")
