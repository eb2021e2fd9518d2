"""Errors of the engine that draws panoramas for many viewers; wrong arguments are ValueErrors and TypeErrors."""


class EngineError(Exception):
    """The base of the errors below."""


class UnknownSession(EngineError):  # noqa: N818 - the base says that it is an error
    """There is no such session: it was dropped, was idle for too long, or never existed."""


class WrongOrder(EngineError):  # noqa: N818 - the base says that it is an error
    """The strip that was asked for is neither the next one of its side nor one of those that are kept.

    Attributes:
      expected: index of the next strip.
    """

    def __init__(self, message: str, expected: int) -> None:
        super().__init__(message)
        self.expected = expected


class Full(EngineError):  # noqa: N818 - the base says that it is an error
    """The engine draws for as many viewers as it can.

    Attributes:
      retry_after: seconds after which it is worth asking again, ≥ 1.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StripTimeout(EngineError):  # noqa: N818 - the base says that it is an error
    """A strip was not drawn in time; it is drawn all the same, so asking for it again returns it."""


class EngineClosed(EngineError):  # noqa: N818 - the base says that it is an error
    """The engine is not started, or was closed."""


class EngineFailed(EngineError):  # noqa: N818 - the base says that it is an error
    """A step of drawing raised an error, which is its cause; the session is as it was before."""
