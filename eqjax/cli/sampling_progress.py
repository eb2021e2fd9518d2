"""Progress of commands that sample: a bar on a terminal, lines elsewhere."""

from collections.abc import Callable, Iterator
import contextlib
import sys
from typing import Any

import tqdm

from eqjax.progress import ProgressLogger, announced


@contextlib.contextmanager
def sampling_progress(num_columns: int, what: str = "columns") -> Iterator[Callable[[int], Any]]:
    """Yields a function that takes numbers of new columns; what follows the last column is announced as decoding.

    Args:
      num_columns: columns of the whole work.
      what: plural name of the columns.
    """
    done = 0
    with contextlib.ExitStack() as stack:
        if sys.stderr.isatty():
            bar = stack.enter_context(tqdm.tqdm(total=num_columns, unit="column", desc=f"{what} (compiling)"))
            show = bar.update
        else:
            bar, show = None, ProgressLogger(what, num_columns).update

        def report(count: int) -> None:
            nonlocal done
            if count and not done and bar is not None:
                bar.set_description(what)
            done += count
            show(count)
            if count and done >= num_columns:
                stack.enter_context(announced(f"Decoding the {what}", patience=2.0))

        yield report
