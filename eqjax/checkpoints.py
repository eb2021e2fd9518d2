"""Checkpoints of a training run: state, data position and configuration, in one Orbax step."""

import contextlib
import json
import os

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from eqjax import sharding
from eqjax.io import atomic_write


class ConfigMismatchError(ValueError):
    """A checkpoint was written under another configuration of the model, or of what is saved beside it."""


class UnreadableError(RuntimeError):
    """There are checkpoints, and each of them is damaged."""


# Parts of a configuration that decide what the saved arrays mean. Others (the learning rate, the
# number of steps, how often to log) may change between runs that continue each other.
FIXED_PARTS = ("trainer", "model", "tokenizer", "discriminator", "generator")
# Parts that decide which arrays are saved beside the parameters. Most of their fields may change.
BESIDE_PARTS = ("freeze_encoder", "objective", "optimizer", "discriminator_optimizer")
# Fields inside the fixed parts that change how a step is computed, and not what it computes.
FREE_FIELDS = ("generator.remat", "generator.dtype", "tokenizer.dtype")


class Checkpoints:
    """Saves and restores a run under `directory`; use it in a `with` statement.

    Saving is asynchronous; a step appears whole or not at all, and what a killed save left is removed at the
    next start. Restoring takes the newest step that every process can read: a damaged one is reported and put
    aside, as `damaged-STEP`, and the one before it is taken.
    """

    def __init__(self, directory, config, *, keep=2, keep_every=None, best=None):
        """Made for one run.

        Args:
          directory: folder of the steps.
          config: a plain dict that travels inside.
          keep: the number of newest steps kept, at least 1.
          keep_every: steps that are multiples of it are kept for good; None: none.
          best: the metric whose best step is kept too: "name:min" or "name:max"; None: none.

        Raises:
          ValueError: another form of `best`; nothing to be kept.
        """
        if keep < 1:
            raise ValueError(f"keep_checkpoints={keep} would keep none; it must be at least 1.")
        # Through JSON once, so that it compares equal to what comes back from a file.
        self._config = json.loads(json.dumps(config))
        self._best = best_fn = None
        if best:
            self._best, sign = _parse_best(best)

            def best_fn(metrics):
                return sign * metrics[self._best]

        options = ocp.CheckpointManagerOptions(
            best_fn=best_fn,
            preservation_policy=_preservation(keep, keep_every, best_fn),
            create=True,
            cleanup_tmp_directories=True,  # The folder is this run's alone.
        )
        # Named beforehand, as a step's metadata are read before anything is restored.
        self._manager = ocp.CheckpointManager(os.path.abspath(directory), options=options, item_handlers=_handlers())

    def save(self, step, state, data_state, metrics=None):
        """Saves a state as step `step`; nothing happens where that step is already there.

        Args:
          step: its number.
          state: a pytree of arrays.
          data_state: the data iterator's state, JSON values.
          metrics: {name: number} of this step, for `best`; without its metric, or where that is not finite, the
            step has no claim to be the best.

        Raises:
          OSError: an earlier save did not succeed, say for a full disk; the steps before it stay.
        """
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data_state),
            config=ocp.args.JsonSave(self._config),
        )
        metrics = {k: v for k, v in (metrics or {}).items() if k == self._best and np.isfinite(v)}
        with self._saving():
            saved = self._manager.save(step, args=args, metrics=metrics or None)
        if not saved:
            raise RuntimeError(f"Orbax did not save step {step} under {self._manager.directory}: a later one exists.")

    @contextlib.contextmanager
    def _saving(self):
        try:
            yield
        except Exception as error:  # Orbax and TensorStore wrap what the file system said in several classes.
            steps = sorted(self._manager.all_steps(read=True))
            raise OSError(
                f"a checkpoint could not be written under {self._manager.directory}: {_first_line(error)}\n"
                f"Steps {steps} are whole; free space if the disk is full, and start the same command again."
            ) from error

    def preempted(self, step):
        """Whether the platform (or SIGTERM) asked the processes to stop; true at the same step on all of them.

        For runs of several processes, which must ask at every step.
        """
        return self._manager.reached_preemption(step)

    def restore(self, template):
        """The newest readable step.

        Args:
          template: the state as a pytree of arrays or jax.ShapeDtypeStruct with shardings.

        Returns:
          (state, data_state), or None where there is no checkpoint.

        Raises:
          ConfigMismatchError: the newest checkpoint belongs to another model, or holds other arrays, as another
            optimizer or objective makes them; both sides are named, and every checkpoint stays.
          UnreadableError: there are checkpoints, and none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        errors = []
        for step in steps:
            found, reason = None, "another process cannot read it"
            try:
                found = self._read(step, template)
            except (ConfigMismatchError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise  # These say nothing about the files.
            except Exception as error:  # Orbax raises bare Exceptions for damaged chunks.
                reason = _first_line(error)
            if _everywhere(found is not None):
                self._put_aside([s for s in steps if s > step])
                return found
            errors.append(f"step {step}: {reason}")
            logging.error("Checkpoint %s of %s cannot be read: %s", step, self._manager.directory, reason)
        if errors:
            raise UnreadableError(
                f"no checkpoint under {self._manager.directory} can be read; use another workdir, or move this one "
                "away, to start anew.\n" + "\n".join(errors)
            )
        return None

    def _read(self, step, template):
        """(state, data_state) of a step, without waiting for other processes: they may not come as far."""
        alone = ocp.options.MultiprocessingOptions(
            primary_host=None, active_processes={jax.process_index()}, barrier_sync_key_prefix="alone"
        )
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers()), multiprocessing_options=alone) as reader:
            folder = self._manager.directory / str(step)
            names = dict(data=ocp.args.JsonRestore(), config=ocp.args.JsonRestore())
            parts = reader.restore(folder, args=ocp.args.Composite(**names))
            self._check(parts.config, template, step)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(template))
            return reader.restore(folder, args=args).state, parts.data

    def _put_aside(self, steps):
        """Renames steps: Orbax silently refuses to save again onto one that exists, and nothing is deleted unasked."""
        for step in steps if jax.process_index() == 0 else ():
            target, count = self._manager.directory / f"damaged-{step}", 1
            while target.exists():
                target, count = self._manager.directory / f"damaged-{step}-{count}", count + 1
            (self._manager.directory / str(step)).rename(target)
            logging.warning("Put the damaged checkpoint of step %d aside as %s; delete it if you like.", step, target)
        if steps:
            _everywhere(True)
            self._manager.reload()

    def _check(self, saved, template, step):
        differences = []
        for part in FIXED_PARTS:
            _compare(part, saved.get(part), self._config.get(part), differences)
        if not differences:
            have, want = _shapes(self._manager.item_metadata(step)["state"].tree), _shapes(template)
            if have != want:
                for part in BESIDE_PARTS:
                    _compare(part, saved.get(part), self._config.get(part), differences)
                differences += _array_differences(have, want)
        if differences:
            raise ConfigMismatchError(
                f"the checkpoint of step {step} under {self._manager.directory} was written under another "
                "configuration; use its configuration or another workdir.\n" + "\n".join(differences)
            )

    def wait(self):
        """Blocks until what was saved lies on disk.

        Raises:
          OSError: as `save`.
        """
        with self._saving():
            self._manager.wait_until_finished()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        try:
            self.wait()
        finally:
            self._manager.close()


class BestWeights:
    """Keeps the weights with the best value of a metric: best.safetensors, and best.json beside it.

    Attributes:
      best: {"step", metric} of the weights kept so far, or None; read from best.json, so that a run that
        was cut off goes on comparing.
    """

    def __init__(self, workdir, best):
        """Args: workdir; best, "name:min" or "name:max", or None, which keeps nothing."""
        self._workdir, self._path = workdir, os.path.join(workdir, "best.json")
        self._metric, self._sign = _parse_best(best) if best else (None, 1)
        self.best = None
        if best and os.path.isfile(self._path):
            with open(self._path, encoding="utf-8") as file:
                kept = json.load(file)
            # A run that went on under another metric starts comparing anew.
            self.best = kept if self._metric in kept else None

    def update(self, step, metrics, export):
        """Takes in what was measured at a step; where it is the best so far, `export(path)` writes the weights.

        All processes must call it, with the same metrics. Where the metric was not measured, or is not a
        number, nothing happens.

        Returns:
          Whether they were the best.
        """
        value = metrics.get(self._metric, float("nan"))
        before = -float("inf") if self.best is None else self._sign * self.best[self._metric]
        if not self._sign * value > before:
            return False
        self.best = {"step": int(step), self._metric: float(value)}
        export(os.path.join(self._workdir, "best.safetensors"))
        if jax.process_index() == 0:
            with atomic_write(self._path) as temporary, open(temporary, "w", encoding="utf-8") as file:
                json.dump(self.best, file)
        return True


def _handlers():
    """How the items of a step are written and read."""
    json_handlers = {name: ocp.JsonCheckpointHandler() for name in ("data", "config")}
    return dict(json_handlers, state=ocp.StandardCheckpointHandler())


def _everywhere(truth):
    """Whether something holds on all processes, which must ask together."""
    return bool(np.all(sharding.gather(np.array(truth))))


def _first_line(error):
    return str(error).splitlines()[0][:200] if str(error) else repr(error)


def _parse_best(best):
    """("fid", -1) of "fid:min": the metric, and the sign that makes more of it better."""
    name, _, mode = best.partition(":")
    if not name or mode not in ("min", "max"):
        raise ValueError(f"keep_best={best!r} must be 'name:min' or 'name:max', as in 'eval_loss:min'.")
    return name, 1 if mode == "max" else -1


def _preservation(keep, keep_every, best):
    policies = [ocp.checkpoint_managers.LatestN(keep)]
    if keep_every:
        policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
    if best is not None:
        policies.append(ocp.checkpoint_managers.BestN(get_metric_fn=best, n=1, keep_checkpoints_without_metrics=False))
    return ocp.checkpoint_managers.AnyPreservationPolicy(policies)


def _compare(name, saved, current, differences):
    if isinstance(saved, dict) and isinstance(current, dict):
        for key in sorted(saved.keys() | current.keys()):
            _compare(f"{name}.{key}", saved.get(key), current.get(key), differences)
    elif saved != current and name not in FREE_FIELDS:
        differences.append(f"  {name}: checkpoint {saved!r}, this run {current!r}")


def _shapes(tree):
    return {sharding.path_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _array_differences(have, want):
    """Lines that say how the arrays of a checkpoint and of a run differ, from {name: shape} of both."""
    shapes = [f"{name} {have[name]} → {want[name]}" for name in have.keys() & want.keys() if have[name] != want[name]]
    kinds = {
        "only in the checkpoint": have.keys() - want.keys(),
        "only in this run": want.keys() - have.keys(),
        "shapes, checkpoint → this run": shapes,
    }
    return [f"  arrays {kind}: {_few(sorted(names))}" for kind, names in kinds.items() if names]


def _few(names, most=4):
    return ", ".join(names[:most]) + (f", … and {len(names) - most} more" if len(names) > most else "")
