"""The loop both stages share: data → step → logs, pictures, checkpoints."""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import os
from typing import Any

from absl import logging
import jax
import ml_collections

from eqjax import hardware, sharding
from eqjax.checkpoints import BestWeights, Checkpoints, ConfigMismatchError
from eqjax.data import make_iterator, make_source
from eqjax.training import flops
from eqjax.training.guard import Preempted, StepWatch, StopSignal, WorkdirLock, not_finite, skip_bad_updates
from eqjax.training.metrics import MetricWriter, Progress


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one stage of training is, for the loop to run.

    The state is any pytree with a field `step`, the number of steps done. All functions are called on
    every process; where there are several, `sharding.gather` and `sharding.local` give what numpy or a
    program of one process can use, and files are written by process 0.

    Attributes:
      init: key → state; traced.
      step: (state, batch, key) → (state, {name: scalar, or vector for one curve per entry}); traced.
        `key` belongs to the step alone. The update counts only where all metrics are finite: have the
        loss and the gradients' norms among them. A `jax.tree_util.Partial` brings frozen arrays as
        arguments, which would otherwise become constants of the compiled program.
      evaluate: state → {name: number}, on held-out data.
      pictures: (state, batch) → {name: uint8 picture}; the batch is numpy, the same everywhere.
      export: (state, path) → None, writes the averaged weights.
      rules: how the state is split over a mesh, as `sharding.spec_for` takes them.
      diagnose: (state, batch, key) → text: which module is the first that is not finite; or None.
      tokenizer: what identifies the frozen tokenizer that the stage trains on: a run goes on with no other; or None.
      plain_step: `step` without recomputation, for counting the model's own FLOPs; None: `step`.
      warm_start: fresh state → the state to start from, where a run does not start from random parameters.
    """

    init: Callable
    step: Callable
    evaluate: Callable
    pictures: Callable
    export: Callable
    rules: tuple = ()
    diagnose: Callable | None = None
    plain_step: Callable | None = None
    tokenizer: str | None = None
    warm_start: Callable = lambda state: state


def default_config():
    """The loop's part of a configuration."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 256  # Global: all processes and devices together.
    config.total_steps = 100_000
    config.total_epochs = 0.0  # Passes over the training pictures, in place of total_steps; 0: total_steps counts.
    config.mesh = "data:-1"  # Axes data, fsdp, tensor; see eqjax.sharding.
    config.log_every = 100  # Steps; likewise below. 0 turns a thing off.
    config.eval_every = 1000
    config.picture_every = 1000
    config.checkpoint_every = 1000
    config.keep_checkpoints = 2  # The newest.
    config.keep_every = 0  # Steps: checkpoints at multiples of it stay.
    # The metric of evaluation by which the best stays, "eval_loss:min": the weights as best.safetensors, and
    # the checkpoint of that step if there is one. "": none.
    config.keep_best = ""
    config.max_skipped = 10  # Updates in a row that were not finite, and so skipped, until the run stops; 0: never.
    config.wandb_project = ""  # Logs also go to Weights & Biases, which must be installed; "": not.
    config.profile_from = 0  # First step of a profiler trace, counted from 1.
    config.profile_steps = 0  # Its length in steps; 0: no trace.
    return config


def resolve(config):
    """The configuration with everything in steps: epochs and rates per batch size worked out.

    Args:
      config: with the fields of `default_config`, `data` and `optimizer`.

    Returns:
      A copy; resolving it again changes nothing.

    Raises:
      ValueError: epochs of a negative length, or a batch of no pictures.
    """
    config = config.copy_and_resolve_references()
    optimizer = config.optimizer
    if config.batch_size < 1:
        raise ValueError(f"batch_size={config.batch_size} must be at least 1.")
    for name, value in (("total_epochs", config.total_epochs), ("warmup_epochs", optimizer.warmup_epochs)):
        if value < 0:
            raise ValueError(f"{name}={value} must be at least 0.")
    if config.total_epochs or optimizer.warmup_epochs:
        steps_per_epoch = len(make_source(config.data)) / config.batch_size
        if config.total_epochs:
            config.total_steps = max(1, round(config.total_epochs * steps_per_epoch))
        if optimizer.warmup_epochs:
            optimizer.warmup_steps = float(optimizer.warmup_epochs * steps_per_epoch)
    if optimizer.rate_batch_size:
        optimizer.learning_rate *= config.batch_size / optimizer.rate_batch_size
    config.total_epochs = optimizer.warmup_epochs = 0.0
    optimizer.rate_batch_size = 0
    return config


