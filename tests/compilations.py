"""Counts the programs that JAX compiles."""

from collections.abc import Iterator
import contextlib
import logging

import jax


class _Names(logging.Handler):
    """Keeps the names of compiled programs."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._names = names

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the name if the record tells of a compilation."""
        message = record.getMessage()
        if message.startswith("Compiling "):
            self._names.append(message.split(" ")[1])


@contextlib.contextmanager
def count_compilations() -> Iterator[list[str]]:
    """Yields a list that gets the name of every program that is compiled, or read from the cache on disk, inside."""
    names: list[str] = []
    handler, logger = _Names(names), logging.getLogger("jax")
    logger.addHandler(handler)
    jax.config.update("jax_log_compiles", True)  # In all threads, unlike `jax.log_compiles`.
    try:
        yield names
    finally:
        jax.config.update("jax_log_compiles", False)
        logger.removeHandler(handler)
