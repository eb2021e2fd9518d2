"""Checkpoints of a training run: state, data position and configuration, in one Orbax step."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import json
import os
from typing import Any

from absl import logging
from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from eqjax import checkpoint_items, checksums, sharding
from eqjax.differences import differences
from eqjax.io import read_json_object, write_json
from eqjax.typing import Metrics, Scalar, Tree


class ConfigMismatchError(ValueError):
    """A checkpoint was written with another configuration of the model or the optimizer."""


class UnreadableError(RuntimeError):
    """All checkpoints of a run are damaged."""


# Config sections that determine the meaning of the saved arrays; a resumed run must have the same. Other sections (the
# learning rate, the number of steps, logging) may change.
FIXED_PARTS = ("trainer", "model", "tokenizer", "discriminator", "generator")
# Config sections that determine optimizer and auxiliary state; most of their fields may change.
BESIDE_PARTS = ("freeze_encoder", "objective", "optimizer", "discriminator_optimizer")
# Fields of the fixed sections that change how a step is computed, but not its result.
FREE_FIELDS = ("generator.remat", "generator.dtype", "tokenizer.dtype")


def has_steps(directory: str | os.PathLike[str]) -> bool:
    """Returns whether a folder of `Checkpoints` holds a step: its run resumes there, or ends with an error.

    Args:
      directory: the folder, which may be missing.

    Example:
      >>> has_steps("runs/new/checkpoints")
      False
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return any(entry.name.isdecimal() and entry.is_dir() for entry in os.scandir(directory))
    return False


