"""What keeps a run alive or stops it in order: steps that are not finite, preemption, a folder in use."""

import collections
import fcntl
import os
import signal
import threading

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np


class Preempted(Exception):
    """The run was asked to stop, and has saved its state; the same command continues it."""


class WorkdirInUseError(ValueError):
    """Another live run writes to the same folder."""


def skip_nonfinite_updates(step):
    """A step that leaves the state as it was when its metrics are not finite.

    Args:
      step: (state, …) → (state, metrics); the state is any pytree with a field `step`.

    Returns:
      The same with `metrics["finite"]`, a boolean. `state.step` counts on in any case: the batch is used up.
    """

    def guarded(state, *args):
        new, metrics = step(state, *args)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(value)) for value in jax.tree.leaves(metrics)]))

        def pick(path, new, old):
            return new if getattr(path[0], "name", None) == "step" else jnp.where(finite, new, old)

        return jax.tree_util.tree_map_with_path(pick, new, state), {**metrics, "finite": finite}

    return guarded


class StepWatch:
    """Waits for steps, counts those whose update was nonfinite_steps, and says when there are too many in a row.

    Accelerators are left one step ahead of the program, so that they never wait for it; CPU devices
    are awaited, as virtual ones deadlock when several steps are on their way.

    Attributes:
      nonfinite_steps: number of nonfinite_steps updates, in all.
      in_a_row: those since the last good one.
    """

    def __init__(self, limit, nonfinite_steps=0, in_a_row=0):
        """Args: limit, nonfinite_steps steps in a row that are too many (None: no limit); counts of a resumed run."""
        self._limit = limit
        self._lag = 0 if jax.default_backend() == "cpu" else 1
        self._pending = collections.deque()
        self.nonfinite_steps, self.in_a_row = nonfinite_steps, in_a_row

    def add(self, step, metrics, batch):
        """Takes in a step that was started.

        Returns:
          (step, metrics, batch) of the step with which the limit was reached, else None.
        """
        self._pending.append((step, metrics, batch))
        return self._settle(self._lag)

    def drain(self):
        """Waits for all steps; returns as `add`."""
        return self._settle(0)

    def _settle(self, left):
        while len(self._pending) > left:
            step, metrics, batch = self._pending.popleft()
            jax.block_until_ready(metrics)
            if bool(metrics["finite"]):
                self.in_a_row = 0
                continue
            self.nonfinite_steps += 1
            self.in_a_row += 1
            logging.warning(
                "Step %d: update nonfinite_steps, as %s not finite (%d nonfinite_steps in a row, %d in all).",
                step, " and ".join(not_finite(metrics)), self.in_a_row, self.nonfinite_steps,
            )  # fmt: skip
            if self._limit and self.in_a_row >= self._limit:
                return step, metrics, batch
        return None


def not_finite(metrics):
    """Names of metrics that hold something that is not finite, with "is" or "are" behind the last."""
    names = [name for name, value in metrics.items() if not np.all(np.isfinite(np.asarray(value)))]
    return [*names[:-1], f"{names[-1]} {'is' if len(names) == 1 else 'are'}"] if names else []


class StopSignal:
    """Remembers SIGTERM while it is open, instead of dying of it; use it in a `with` statement.

    With several processes JAX's own service listens, see `Checkpoints.preempted`.
    """

    def __init__(self):
        self.received = False
        self._before = None

    def __enter__(self):
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def _receive(self, *_):
        self.received = True

    def __exit__(self, *exception):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


class WorkdirLock:
    """Holds a run's folder for its process 0; use it in a `with` statement.

    The operating system lets go of it when the process ends, however it ends.
    """

    def __init__(self, workdir):
        """Args: workdir, the run's folder.

        Raises:
          WorkdirInUseError: a live run holds it.
        """
        self._file = None
        if jax.process_index() != 0:
            return
        os.makedirs(workdir, exist_ok=True)
        self._file = open(os.path.join(workdir, "lock"), "a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise WorkdirInUseError(
                f"{workdir} is held by another live run ({holder}); wait for it, stop it, or use another workdir."
            ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        self._file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._file is not None:
            self._file.close()
