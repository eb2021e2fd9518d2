"""What libraries print around failures that are handled: it goes to a file, so that one sentence remains to be read.

`install` takes over the traces that Orbax, TensorBoard, asyncio and others log or print. With `open_in` they go to
`debug.log` in a run's folder, before that they wait in memory. `start_guard` does the same for what C++ libraries
write to the terminal before they end the process.
"""

import logging
import logging.handlers
import os
import subprocess
import sys
import threading
import types
from typing import Any

# Libraries that report an error themselves, in full, before they raise it.
_TALKATIVE = ("orbax", "tensorboardX", "tensorstore", "asyncio", "grpc")
_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s %(pathname)s:%(lineno)d] %(message)s"
_MAX_BYTES, _KEPT_RECORDS = 10_000_000, 1000

_logger = logging.getLogger("eqjax.debug")


def is_covered(record: logging.LogRecord) -> bool:
    """Returns whether a record is for the debug log only: a trace of our own, or a library's word on an error.

    Example:
      >>> is_covered(logging.LogRecord("eqjax.debug", logging.ERROR, "x.py", 1, "trace", None, None))
      True
    """
    folders = record.pathname.split(os.sep)
    return record.name == _logger.name or (
        record.levelno >= logging.WARNING and any(name in folders for name in _TALKATIVE)
    )


def _ignore(record: logging.LogRecord) -> None:
    del record


class DebugLog:
    """The debug log of this process.

    Attributes:
      path: the file; None as long as there is none.
    """

    def __init__(self) -> None:
        self.path: str | None = None
        self._has_records = False
        # Keeps records until there is a file.
        self._handler = logging.handlers.MemoryHandler(_KEPT_RECORDS, flushLevel=100, flushOnClose=False)
        self._handler.setLevel(logging.WARNING)
        self._handler.addFilter(self._is_ours)

    def _is_ours(self, record: logging.LogRecord) -> bool:
        covered = is_covered(record)
        self._has_records |= covered
        return covered

    def install(self) -> None:
        """Begins to take over traces, until the process ends or `uninstall` is called."""
        logging.getLogger().addHandler(self._handler)
        _logger.propagate = True
        sys.excepthook = self._excepthook
        threading.excepthook = lambda args: self._trace("in a thread", args.exc_value)
        sys.unraisablehook = lambda args: self._trace(f"ignored in {args.object!r:.200}", args.exc_value)

    def uninstall(self) -> None:
        """Gives the traces back to the terminal."""
        logging.getLogger().removeHandler(self._handler)
        sys.excepthook = sys.__excepthook__
        threading.excepthook = threading.__excepthook__
        sys.unraisablehook = sys.__unraisablehook__

    def open_in(self, folder: str | os.PathLike[str], name: str = "debug.log") -> None:
        """Writes what was kept, and all that follows, to a file; it is made when there is something to write.

        Args:
          folder: the folder.
          name: name of the file.
        """
        self.path = os.path.join(folder, name)
        target = logging.handlers.RotatingFileHandler(
            self.path, maxBytes=_MAX_BYTES, backupCount=1, delay=True, encoding="utf-8", errors="backslashreplace"
        )
        target.setFormatter(logging.Formatter(_FORMAT))
        target.handleError = _ignore  # The disk may be full: the sentence is what matters.
        self._handler.setTarget(target)
        self._handler.capacity = 1
        self._handler.flush()

    def record(self, error: BaseException) -> str:
        """Writes an exception with its trace, if there is another one behind it.

        Returns:
          A line that names the file, if anything was written to it; else "".
        """
        if error.__cause__ is not None:
            self._trace("ended the command", error)
        if self._has_records and self.path and os.path.isfile(self.path):
            return f"\nTraces are in {self.path}."
        return ""

    def _trace(self, what: str, error: BaseException | None) -> None:
        if isinstance(error, SystemExit):
            return
        _logger.error("Exception %s", what, exc_info=error)

    def _excepthook(self, kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        del kind, trace
        # While a command runs, only C libraries call this: for exceptions of callbacks that nobody awaits.
        self._trace("printed by a library", error)


# Runs beside a process, reads what C++ libraries write to its terminal, and speaks if they ended it.
_GUARD = """
import os, signal, sys
path = sys.argv[1]
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
lines = open(0, "rb", buffering=0)
rest, file = b"", None
while True:
    piece = lines.read(65536)
    if not piece:
        break
    try:
        file = file or open(path, "ab", buffering=0)
        file.write(piece)
    except OSError:
        pass
    rest = (rest + piece)[-65536:]
if any(sign in rest for sign in (b"Check failure stack trace", sys.argv[3].encode())):
    os.write(2, (sys.argv[2] + "\\n").encode())
"""
# How JAX announces that it ends the process.
_LAST_WORDS = "Terminating process because"


def start_guard(path: str, sentence: str) -> None:
    """Keeps what C++ libraries write to the terminal in a file, and prints a sentence if they end the process.

    Python's own `sys.stderr` stays the terminal. For runs of several processes, which JAX ends when one is lost. It
    lasts until the process ends.

    Args:
      path: the file, which is appended to.
      sentence: text to print.
    """
    command = [sys.executable, "-I", "-S", "-c", _GUARD, path, sentence, _LAST_WORDS]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert guard.stdin is not None
    before, terminal = sys.stderr, os.dup(2)
    before.flush()
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    for handler in logging.getLogger().handlers:
        inner: Any = getattr(handler, "python_handler", handler)  # absl wraps its handler.
        if getattr(inner, "stream", None) is before:
            inner.stream = sys.stderr
    os.dup2(guard.stdin.fileno(), 2)
    os.close(guard.stdin.fileno())
    _GUARDS.append(guard)  # Else Python would warn that it still runs.


def end_guarded(code: int) -> None:
    """Ends the process at once if it is guarded; then the guard prints its sentence, and nothing waits for others."""
    if _GUARDS:
        os.write(2, _LAST_WORDS.encode() + b"\n")
        os._exit(code)


_GUARDS: list[subprocess.Popen[bytes]] = []
LOG = DebugLog()
