"""The training loop of both trainers: mesh, data, state, steps, logs, evaluation, checkpoints, export."""

import contextlib
import dataclasses
import functools
import os
from typing import Any, NoReturn

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from eqjax import sharding
from eqjax.addresses import local_path
from eqjax.checkpoints import BestWeights, Checkpoints, ConfigMismatchError
from eqjax.data import make_iterator
from eqjax.io import remove_leftovers
from eqjax.precision import computing_in
from eqjax.progress import announced
from eqjax.training.compiled_step import abstract_state, compile_step, initial_state
from eqjax.training.fault_tolerance import (
    PeerLostError,
    Preempted,
    StepWatch,
    StopSignal,
    WorkdirLock,
    explained_failures,
    not_finite,
)
from eqjax.training.logging import MetricWriter, Progress
from eqjax.training.prefetch import DevicePrefetch
from eqjax.training.profiler import Profiler
from eqjax.training.trainer import Batch, State, Trainer
from eqjax.training.utilization import Utilization
from eqjax.typing import Config, Metrics

_PATIENCE = 2.0  # Seconds after which work that is usually quick is announced.


def train(config: Config, workdir: str, trainer: Trainer) -> State:
    """Trains for `total_steps` steps; resumes from the newest checkpoint of `workdir` if there is one.

    A finished run is left as it is.

    Writes to `workdir`: `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `images/`, `config.json`, and at the end
    `model.safetensors` with the EMA weights; `best.safetensors`, `sampled_latents.npz` and `profile/` if the
    configuration asks for them.

    Args:
      config: a resolved configuration with the fields of `fields.RUN`, and `data`.
      workdir: folder of the run; created if it does not exist.
      trainer: the trainer.

    Returns:
      The final state.

    Raises:
      ValueError: the mesh or the batch does not fit the devices.
      WorkdirInUseError: another live run writes to `workdir`.
      ConfigMismatchError: `workdir` has a run of another model, or on another tokenizer.
      Preempted: the run was asked to stop, and has saved.
      FloatingPointError: too many updates in a row were not finite; the steps and the first offending module are
        named, the last good state is saved.
      OSError: a checkpoint could not be written; those before it are whole.
      OutOfMemoryError: a batch does not fit into memory.
      PeerLostError: another process of the run is lost.
    """
    with computing_in(config.precision), Run(config, workdir, trainer) as run, explained_failures(config):
        # ── State: from the newest checkpoint, or fresh ─────────────────────────────────────────
        state = run.restore_state()
        if state is not None and run.is_finished(state):
            return state
        run.make_frozen(is_resumed=state is not None)
        if state is None:
            state = run.initial_state()

        # ── Steps ───────────────────────────────────────────────────────────────────────────────
        for step in run.remaining_steps(state):
            batch = run.next_batch(step)
            state, metrics = run.update(state, batch)
            run.read_ahead(step)
            run.check_finite(step, state, metrics, batch)
            run.log_metrics(step, metrics)
            run.evaluate_and_save(step, state)
            run.log_images(step, state, batch)
            run.stop_if_asked(step, state)

        # ── Weights ─────────────────────────────────────────────────────────────────────────────
        run.export(state)
    return state


