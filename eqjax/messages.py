"""Words of error messages: values cut to a readable length, and the nearest known name.

Nothing here imports JAX, as the command line checks names before it has loaded it.
"""

from collections.abc import Iterable, Sequence
import difflib
from typing import Any

from eqjax.tracing import is_traced

# Characters of a value in a message: a list of a thousand class names has more, a name from a hostile file millions.
_MAX_LENGTH = 200


def shorten(text: str) -> str:
    """Returns a text for a message, cut after 200 characters.

    Example:
      >>> len(shorten("a" * 1000))
      201
    """
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"


def show(value: Any) -> str:
    """Returns a value of any kind as text for a message: arrays by dtype and shape, all else cut.

    Example:
      >>> import numpy as np
      >>> show(np.zeros((2, 3), np.float32)), show("eulr")
      ('<float32 array of shape (2, 3)>', "'eulr'")
    """
    if is_traced(value):
        return "<traced by JAX>"
    if hasattr(value, "dtype") and getattr(value, "shape", ()):
        return f"<{value.dtype} array of shape {tuple(value.shape)}>"
    if isinstance(value, int) and abs(value) >= 10**100:
        return f"<an integer of {value.bit_length()} bits>"
    try:
        return shorten(" ".join(repr(value).split()))
    except Exception:  # Whatever another's __repr__ raises, the message matters more.
        return f"<{type(value).__name__}>"


def nearest(name: Any, known: Iterable[str]) -> str:
    """Returns the known name that is most like `name`, which may be far from it.

    Args:
      name: what was given.
      known: one or more names.

    Example:
      >>> nearest("flwer", ["cat", "flower"])
      'flower'
    """
    return difflib.get_close_matches(str(name)[:_MAX_LENGTH], list(known), 1, 0)[0]


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """Returns the end of a sentence: "; did you mean 'flower'?", or "." if no known name is near."""
    found = difflib.get_close_matches(str(name)[:_MAX_LENGTH], list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else "."


def check_names(kind: str, given: Iterable[Any], known: Sequence[str], error: type[Exception] = TypeError) -> None:
    """Refuses unknown names, such as keyword arguments or fields, with the nearest known one.

    Args:
      kind: what the names are, such as "sampling option".
      given: names.
      known: the names that exist.
      error: kind of the exception.

    Raises:
      error: a name is unknown.

    Example:
      >>> check_names("option", ["seeed"], ["seed", "labels"])
      Traceback (most recent call last):
      TypeError: unknown option 'seeed'; did you mean 'seed'? Known: seed, labels.
    """
    for name in given:
        if name not in known:
            raise error(f"unknown {kind} {show(name)}{did_you_mean(name, known)} Known: {', '.join(known)}.")