class Checkpoints:
    """Saves and restores a run under `directory`; use it in a `with` statement.

    Saving is asynchronous. A step appears whole or not at all; the remains of a killed save are removed at the next
    start. Restoring takes the newest step that every process can read: a damaged one is reported and renamed to
    `damaged-STEP`, and the step before it is taken. Damage is found by checksums of all files that hold state, data
    position and configuration; they are saved with the step. A step without any, of an earlier version, is restored
    with a warning.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        keep: int = 2,
        keep_every: int | None = None,
        best: str | None = None,
    ) -> None:
        """Opens the folder of one run.

        Args:
          directory: folder of the steps; made if it does not exist.
          config: configuration of the run as JSON values; it is saved with every step.
          keep: number of newest steps to keep, at least 1.
          keep_every: steps at multiples of this are kept for good; None: none of them.
          best: metric whose best step is kept too, "name:min" or "name:max"; None or "": none.

        Raises:
          ValueError: `best` is not of this form, or `keep` is below 1.
        """
        if keep < 1:
            raise ValueError(f"keep_checkpoints={keep} would keep none; it must be at least 1.")
        # Through JSON, so that it compares equal to a configuration read from a file.
        self._config = json.loads(json.dumps(config))
        self._best, sign = _parse_best(best) if best else (None, 1)
        # A step of a run with another `best` has another metric.
        best_fn = (lambda metrics: sign * metrics.get(self._best, -sign * np.inf)) if best else None
        if self._best is not None:
            if jax.process_index() == 0:
                checkpoint_items.put_damaged_metrics_aside(directory, self._best)
            sharding.everywhere(True)
        options = ocp.CheckpointManagerOptions(
            best_fn=best_fn,
            preservation_policy=_preservation(keep, keep_every, best_fn),
            create=True,
            cleanup_tmp_directories=True,  # The folder is this run's alone.
        )
        # Handlers are named at the start, as a step's metadata are read before anything is restored.
        self._manager = ocp.CheckpointManager(
            os.path.abspath(directory), options=options, item_handlers=checkpoint_items.handlers()
        )

    def save(
        self, step: int, state: Tree, data_state: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Saves a state as step `step`; does nothing if that step is already saved.

        Args:
          step: number of steps done.
          state: tree of arrays.
          data_state: state of the data iterator, as JSON values.
          metrics: metrics of this step, for `best`; without its metric, or if it is not finite, the step cannot be
            the best.

        Raises:
          OSError: an earlier save failed, such as on a full disk; the steps before it are whole.
        """
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            state=checkpoint_items.StateSave(state),
            data=checkpoint_items.JsonSave(dict(data_state)),
            config=checkpoint_items.JsonSave(self._config),
        )
        measured = {k: v for k, v in (metrics or {}).items() if k == self._best and np.isfinite(v)}
        with self._saving():
            saved = self._manager.save(step, args=args, metrics=checkpoint_items.with_checksum(measured))
        if not saved:
            raise RuntimeError(
                f"Orbax did not save step {step} under {self._manager.directory}, which holds a later one; use another "
                "workdir."
            )

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore wrap the file system's error in several classes.
            steps = sorted(self._manager.all_steps(read=True))
            raise OSError(
                f"a checkpoint could not be written under {self._manager.directory}: {_first_line(error)}\n"
                f"Steps {steps} are whole; free space if the disk is full, and run the same command again."
            ) from error

    def preempted(self, step: int) -> bool:
        """Returns whether the platform (or SIGTERM) asked the processes to stop; all processes agree.

        For runs of several processes, which must ask at every step.
        """
        return self._manager.reached_preemption(step)

    def restore(self, template: Tree) -> tuple[Tree, dict[str, Any]] | None:
        """Returns the newest step that every process can read, as (state, data_state); None without checkpoints.

        Args:
          template: the state as a tree of arrays or jax.ShapeDtypeStruct with shardings.

        Raises:
          ConfigMismatchError: the newest checkpoint is of another model, or has other arrays because the optimizer
            or objective differ; every checkpoint is kept.
          UnreadableError: all checkpoints are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        errors = []
        for step in steps:
            restored, reason = None, "another process cannot read it"
            try:
                restored = self._read(step, template)
            except (ConfigMismatchError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise  # These do not mean that the files are damaged.
            except Exception as error:  # Orbax raises bare Exceptions for damaged chunks.
                reason = _first_line(error)
            if sharding.everywhere(restored is not None):
                self._put_aside([s for s in steps if s > step])
                return restored
            errors.append(f"step {step}: {reason}")
            logging.error("Checkpoint %s of %s cannot be read: %s", step, self._manager.directory, reason)
        if errors:
            raise UnreadableError(
                f"no checkpoint under {self._manager.directory} can be read; to start from the beginning, use another "
                "workdir, or move this one away.\n" + "\n".join(errors)
            )
        return None

    def _read(self, step: int, template: Tree) -> tuple[Tree, dict[str, Any]]:
        """Returns (state, data_state) of a step without waiting for other processes, which may not get this far."""
        alone = ocp.options.MultiprocessingOptions(
            primary_host=None, active_processes={jax.process_index()}, barrier_sync_key_prefix="alone"
        )
        folder = self._manager.directory / str(step)
        with (
            futures.ThreadPoolExecutor(1) as background,
            ocp.Checkpointer(
                ocp.CompositeCheckpointHandler(**checkpoint_items.handlers()), multiprocessing_options=alone
            ) as reader,
        ):
            # Files are compared with their checksums while they are read; whatever else damage causes, that error wins.
            checked = background.submit(checkpoint_items.check, folder)
            try:
                names = dict(data=checkpoint_items.JsonRestore(), config=checkpoint_items.JsonRestore())
                parts = reader.restore(folder, args=ocp.args.Composite(**names))
                self._check(parts.config, template, step)
                args = ocp.args.Composite(state=checkpoint_items.StateRestore(template))
                return reader.restore(folder, args=args).state, parts.data
            finally:
                checked.result()

    def _put_aside(self, steps: Sequence[int]) -> None:
        """Renames damaged steps, as Orbax silently refuses to save again onto one that exists; deletes nothing."""
        for step in steps if jax.process_index() == 0 else ():
            target, count = self._manager.directory / f"damaged-{step}", 1
            while target.exists():
                target, count = self._manager.directory / f"damaged-{step}-{count}", count + 1
            (self._manager.directory / str(step)).rename(target)
            logging.warning("Renamed the damaged checkpoint of step %d to %s; delete it if you like.", step, target)
        if steps:
            sharding.everywhere(True)
            self._manager.reload()

    def _check(self, saved: Mapping[str, Any], template: Tree, step: int) -> None:
        """Raises ConfigMismatchError unless a saved step fits the configuration and the state of this run."""
        lines = _config_differences(saved, self._config, FIXED_PARTS)
        if not lines:
            found, expected = _shapes(self._manager.item_metadata(step)["state"].tree), _shapes(template)
            if found != expected:
                lines = _config_differences(saved, self._config, BESIDE_PARTS) + _array_differences(found, expected)
        if lines:
            raise ConfigMismatchError(
                f"the checkpoint of step {step} under {self._manager.directory} was written with another "
                "configuration; use that configuration, or another workdir.\n" + "\n".join(lines)
            )

    def wait(self) -> None:
        """Waits until all saved steps are on disk.

        Raises:
          OSError: a save failed; see `save`.
        """
        with self._saving():
            self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()


class BestWeights:
    """Keeps the weights with the best value of a metric: best.safetensors, and best.json beside it.

    Attributes:
      best: {"step": …, metric: …} of the weights kept so far, or None; read from best.json, so that a resumed run
        compares with earlier weights.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as workdir:
      ...     best = BestWeights(workdir, "fid:min")
      ...     [best.update(step, {"fid": fid}, lambda path: None) for step, fid in ((1, 9.0), (2, 9.5))]
      [True, False]
    """

    def __init__(self, workdir: str | os.PathLike[str], best: str | None) -> None:
        """Reads the metric of the weights kept so far.

        Args:
          workdir: folder of the run.
          best: "name:min" or "name:max"; None or "": no weights are kept.

        Raises:
          ValueError: `best` is not of this form, or best.json is damaged.
        """
        self._workdir, self._path = workdir, os.path.join(workdir, "best.json")
        self._metric, self._sign = _parse_best(best) if best else (None, 1)
        self.best: dict[str, Any] | None = None
        if self._metric is not None and os.path.isfile(self._path):
            kept, intact = checksums.verify(read_json_object(self._path))
            if not intact:
                raise ValueError(
                    f"{self._path} is damaged, as its checksum differs: delete it, and the comparison starts again."
                )
            # Values of another metric cannot be compared: the comparison starts again from here.
            self.best = kept if self._metric in kept else None

    def update(self, step: Scalar, metrics: Metrics, export: Callable[[str], object]) -> bool:
        """Writes the weights with `export(path)` if their metric is the best so far.

        All processes must call it with the same metrics. Nothing happens if the metric was not measured, is not one
        number, or is not finite.

        Args:
          step: number of steps done.
          metrics: results of an evaluation.
          export: function that writes the weights to a path.

        Returns:
          Whether they were the best.
        """
        name = self._metric
        value = metrics.get(name) if name is not None else None
        if name is None or value is None or np.ndim(value) or not np.isfinite(value):
            return False
        if self.best is not None and not self._sign * value > self._sign * self.best[name]:
            return False
        self.best = {"step": int(step), name: float(value)}
        export(os.path.join(self._workdir, "best.safetensors"))
        if jax.process_index() == 0:
            write_json(self._path, checksums.sign(self.best))
        return True


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else repr(error)


def _parse_best(best: str) -> tuple[str, int]:
    """Returns the metric of "name:min" or "name:max", and the sign that makes a larger value better."""
    name, _, mode = best.partition(":")
    if not name or mode not in ("min", "max"):
        raise ValueError(f"keep_best={best!r} must be 'name:min' or 'name:max', as in 'eval_loss:min'.")
    return name, 1 if mode == "max" else -1


def _preservation(keep: int, keep_every: int | None, best: Callable[[Any], float] | None) -> Any:
    """Returns Orbax's policy: the newest steps, multiples of `keep_every`, and the best step."""
    policies: list[Any] = [ocp.checkpoint_managers.LatestN(keep)]
    if keep_every:
        policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
    if best is not None:
        policies.append(ocp.checkpoint_managers.BestN(get_metric_fn=best, n=1, keep_checkpoints_without_metrics=False))
    return ocp.checkpoint_managers.AnyPreservationPolicy(policies)


def _config_differences(saved: Mapping[str, Any], current: Mapping[str, Any], parts: Iterable[str]) -> list[str]:
    """Returns lines with the fields in which sections of two configurations differ, except FREE_FIELDS."""

    def fields(config: Mapping[str, Any]) -> dict[str, Any]:
        flat = traverse_util.flatten_dict({part: config.get(part) for part in parts}, sep=".")
        return {name: value for name, value in flat.items() if name not in FREE_FIELDS}

    return differences(fields(saved), fields(current), found_name="checkpoint", expected_name="this run")


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    return {sharding.path_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _array_differences(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Returns lines with the names and shapes in which the arrays of a checkpoint and a run differ."""
    common = found.keys() & expected.keys()
    kinds = {
        "only in the checkpoint": found.keys() - expected.keys(),
        "only in this run": expected.keys() - found.keys(),
        "with other shapes, checkpoint → this run": {
            f"{name} {found[name]} → {expected[name]}" for name in common if found[name] != expected[name]
        },
    }
    return [f"  arrays {kind}: {_abbreviate(sorted(names))}" for kind, names in kinds.items() if names]


def _abbreviate(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f", … and {len(names) - limit} more" if len(names) > limit else "")