class Run:
    """A training run outside its compiled step; use it in a `with` statement.

    Every method that is called at each step checks itself whether it is due.
    """

    def __init__(self, config: Config, workdir: str, trainer: Trainer) -> None:
        """Opens devices, files and data, in the order in which they may reject the run.

        Args:
          config: a resolved configuration with the fields of `fields.RUN`, and `data`.
          workdir: folder of the run; created if it does not exist.
          trainer: the trainer.
        """
        workdir = local_path(workdir, "the workdir")
        # ── Mesh ────────────────────────────────────────────────────────────────────────────────
        self._mesh, self._root = sharding.make_mesh(shape=config.mesh), jax.random.key(config.seed)
        sharding.check_batch(self._mesh, config.batch_size, config.accumulation_steps)
        process_index, process_count = sharding.batch_shard(self._mesh)
        self._config, self._workdir, self._trainer = config, workdir, trainer
        self._utilization, self._has_updated = Utilization(trainer, self._mesh), False
        self._noticed: dict[str, Any] = {}
        self._compiled_works = frozenset[str]()
        with contextlib.ExitStack() as stack:
            # ── Checkpoints ─────────────────────────────────────────────────────────────────────
            stack.enter_context(WorkdirLock(workdir))
            if jax.process_index() == 0:
                # Only what a run writes itself, which its lock protects: an evaluation may be writing its results here.
                names = r"(config|best)\.json|(model|best)\.safetensors|sampled_latents\.npz|wandb_run\.txt"
                remove_leftovers(workdir, names, min_age=0)
                remove_leftovers(os.path.join(workdir, "images"), r".*\.png", min_age=0)
            self._checkpoints = stack.enter_context(
                Checkpoints(
                    os.path.join(workdir, "checkpoints"),
                    config.to_dict(),
                    keep=config.keep_checkpoints,
                    keep_every=config.keep_every,
                    best=config.keep_best,
                )
            )
            self._best = BestWeights(workdir, config.keep_best)
            # ── Data ────────────────────────────────────────────────────────────────────────────
            self._data = stack.enter_context(
                make_iterator(
                    config.data,
                    batch_size=config.batch_size,
                    seed=config.seed,
                    process_index=process_index,
                    process_count=process_count,
                )
            )
            self._batches = DevicePrefetch(
                self._data, lambda batch, step: sharding.shard_batch(trainer.prepare_batch(batch, step), self._mesh)
            )
            if config.eval_every is not None:
                trainer.evaluation_batches(self._mesh)
            # ── Signals, profile ────────────────────────────────────────────────────────────────
            self._stop_signal = stack.enter_context(StopSignal())
            self._watch = StepWatch(config.max_consecutive_nonfinite)
            self._profiler = stack.enter_context(
                Profiler(os.path.join(workdir, "profile"), config.profile_from, config.profile_steps)
            )
            self._stack = stack.pop_all()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: Any) -> None:
        if isinstance(exception[1], PeerLostError):
            return  # Nothing that waits for the other processes would return.
        with announced("Closing the checkpoints", patience=_PATIENCE):
            self._stack.__exit__(*exception)

    # ── State ───────────────────────────────────────────────────────────────────────────────────

    def restore_state(self) -> State | None:
        """Returns the state of the newest checkpoint, and continues counts and data from there; None without one.

        Raises:
          ConfigMismatchError: the checkpoint is of another model, or was trained on another tokenizer.
        """
        # Shapes alone: a state beside the restored one would take twice the memory.
        template = abstract_state(self._trainer.init_state, self._trainer.rules, self._mesh, self._root)
        with announced("Restoring a checkpoint", patience=_PATIENCE):
            restored = self._checkpoints.restore(template)
        if restored is None:
            return None
        state, position = restored
        saved, ours = position.pop("tokenizer", None), self._trainer.tokenizer_fingerprint
        if saved is not None and ours is not None and saved != ours:
            raise ConfigMismatchError(
                f"the run under {self._workdir} was trained on the latents of another tokenizer: its encoder's weights "
                f"have the hash {saved[:16]}…, those of this run's tokenizer_weights {ours[:16]}…. Give the tokenizer "
                "that it started with, or another workdir."
            )
        counts = position.pop("nonfinite_steps", 0), position.pop("consecutive_nonfinite", 0)
        self._watch = StepWatch(self._config.max_consecutive_nonfinite, *counts)
        self._trainer.inherited = position.pop("inherited", {})
        self._batches.set_state(position)
        logging.info("Resuming %s at step %d.", self._workdir, state.step)
        return state

    def make_frozen(self, is_resumed: bool) -> None:
        """Has the trainer make the frozen arrays that take long."""
        self._trainer.make_frozen(self._workdir, is_resumed, self._check_stop)

    def _check_stop(self) -> None:
        """Stops between parts of the work before the first step; several processes stop after that step.

        Raises:
          Preempted: the run was asked to stop.
        """
        if self._stop_signal.received and jax.process_count() == 1:
            raise Preempted(f"asked to stop before a step was done under {self._workdir}.")

    def initial_state(self) -> State:
        """Returns the state of a fresh run."""
        trainer = self._trainer
        with announced("Compiling and computing the initial state", patience=_PATIENCE):
            state = initial_state(trainer.init_state, trainer.rules, self._mesh, self._root)
            return jax.block_until_ready(trainer.load_initial_weights(state, self._check_stop))

    def is_finished(self, state: State) -> bool:
        """Returns whether a restored state has all steps behind it and is exported, and logs so."""
        step, path = int(state.step), os.path.join(self._workdir, "model.safetensors")
        if step < self._config.total_steps:
            return False
        is_exported = self._trainer.is_exported(step, path)
        if jax.process_count() > 1:  # One answer for all, as only some may see the file.
            is_exported = bool(multihost_utils.broadcast_one_to_all(is_exported))
        if is_exported:
            logging.info(
                "Nothing is left to do: %d of %d steps are done, and %s holds the weights. Raise total_steps to "
                "train on, or give another workdir.",
                step,
                self._config.total_steps,
                path,
            )
        return is_exported

    # ── Steps ───────────────────────────────────────────────────────────────────────────────────

    def remaining_steps(self, state: State) -> range:
        """Opens the logs, prepares the compiled step, and returns the numbers of the steps to do."""
        # Not earlier: a rejected run does not overwrite the previous config, and a finished one gets no empty log.
        self._writer = self._stack.enter_context(MetricWriter(self._workdir, self._config.wandb_project))
        self._writer.config(self._config)
        step = jax.tree_util.Partial(self._trainer.step, self._trainer.frozen)
        profiled = self._config.profile_from is not None
        self._compiled_step = compile_step(
            step, self._trainer.rules, self._mesh, state, self._root, self._config.precision, profiled=profiled
        )
        self._progress = Progress(int(state.step), self._config.total_steps, self._config.batch_size)
        self._stack.callback(self._progress.close)
        return range(int(state.step) + 1, self._config.total_steps + 1)

    def next_batch(self, step: int) -> Batch:
        """Returns the next batch, on the devices."""
        self._profiler.before(step, self._watch)
        return self._batches.take(step)

    def read_ahead(self, step: int) -> None:
        """Puts the next step's batch on the devices, which compute this step meanwhile."""
        if step < self._config.total_steps:
            self._batches.read_ahead(step + 1)

    def update(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Runs the compiled step; the first call of each of its programs compiles it, which is no training time."""
        is_first, self._has_updated = not self._has_updated, True
        with contextlib.ExitStack() as stack:
            if not self._utilization.has_seen(batch):
                stack.enter_context(self._progress.paused())
                stack.enter_context(announced("Compiling the training step"))
            self._utilization.add(state, batch)
            after = self._compiled_step(state, batch)
        if not is_first:
            return after
        every, total = self._config.log_every, self._config.total_steps
        lines = f"metrics every {every} steps" if every else "without metrics, as log_every is None"
        if jax.process_index() == 0:
            logging.info("Training up to step %d, %s …", total, lines)
        return after

    def check_finite(self, step: int, state: State, metrics: Metrics, batch: Batch) -> None:
        """Counts non-finite updates, before anything reads the state.

        Raises:
          FloatingPointError: too many updates in a row were not finite; the last good state is saved.
        """
        bad_step = self._watch.add(step, metrics, batch)
        if bad_step is None and self._reads_state(step):
            bad_step = self._watch.drain()
        if bad_step is not None:
            self._stop_nonfinite(state, *bad_step)

    def _reads_state(self, step: int) -> bool:
        config = self._config
        every = (config.log_every, config.eval_every, config.checkpoint_every, config.image_every)
        return self._stop_signal.received or any(self._is_due(step, number) for number in every)

    def _is_due(self, step: int, every: int | None) -> bool:
        """Returns whether `step` is a multiple of `every`, or the last; never if `every` is None."""
        return every is not None and (step % every == 0 or step == self._config.total_steps)

    def _stop_nonfinite(self, state: State, step: int, metrics: Metrics, batch: Batch) -> NoReturn:
        """Saves the last good state and raises the error that names the offending module."""
        self._save(int(state.step), state)
        self._checkpoints.wait()
        # Skipped updates changed nothing but the number of steps done.
        before = dataclasses.replace(state, step=state.step - (int(state.step) - (step - 1)))
        try:
            with jax.set_mesh(self._mesh):
                where = self._trainer.find_nonfinite(before, batch, jax.random.fold_in(self._root, step - 1))
        except Exception as error:  # Most likely out of memory; the run's error below matters more.
            where = f"unknown, as the search for it failed ({error!r:.200})"
        count = self._watch.consecutive_nonfinite
        raise FloatingPointError(
            f"step {step}: {' and '.join(not_finite(metrics))} not finite, and the updates of {count} steps in a row, "
            f"from step {step - count + 1} on, were skipped. First offending module: {where}. The last good state is "
            f"kept as checkpoint {int(state.step)}; resume with a lower learning rate, with gradient clipping, or in "
            "float32."
        )

    # ── Logs, evaluation, checkpoints ───────────────────────────────────────────────────────────

    def log_metrics(self, step: int, metrics: Metrics) -> None:
        """Writes the metrics of a step, and the speed since the last call."""
        if not self._is_due(step, self._config.log_every):
            self._progress.tick(step)
            return
        values: dict[str, Any] = jax.device_get(metrics)
        values.pop("finite")
        values["nonfinite_steps"] = self._watch.nonfinite_steps
        if self._data.num_corrupt is not None:
            values["corrupt_images"] = self._data.num_corrupt
        images_per_second = self._progress.update(step, values)
        values["images_per_second"] = images_per_second
        if (used := self._utilization.take(images_per_second / self._config.batch_size)) is not None:
            values["mfu"] = used
        self._writer.scalars(step, values)
        self._trainer.notice(step, values, self._noticed)
        self._noticed |= values

    def evaluate_and_save(self, step: int, state: State) -> None:
        """Evaluates and saves; a checkpoint that may be the best includes the metrics of its step."""
        results, save_due = {}, self._is_due(step, self._config.checkpoint_every)
        with self._progress.paused():
            if save_due and not self._config.keep_best:
                self._save(step, state)
            if self._is_due(step, self._config.eval_every):
                try:
                    results = self._evaluate(step, state)
                except Exception:
                    # The state is good. With several processes the others may not be here, and saving takes all.
                    if jax.process_count() == 1:
                        self._save(step, state)
                        self._checkpoints.wait()
                    raise
            if save_due:
                self._save(step, state, results)

    def _evaluate(self, step: int, state: State) -> dict[str, float]:
        """Measures, logs, and keeps the best weights; returns the scalar results."""
        keep_best = self._config.keep_best
        with announced(f"Step {step}: {self._compiling_once('evaluating')}", patience=_PATIENCE):
            results = self._trainer.evaluate(state)
        scalars = {name: float(value) for name, value in results.items() if np.ndim(value) == 0}
        text = " ".join(f"{name}={value:.4g}" for name, value in scalars.items())
        # The lines of steps are of training images and of the weights in training, so their numbers differ.
        logging.info("step %d, EMA weights on held-out images: %s", step, text)
        self._writer.scalars(step, results)
        self._best.update(step, results, functools.partial(self._trainer.export, state))
        if keep_best and keep_best.partition(":")[0] not in scalars:
            logging.warning("keep_best=%r: step %d measured %s.", keep_best, step, sorted(scalars))
        return scalars

    def _compiling_once(self, work: str) -> str:
        """Returns the name of a work, which is said to be compiled the first time."""
        known, self._compiled_works = work in self._compiled_works, self._compiled_works | {work}
        return work if known else f"compiling, and {work}"

    def _save(self, step: int, state: State, results: dict[str, float] | None = None) -> None:
        """Saves state, data position, counts, inherited values and results of a step, unless they are saved already."""
        counts = {
            "nonfinite_steps": self._watch.nonfinite_steps,
            "consecutive_nonfinite": self._watch.consecutive_nonfinite,
            "tokenizer": self._trainer.tokenizer_fingerprint,
            "inherited": dict(self._trainer.inherited),
        }
        with announced(f"Step {step}: saving a checkpoint", patience=_PATIENCE):
            self._checkpoints.save(step, state, {**self._batches.get_state(), **counts}, results or None)

    def log_images(self, step: int, state: State, batch: Batch) -> None:
        """Writes the trainer's images."""
        if self._is_due(step, self._config.image_every):
            what = f"Step {step}: {self._compiling_once('making images')}"
            with self._progress.paused(), announced(what, patience=_PATIENCE):
                for name, image in self._trainer.images(state, sharding.gather(batch)).items():
                    self._writer.image(step, name, image)

    def stop_if_asked(self, step: int, state: State) -> None:
        """Saves and stops after a signal, on all processes at the same step.

        Raises:
          Preempted: the run was asked to stop.
        """
        several = jax.process_count() > 1
        if self._checkpoints.preempted(step) if several else self._stop_signal.received:
            self._save(step, state)
            self._checkpoints.wait()
            raise Preempted(f"asked to stop; saved step {step} under {self._workdir}.")

    def export(self, state: State) -> None:
        """Writes the EMA weights."""
        path = os.path.join(self._workdir, "model.safetensors")
        with announced("Exporting the EMA weights", patience=_PATIENCE):
            self._trainer.export(state, path)
        logging.info("Wrote %s", path)
