"""Keeps a run alive, or stops it in order: non-finite steps, preemption, a workdir that is in use."""

import collections
from collections.abc import Callable
import fcntl
import os
import signal
import threading
from types import FrameType
from typing import Any, NamedTuple, TextIO

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from eqjax.typing import Metrics, Tree


class Preempted(Exception):  # noqa: N818 - not an error: the state is saved
    """The run was asked to stop and has saved its state; the same command resumes it."""


class WorkdirInUseError(ValueError):
    """Another live run writes to the same workdir."""


def skip_nonfinite_updates(step: Callable[..., tuple[Tree, Metrics]]) -> Callable[..., tuple[Tree, Metrics]]:
    """Makes a step leave the state unchanged when one of its metrics is not finite.

    Args:
      step: (state, ...) → (state, metrics), traceable; the state is any pytree with a field `step`.

    Returns:
      The same function with a boolean `metrics["finite"]`. `state.step` counts non-finite steps too, as their batch is
      used up.
    """

    def guarded(state: Tree, *args: Any) -> tuple[Tree, Metrics]:
        new, metrics = step(state, *args)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(value)) for value in jax.tree.leaves(metrics)]))

        def choose(path: tuple[Any, ...], new: jax.Array, old: jax.Array) -> jax.Array:
            return new if getattr(path[0], "name", None) == "step" else jnp.where(finite, new, old)

        return jax.tree_util.tree_map_with_path(choose, new, state), {**metrics, "finite": finite}

    return guarded


class Step(NamedTuple):
    """A step that was started.

    Attributes:
      step: its number, from 1.
      metrics: its metrics, with "finite" from `skip_nonfinite_updates`.
      batch: its batch, on the devices.
    """

    step: int
    metrics: Metrics
    batch: Tree


class StepWatch:
    """Waits for steps, counts the non-finite ones, and reports when there are too many in a row.

    Accelerators are kept one step ahead of the program, so that they never wait for it. CPU devices are awaited, as
    virtual ones deadlock when several steps are in flight.

    Attributes:
      nonfinite_steps: number of non-finite steps of the run.
      consecutive_nonfinite: number of non-finite steps since the last finite one.
    """

    def __init__(self, limit: int | None, nonfinite_steps: int = 0, consecutive_nonfinite: int = 0) -> None:
        """Takes over the counts of a resumed run.

        Args:
          limit: number of consecutive non-finite steps that is too many; None: no limit.
          nonfinite_steps: initial count.
          consecutive_nonfinite: initial count.
        """
        self._limit = limit
        self._lag = 0 if jax.default_backend() == "cpu" else 1
        self._pending: collections.deque[Step] = collections.deque()
        self.nonfinite_steps, self.consecutive_nonfinite = nonfinite_steps, consecutive_nonfinite

    def add(self, step: int, metrics: Metrics, batch: Tree) -> Step | None:
        """Adds a step that was started; returns the step that reached the limit, or None."""
        self._pending.append(Step(step, metrics, batch))
        return self._settle(self._lag)

    def drain(self) -> Step | None:
        """Waits for all steps; returns the step that reached the limit, or None."""
        return self._settle(0)

    def _settle(self, num_pending: int) -> Step | None:
        while len(self._pending) > num_pending:
            step = self._pending.popleft()
            jax.block_until_ready(step.metrics)
            if bool(step.metrics["finite"]):
                self.consecutive_nonfinite = 0
                continue
            self.nonfinite_steps += 1
            self.consecutive_nonfinite += 1
            logging.warning(
                "Step %d: skipped the update, as %s not finite (%d in a row, %d in all).",
                step.step, " and ".join(not_finite(step.metrics)), self.consecutive_nonfinite, self.nonfinite_steps,
            )  # fmt: skip
            if self._limit is not None and self.consecutive_nonfinite >= self._limit:
                return step
        return None


def not_finite(metrics: Metrics) -> list[str]:
    """Returns the names of metrics that are not finite, with "is" or "are" behind the last.

    Example:
      >>> not_finite({"loss": np.nan, "grad_norm": np.inf, "learning_rate": 0.1})
      ['loss', 'grad_norm are']
    """
    names = [name for name, value in metrics.items() if not np.all(np.isfinite(np.asarray(value)))]
    return [*names[:-1], f"{names[-1]} {'is' if len(names) == 1 else 'are'}"] if names else []


class StopSignal:
    """Remembers SIGTERM instead of ending the process; use it in a `with` statement.

    With several processes JAX's own service listens instead; see `Checkpoints.preempted`.

    Attributes:
      received: whether SIGTERM has arrived.
    """

    def __init__(self) -> None:
        self.received = False
        self._handler_before: Any = None

    def __enter__(self) -> "StopSignal":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self.received = True

    def __exit__(self, *exception: object) -> None:
        if self._handler_before is not None:
            signal.signal(signal.SIGTERM, self._handler_before)


class WorkdirLock:
    """Holds the workdir of a run for its process 0; use it in a `with` statement.

    The operating system releases it when the process ends, whatever the reason.
    """

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        """Takes the lock.

        Args:
          workdir: folder of the run; made if it does not exist.

        Raises:
          WorkdirInUseError: another live run holds it.
        """
        self._file: TextIO | None = None
        if jax.process_index() != 0:
            return
        os.makedirs(workdir, exist_ok=True)
        file = open(os.path.join(workdir, "lock"), "a+", encoding="utf-8")  # noqa: SIM115 - stays open
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise WorkdirInUseError(
                f"{workdir} is held by another live run ({holder}); wait for it, stop it, or use another workdir."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        self._file = file

    def __enter__(self) -> "WorkdirLock":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