def check_config(config, default):
    """Compares the fields of a configuration with those that are known.

    Raises:
      ValueError: fields that are unknown, or missing.
    """

    def names(part, prefix=""):
        for key, value in part.items():
            # The modules' own fields are checked where modules are made.
            if isinstance(value, ml_collections.ConfigDict) and key not in ("tokenizer", "generator"):
                yield from names(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    have, want = set(names(config)), set(names(default))
    unknown, missing = sorted(have - want), sorted(want - have)
    if unknown or missing:
        raise ValueError(
            "the configuration does not have the fields that it should have.\n"
            f"  unknown: {unknown}\n  missing: {missing}\n  known: {sorted(want)}"
        )


def train(config, workdir, stage):
    """Runs a stage to `total_steps`, from the newest checkpoint of `workdir` if there is one.

    Writes under `workdir`: `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `images/`, `config.json`,
    and `model.safetensors` with the averaged weights at the end; `best.safetensors` and `profile/` where
    asked for.

    Args:
      config: a ConfigDict with the fields of `default_config`, and `data`; resolved.
      workdir: a folder; made if it is not there.
      stage: a `Stage`.

    Returns:
      The final state.

    Raises:
      ValueError: a mesh or batch that does not fit the devices.
      WorkdirInUseError: another live run writes to `workdir`.
      ConfigMismatchError: `workdir` holds a run of another model, or on another tokenizer.
      Preempted: the run was asked to stop, and has saved.
      FloatingPointError: too many updates in a row were not finite; steps and the first offending
        module are named, the last good state is kept.
      OSError: a checkpoint could not be written; those before it are whole.
    """
    mesh, root = sharding.make_mesh(shape=config.mesh), jax.random.key(config.seed)
    sharding.check_batch(mesh, config.batch_size, config.get("accumulation_steps", 1))
    share, shares = sharding.batch_share(mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(WorkdirLock(workdir))
        # ── State: on every device, from the seed or from a checkpoint ──────────────────────────
        checkpoints = stack.enter_context(_checkpoints(config, workdir))
        data = stack.enter_context(
            make_iterator(
                config.data,
                batch_size=config.batch_size,
                seed=config.seed,
                process_index=share,
                process_count=shares,
            )
        )
        writer = stack.enter_context(MetricWriter(workdir, config.wandb_project))
        stop = stack.enter_context(StopSignal())
        writer.config(config)
        state, watch = initial_state(stage, mesh, root), StepWatch(config.max_skipped)
        restored = checkpoints.restore(state)
        if restored is None:
            state = stage.warm_start(state)
        else:
            state, position = restored
            _check_tokenizer(workdir, position.pop("tokenizer", None), stage.tokenizer)
            watch = StepWatch(config.max_skipped, position.pop("skipped", 0), position.pop("skipped_in_a_row", 0))
            data.set_state(position)
            logging.info("Resuming %s at step %d.", workdir, state.step)
        step_fn = compile_step(stage, mesh, state, root)
        best = BestWeights(workdir, config.keep_best)
        run = _Run(config, workdir, stage, mesh, root, checkpoints, best, data, writer, watch, stop)
        state = run.steps(state, step_fn)

        # ── Result ──────────────────────────────────────────────────────────────────────────────
        path = os.path.join(workdir, "model.safetensors")
        stage.export(state, path)
        logging.info("Wrote %s", path)
    return state


def initial_state(stage, mesh, root):
    """The state before the first step, made where it is to lie."""
    # Every random array is a long program to the CPU compiler: optimising the initialiser of a small
    # model took a minute and a half, for something that runs once.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    key = jax.random.fold_in(root, 2**31 - 1)
    shardings = sharding.state_shardings(jax.eval_shape(stage.init, key), mesh, stage.rules)
    return jax.jit(stage.init, out_shardings=shardings, compiler_options=options)(key)


def compile_step(stage, mesh, state, root):
    """The step as the loop runs it: guarded, donating, on a mesh.

    Args:
      stage: a `Stage`.
      mesh: a mesh.
      state: a state on it, or its jax.ShapeDtypeStruct.
      root: the run's key.

    Returns:
      (state, batch) → (state, metrics), with `lower(state, batch)` for looking at the program.
    """
    step = stage.step if isinstance(stage.step, jax.tree_util.Partial) else jax.tree_util.Partial(stage.step)
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((step, state))):
        step = sharding.put(step, sharding.replicated(mesh))
    shardings = sharding.state_shardings(state, mesh, stage.rules)

    def run(step, state, batch):
        return skip_bad_updates(step)(state, batch, jax.random.fold_in(root, state.step))

    return _OnMesh(mesh, step, jax.jit(run, donate_argnums=1, out_shardings=(shardings, sharding.replicated(mesh))))


@dataclasses.dataclass(frozen=True)
class _OnMesh:
    mesh: jax.sharding.Mesh
    step: Any
    jitted: Callable

    def __call__(self, state, batch):
        with jax.set_mesh(self.mesh):
            return self.jitted(self.step, state, batch)

    def lower(self, state, batch):
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(self.step, state, batch)


def _check_tokenizer(workdir, saved, ours):
    if None not in (saved, ours) and saved != ours:
        raise ConfigMismatchError(
            f"the run under {workdir} was trained on the latents of another tokenizer: its encoder's weights have the "
            f"hash {saved[:16]}…, those of this run's tokenizer_weights {ours[:16]}…. Give the tokenizer that it began "
            "with, or another workdir."
        )


def _checkpoints(config, workdir):
    return Checkpoints(
        os.path.join(workdir, "checkpoints"),
        config.to_dict(),
        keep=config.keep_checkpoints,
        keep_every=config.keep_every,
        best=config.keep_best,
    )


@dataclasses.dataclass
class _Run:
    """What the steps of a run need beside the state."""

    config: ml_collections.ConfigDict
    workdir: str
    stage: Stage
    mesh: jax.sharding.Mesh
    root: jax.Array
    checkpoints: Checkpoints
    best: BestWeights
    data: Any
    writer: MetricWriter
    watch: StepWatch
    stop: StopSignal

    def steps(self, state, step_fn):
        """Runs the remaining steps and returns the last state."""
        config, first = self.config, int(state.step)
        progress, rate_of = Progress(first, config.total_steps, config.batch_size), None
        for step in range(first + 1, config.total_steps + 1):
            self._profile(step, first)
            batch = sharding.shard_batch(next(self.data), self.mesh)
            if rate_of is None:
                rate_of = _utilisation(self.stage, self.mesh, state, batch)
            state, metrics = step_fn(state, batch)
            bad = self.watch.add(step, metrics, batch)
            if bad is None and self._waits(step):
                bad = self.watch.drain()
            if bad is not None:
                self._give_up(state, *bad)
            if self._due(step, config.log_every):
                values = jax.device_get(metrics)
                values.pop("finite")
                values["skipped"] = self.watch.skipped
                rate = progress.update(step, values)
                self.writer.scalars(step, {**values, "images_per_second": rate, **rate_of(rate / config.batch_size)})
            with progress.paused():
                self._beside(step, state, batch)
            if self._asked_to_stop(step):
                self._save(step, state)
                self.checkpoints.wait()
                raise Preempted(f"asked to stop; saved step {step} under {self.workdir}.")
        progress.close()
        return state

    def _beside(self, step, state, batch):
        """Evaluation, pictures and checkpoints, where they are due."""
        config, results = self.config, None
        if self._due(step, config.eval_every):
            results = self.stage.evaluate(state)
            logging.info("step %d: %s", step, " ".join(f"{k}={v:.4g}" for k, v in results.items() if _is_number(v)))
            self.writer.scalars(step, results)
            self.best.update(step, results, functools.partial(self.stage.export, state))
        if self._due(step, config.checkpoint_every):
            self._save(step, state, {k: float(v) for k, v in (results or {}).items() if _is_number(v)})
        if self._due(step, config.picture_every):
            for name, picture in self.stage.pictures(state, sharding.gather(batch)).items():
                self.writer.picture(step, name, picture)

    def _save(self, step, state, results=None):
        counts = {"skipped": self.watch.skipped, "skipped_in_a_row": self.watch.in_a_row}
        beside = {**self.data.get_state(), **counts, "tokenizer": self.stage.tokenizer}
        self.checkpoints.save(step, state, beside, results or None)

    def _give_up(self, state, step, metrics, batch):
        self._save(int(state.step), state)
        self.checkpoints.wait()
        where = "unknown"
        if self.stage.diagnose is not None:
            try:
                with jax.set_mesh(self.mesh):
                    where = self.stage.diagnose(state, batch, jax.random.fold_in(self.root, step - 1))
            except Exception as error:  # Whatever it is, most likely too little memory: the run's end is the news.
                where = f"unknown, as the search for it failed ({error!r:.200})"
        raise FloatingPointError(
            f"step {step}: {' and '.join(not_finite(metrics))} not finite, and the updates of "
            f"{self.watch.in_a_row} steps in a row were skipped. First offending module: {where}. The last good state "
            f"is kept as checkpoint {int(state.step)}; resume with a lower learning rate, with gradient clipping, or "
            "in float32."
        )

    def _asked_to_stop(self, step):
        return self.checkpoints.preempted(step) if jax.process_count() > 1 else self.stop.received

    def _waits(self, step):
        """Whether something at this step looks at the state, so that the step must have been a good one."""
        config = self.config
        every = (config.log_every, config.eval_every, config.checkpoint_every, config.picture_every)
        return self.stop.received or any(self._due(step, number) for number in every)

    def _due(self, step, every):
        return every > 0 and (step % every == 0 or step == self.config.total_steps)

    def _profile(self, step, first):
        start, steps = max(self.config.profile_from, first + 1), self.config.profile_steps
        if steps and step == start:
            jax.profiler.start_trace(os.path.join(self.workdir, "profile"))
        elif steps and step == start + steps:
            self.watch.drain()
            jax.profiler.stop_trace()
            logging.info("Wrote a trace of %d steps under %s/profile.", steps, self.workdir)


def _is_number(value):
    return jax.numpy.ndim(value) == 0


def _utilisation(stage, mesh, state, batch):
    """A function of steps per second that gives the share of the devices' peak, {} where the peak is unknown."""
    peak = hardware.peak_flops(mesh.devices.flat[0].device_kind)
    if not peak:
        return lambda steps_per_second: {}
    needed = flops.count(stage.plain_step or stage.step, state, batch, jax.random.key(0))
    logging.info("A step takes %.4g FLOPs of the model.", needed)
    return lambda steps_per_second: {"mfu": steps_per_second * needed / (peak * mesh.size)}
