"""One sentence for requests that do not fit into memory, of a device or of the host."""

from collections.abc import Iterator
import contextlib
import re

from jax.errors import JaxRuntimeError

# The second is the CPU's, in an INTERNAL error, where a step is not awaited; in jax 0.7.
_EXHAUSTED = re.compile("RESOURCE_EXHAUSTED|Out of memory allocating")
# XLA: "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes", "Used 20.5G of 15.5G hbm", and others;
# numpy: "Unable to allocate 7.3 TiB for an array".
_AMOUNT = re.compile(r"(\d[\d.]*) ?([KMGTP]i?B|[KMGTP]\b|bytes)")
_UNIT = 1024.0


class OutOfMemoryError(MemoryError):
    """A request does not fit into memory; the message says what was asked for, and what to lower."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception says that memory of the host or of a device is exhausted.

    Example:
      >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("Out of range"))
      (True, False)
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, JaxRuntimeError) and _EXHAUSTED.search(str(error)) is not None
    )


def describe(error: BaseException, request: str, remedy: str) -> str:
    """Returns the sentence for an exception of `is_out_of_memory`.

    Args:
      error: the exception.
      request: what was being done, as "a batch of 64 images".
      remedy: what to lower.

    Example:
      >>> describe(MemoryError("Unable to allocate 7.3 TiB for an array"), "a batch of 64 images", "lower batch_size")
      'out of memory with a batch of 64 images (7.3 TiB were asked for at once): lower batch_size.'
    """
    if isinstance(error, OutOfMemoryError):
        return str(error)
    found = _AMOUNT.search(str(error))
    amount = f" ({_in_words(*found.groups())} were asked for at once)" if found else ""
    where = "" if isinstance(error, MemoryError) else " of the device"
    return f"out of memory{where} with {request}{amount}: {remedy}."


def _in_words(number: str, unit: str) -> str:
    if unit != "bytes":
        return f"{number} {unit}"
    value = float(number)
    for name in ("bytes", "KiB", "MiB", "GiB"):
        if value < _UNIT:
            return f"{value:.4g} {name}"
        value /= _UNIT
    return f"{value:.4g} TiB"


@contextlib.contextmanager
def explained(request: str, remedy: str) -> Iterator[None]:
    """Turns what exhausted memory raises in the block into `OutOfMemoryError`.

    Args:
      request, remedy: as for `describe`.

    Raises:
      OutOfMemoryError: memory is exhausted.
    """
    try:
        yield
    except (MemoryError, JaxRuntimeError) as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(describe(error, request, remedy)) from error
