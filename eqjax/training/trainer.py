"""The interface between the training loop and the trainers."""

import abc
from collections.abc import Callable, Mapping, Sequence
import types
from typing import Any, TypeAlias

import jax
import numpy as np

from eqjax.typing import Metrics, PRNGKey

# A dataclass of arrays with a field `step`, the number of steps done.
State: TypeAlias = Any
# Arrays by name: of this process as numpy, or of all processes on the mesh.
Batch: TypeAlias = Mapping[str, Any]
# (path pattern, logical axes) pairs, as `sharding.spec_for` takes them.
Rules: TypeAlias = Sequence[tuple[str, Sequence[str | None]]]
Init: TypeAlias = Callable[[PRNGKey], State]
Step: TypeAlias = Callable[[State, Batch, PRNGKey], tuple[State, Metrics]]


class Trainer(abc.ABC):
    """A model in training, as the loop sees it.

    Every process calls every method. With several processes, `sharding.gather` and `sharding.local` return what numpy
    or a program of one process can use, and process 0 writes the files.

    Attributes:
      frozen: tree of arrays that `step` reads and never changes; they are arguments of the compiled step, because
        arrays in a closure would become its constants.
      rules: how the state is split over a mesh, as `sharding.spec_for` takes them.
      tokenizer_fingerprint: identifies the frozen tokenizer; a run resumes with no other. None without one.
      inherited: JSON values from the files that a fresh run starts from. Checkpoints keep them, so that a resumed run,
        whose trainer is given them back, opens none of these files: they may be gone by then.
    """

    frozen: Any = None
    rules: Rules = ()
    tokenizer_fingerprint: str | None = None
    inherited: Mapping[str, Any] = types.MappingProxyType({})

    @abc.abstractmethod
    def init_state(self, key: PRNGKey) -> State:
        """Returns the state before the first step, with random parameters; traced."""

    def make_frozen(self, workdir: str, is_resumed: bool, check_stop: Callable[[], None]) -> None:
        """Adds to `frozen` what takes long to make; by default nothing.

        Called once, before the first step, when nothing can reject the run any more.

        Args:
          workdir: folder of the run, which the run holds.
          is_resumed: whether the run continues a checkpoint.
          check_stop: raises an error if the run was asked to stop; to be called every few seconds.
        """
        del workdir, is_resumed, check_stop

    def load_initial_weights(self, state: State, check_stop: Callable[[], None]) -> State:
        """Returns the state with which a fresh run starts; by default that of `init_state`.

        A resumed run does not call it.

        Args:
          state: `init_state`'s.
          check_stop: as of `make_frozen`.
        """
        del check_stop
        return state

    @abc.abstractmethod
    def step(self, frozen: Any, state: State, batch: Batch, key: PRNGKey) -> tuple[State, Metrics]:
        """Returns the state after one step, and its metrics; traced.

        The update counts only if all metrics are finite: have the loss and the norms of the gradients among them.

        Args:
          frozen: the attribute `frozen`.
          state: state before the step.
          batch: the batch.
          key: the step's random key.
        """

    def prepare_batch(self, batch: Batch, step: int) -> Batch:
        """Adds what the host decides about a step, the same on every process; by default nothing.

        Args:
          batch: this process's batch, as numpy.
          step: number of the step, counted from 1.
        """
        del step
        return batch

    def notice(self, step: int, metrics: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        """Logs what the metrics of a step call for.

        Args:
          step: number of the step.
          metrics: its metrics, on the host.
          before: the last metrics by name that this was called with; empty at the start of a run.
        """
        del step, metrics, before

    def plain_step(self, frozen: Any, state: State, batch: Batch, key: PRNGKey) -> tuple[State, Metrics]:
        """Returns the results of `step`, computed without rematerialization; its FLOPs count as the model's."""
        return self.step(frozen, state, batch, key)

    def evaluation_batches(self, mesh: jax.sharding.Mesh) -> Any:
        """Opens the held-out data, so that a run reports errors in it at its start."""
        del mesh

    @abc.abstractmethod
    def evaluate(self, state: State) -> dict[str, Any]:
        """Returns metrics on held-out data by name, scalars or vectors."""

    @abc.abstractmethod
    def images(self, state: State, batch: Batch) -> dict[str, np.ndarray]:
        """Returns uint8 images for the logs by name, given a numpy batch that is the same on every process."""

    @abc.abstractmethod
    def export(self, state: State, path: str) -> None:
        """Writes the EMA weights to a file."""

    def is_exported(self, step: int, path: str) -> bool:
        """Returns whether `export` wrote a file after a number of steps, and the file is whole; by default False."""
        del step, path
        return False

    def find_nonfinite(self, state: State, batch: Batch, key: PRNGKey) -> str:
        """Names the first module or term that is not finite, given the state before the step, its batch and its key."""
        del state, batch, key
        return "unknown"
