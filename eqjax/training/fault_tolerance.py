"""Keeps a run alive, or stops it in order: non-finite steps, preemption, a workdir that is in use."""

import collections
from collections.abc import Callable, Iterator
import contextlib
import fcntl
import multiprocessing
from multiprocessing import resource_tracker
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NamedTuple, TextIO

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import memory
from eqjax.io import make_folder
from eqjax.typing import Config, Metrics, Tree


class Preempted(Exception):  # noqa: N818 - not an error: the state is saved
    """The run was asked to stop and has saved its state; the same command resumes it."""


class WorkdirInUseError(ValueError):
    """Another live run writes to the same workdir."""


class PeerLostError(RuntimeError):
    """Another process of the run has ended or cannot be reached."""


# What JAX's errors say when a collective operation or the coordination service fails.
_SIGNS_OF_LOSS = (
    "Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "oordination service", "Connection reset", "Connection closed",
    "Socket closed",
)  # fmt: skip
PEER_LOST = (
    "Another process of this run has ended, or cannot be reached: see what it printed. Start all of them again with "
    "the same command; the run resumes from its newest checkpoint."
)


@contextlib.contextmanager
def explained_failures(config: Config) -> Iterator[None]:
    """Turns what JAX raises for lost processes and for exhausted memory into one sentence.

    Args:
      config: the configuration of the run.

    Raises:
      OutOfMemoryError: memory of a device or of the host is exhausted.
      PeerLostError: another process of the run is lost.
    """
    size = f"{config.data.height} × {config.data.width} pixels" if "data" in config else "its size"
    request = f"batch_size={config.batch_size} of {size}, accumulation_steps={config.accumulation_steps}"
    remedy = (
        "raise accumulation_steps, which divides a batch into smaller ones with the same result, lower batch_size, or "
        "take more devices"
    )
    try:
        with memory.explained(request, remedy):
            yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1 and any(sign in str(error) for sign in _SIGNS_OF_LOSS):
            raise PeerLostError(PEER_LOST) from error
        raise


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


# What ends a process besides: a terminal that closes, a limit of CPU time, and what queues such as Slurm (--signal) and
# Grid Engine (-notify) send some time before they kill.
_ALSO_STOP = (signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2)


class StopSignal:
    """Remembers signals that ask to stop instead of ending the process; use it in a `with` statement.

    These are SIGTERM, Ctrl-C, SIGHUP (a terminal was closed), SIGXCPU, SIGUSR1 and SIGUSR2 (queues of clusters).

    A second Ctrl-C ends the process at once, even while JAX compiles. With several processes JAX's own service listens
    to SIGTERM instead, see `Checkpoints.preempted`; Ctrl-C is passed to it.

    Attributes:
      received: whether a signal has arrived.
    """

    def __init__(self) -> None:
        self.received = False
        self._interrupts = 0
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            # The main thread handles signals only between two lines of Python, so another one watches them arrive.
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            thread = threading.Thread(target=self._watch, args=(reading,), name="signals", daemon=True)
            thread.start()
            self._undo.callback(thread.join)
            self._undo.callback(os.close, writing)
            self._undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writing, warn_on_full_buffer=False))
            # With several processes SIGTERM is JAX's.
            for number in (signal.SIGTERM, signal.SIGINT, *_ALSO_STOP)[jax.process_count() > 1 :]:
                before = signal.getsignal(number)
                if number in _ALSO_STOP and before is not signal.SIG_DFL:
                    continue  # nohup ignores SIGHUP, and another library may use a signal.
                self._undo.callback(signal.signal, number, signal.signal(number, self._receive))
            # A terminal sends Ctrl-C to the worker processes of the data too, which must live until the state is saved:
            # they inherit what is blocked here. Python unblocks it when it starts the tracker of shared memory.
            resource_tracker.ensure_running()
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            self._undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        return self

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self.received = True

    def _watch(self, reading: int) -> None:
        """Reads the numbers of the signals as they arrive, until the pipe is closed."""
        with open(reading, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                if number[0] in _ALSO_STOP and jax.process_count() > 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                if number[0] != signal.SIGINT:
                    continue
                self._interrupts += 1
                if self._interrupts > 1:
                    os.write(_terminal(), b"Interrupted again: ended without saving.\n")
                    for child in multiprocessing.active_children():
                        child.kill()
                    os._exit(128 + signal.SIGINT)  # As shells report it.
                logging.info("Asked to stop: saving after this step. Press Ctrl-C again to end without saving.")
                self.received = True
                if jax.process_count() > 1:
                    os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *exception: object) -> None:
        self._undo.close()


def _terminal() -> int:
    """Returns the file descriptor of sys.stderr, which need not be 2."""
    try:
        return sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        return 2


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
        make_folder(workdir, "workdir")
        file = open(os.path.join(workdir, "lock"), "a+", encoding="utf-8")  # noqa: SIM115 - stays open
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise WorkdirInUseError(
                f"{workdir} is held by another live run ({holder}); wait for it, stop it, or use another workdir."
            ) from error
        except OSError as error:
            message = "%s is not protected against a second run, as its file system has no locks (%s)."
            logging.warning(message, workdir, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        self._file = file

    def __enter__(self) -> "WorkdirLock":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
