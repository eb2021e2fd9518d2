"""The loop both stages share: data → step → logs, images, checkpoints."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import os
from typing import Any, TypeAlias

from absl import logging
import jax
import ml_collections

from eqjax import sharding
from eqjax.checkpoints import BestWeights, Checkpoints, ConfigMismatchError
from eqjax.data import eval_batches, make_iterator
from eqjax.perf import chips, flops
from eqjax.training.fault_tolerance import (
    Preempted,
    StepWatch,
    StopSignal,
    WorkdirLock,
    not_finite,
    skip_nonfinite_updates,
)
from eqjax.training.logging import MetricWriter, Progress
from eqjax.typing import PRNGKey

# (path pattern, logical axes) pairs, as `sharding.spec_for` takes them.
Rules: TypeAlias = Sequence[tuple[str, Sequence[str | None]]]
Init: TypeAlias = Callable[[PRNGKey], Any]
Step: TypeAlias = Callable[[Any, Any, PRNGKey], tuple[Any, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one stage of training is, for the loop to run.

    The state is any dataclass of arrays with a field `step`, the number of steps done. All functions are called on
    every process; where there are several, `sharding.gather` and `sharding.local` give what numpy or a
    program of one process can use, and files are written by process 0.

    Attributes:
      init: key → state; traced.
      step: (state, batch, key) → (state, {name: scalar, or vector for one curve per entry}); traced.
        `key` belongs to the step alone. The update counts only where all metrics are finite: have the
        loss and the gradients' norms among them. A `jax.tree_util.Partial` brings frozen arrays as
        arguments, which would otherwise become constants of the compiled program.
      evaluate: state → {name: number}, on held-out data.
      images: (state, batch) → {name: uint8 image}; the batch is numpy, the same everywhere.
      export: (state, path) → None, writes the averaged weights.
      rules: how the state is split over a mesh, as `sharding.spec_for` takes them.
      diagnose: (state before the step, batch, key) → text: what is the first that is not finite; or None.
      plain_step: `step` without recomputation, for counting the model's own FLOPs; None: `step`.
      tokenizer: what identifies the frozen tokenizer that the stage trains on: a run goes on with no other; or None.
      warm_start: fresh state → the state to start from, where a run does not start from random parameters.
      open_evaluation: mesh → anything; opens the held-out data, so that a run says at its start what is wrong there.
    """

    init: Callable
    step: Callable
    evaluate: Callable
    images: Callable
    export: Callable
    rules: tuple = ()
    diagnose: Callable | None = None
    plain_step: Callable | None = None
    tokenizer: str | None = None
    warm_start: Callable = lambda state: state
    open_evaluation: Callable = lambda mesh: None


def train(config, workdir, stage):
    """Runs a stage to `total_steps`, from the newest checkpoint of `workdir` if there is one.

    Writes under `workdir`: `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `images/`, `config.json`,
    and `model.safetensors` with the averaged weights at the end; `best.safetensors` and `profile/` where
    asked for.

    Args:
      config: a ConfigDict with the fields of `config.run_config`, and `data`; resolved.
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
    sharding.check_batch(mesh, config.batch_size, config.accumulation_steps)
    share = batch_share(mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(WorkdirLock(workdir))
        # ── State: on every device, from the seed or from a checkpoint ──────────────────────────
        checkpoints = stack.enter_context(_checkpoints(config, workdir))
        batches = make_iterator(config.data, batch_size=config.batch_size, seed=config.seed, **share)
        data = stack.enter_context(batches)
        if config.eval_every:
            stage.open_evaluation(mesh)
        writer = stack.enter_context(MetricWriter(workdir, config.wandb_project))
        stop = stack.enter_context(StopSignal())
        watch = StepWatch(config.max_consecutive_nonfinite)
        # Shapes alone: a state beside the one that is read would take twice the memory.
        restored = checkpoints.restore(abstract_state(stage.init, stage.rules, mesh, root))
        if restored is None:
            state = stage.warm_start(initial_state(stage.init, stage.rules, mesh, root))
        else:
            state, position = restored
            _check_tokenizer(workdir, position.pop("tokenizer", None), stage.tokenizer)
            watch = StepWatch(
                config.max_consecutive_nonfinite,
                position.pop("nonfinite_steps", 0),
                position.pop("consecutive_nonfinite", 0),
            )
            data.set_state(position)
            logging.info("Resuming %s at step %d.", workdir, state.step)
        writer.config(config)  # Only now: a run that is refused leaves the configuration of the one before it.
        step_fn = compile_step(stage.step, stage.rules, mesh, state, root)
        best = BestWeights(workdir, config.keep_best)
        trace = _Trace(config, workdir)
        stack.callback(trace.stop)
        run = _Run(config, workdir, stage, mesh, root, checkpoints, best, data, writer, watch, stop, trace)
        state = run.steps(state, step_fn)

        # ── Result ──────────────────────────────────────────────────────────────────────────────
        path = os.path.join(workdir, "model.safetensors")
        stage.export(state, path)
        logging.info("Wrote %s", path)
    return state


def batch_share(mesh):
    """The share of batches that this process reads, as arguments of the data pipeline."""
    return dict(zip(("process_index", "process_count"), sharding.batch_share(mesh), strict=True))


def held_out(config, mesh):
    """This process's share of the evaluation batches, `eval_images` records in all.

    Raises:
      ValueError, FileNotFoundError: as `eqjax.data.eval_batches`.
    """
    options = dict(batch_size=config.batch_size, num_images=config.eval_images)
    return eval_batches(config.data, **options, **batch_share(mesh))


def abstract_state(init: Init, rules: Rules, mesh: jax.sharding.Mesh, root: PRNGKey) -> Any:
    """Returns the shapes, dtypes and shardings of `initial_state` as jax.ShapeDtypeStruct, at no cost.

    Args:
      init: key → state; traced.
      rules: how the state is split over the mesh, as `sharding.spec_for` takes them.
      mesh: the mesh.
      root: the run's key.
    """
    state = jax.eval_shape(init, root)
    shardings = sharding.state_shardings(state, mesh, rules)
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), state, shardings)


def initial_state(init: Init, rules: Rules, mesh: jax.sharding.Mesh, root: PRNGKey) -> Any:
    """Computes the state before the first step, every array on the devices that hold it.

    Args:
      init: key → state; traced.
      rules: how the state is split over the mesh, as `sharding.spec_for` takes them.
      mesh: the mesh.
      root: the run's key.
    """
    # Every random array is a long program to the CPU compiler: optimizing the initializer of a small
    # model took a minute and a half, for something that runs once.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(init, rules, mesh, root))
    key = jax.random.fold_in(root, 2**31 - 1)
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(key)


def compile_step(step: Step, rules: Rules, mesh: jax.sharding.Mesh, state: Any, root: PRNGKey) -> "CompiledStep":
    """Returns the training step as the loop runs it: on a mesh, guarded, with a donated state.

    Args:
      step: (state, batch, key) → (state, metrics); traced. The arrays of a `jax.tree_util.Partial` are arguments of
        the compiled program; arrays in a closure would become its constants. The key is the root key folded with
        `state.step`. An update whose metrics are not all finite is skipped, see `skip_nonfinite_updates`.
      rules: how the state is split over the mesh, as `sharding.spec_for` takes them.
      mesh: the mesh.
      state: a state on the mesh, or its jax.ShapeDtypeStruct.
      root: the run's key.
    """
    step = step if isinstance(step, jax.tree_util.Partial) else jax.tree_util.Partial(step)
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((step, state))):
        step = sharding.put(step, sharding.replicated(mesh))
    shardings = sharding.state_shardings(state, mesh, rules)

    def run(step, state, batch):
        return skip_nonfinite_updates(step)(state, batch, jax.random.fold_in(root, state.step))

    jitted = jax.jit(run, donate_argnums=1, out_shardings=(shardings, sharding.replicated(mesh)))
    return CompiledStep(mesh, step, jitted)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A training step bound to a mesh: (state, batch) → (state, metrics).

    Attributes:
      mesh: the mesh.
      step: the step; its arrays are the first argument of `jitted`.
      jitted: (step, state, batch) → (state, metrics), under jax.jit.
    """

    mesh: jax.sharding.Mesh
    step: jax.tree_util.Partial
    jitted: Any

    def __call__(self, state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        """Runs the step; the given state is donated."""
        with jax.set_mesh(self.mesh):
            return self.jitted(self.step, state, batch)

    def lower(self, state: Any, batch: Any) -> Any:
        """Lowers the step for arrays, or shapes, of a state and a batch."""
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


class _Trace:
    """The profiler over `profile_steps` steps from `profile_from` on, as far as this run does them."""

    def __init__(self, config, workdir):
        first = config.profile_from
        self._range = range(0) if first is None else range(first, first + config.profile_steps)
        self._folder, self._running = os.path.join(workdir, "profile"), False

    def before(self, step, watch):
        """Starts or stops it, where a step is the first inside or after the range."""
        if self._running and step not in self._range:
            watch.drain()
            self.stop()
        elif not self._running and step in self._range:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def stop(self):
        """Writes what there is; at the end of the run, however it ends."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            logging.info("Wrote a trace under %s.", self._folder)


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
    trace: _Trace

    def steps(self, state, step_fn):
        """Runs the remaining steps and returns the last state."""
        config, first = self.config, int(state.step)
        progress, rate_of = Progress(first, config.total_steps, config.batch_size), None
        for step in range(first + 1, config.total_steps + 1):
            self.trace.before(step, self.watch)
            batch = sharding.shard_batch(next(self.data), self.mesh)
            if rate_of is None:
                with progress.paused():  # For compiling.
                    rate_of = _utilization(self.stage, self.mesh, state, batch)
                    state, metrics = step_fn(state, batch)
            else:
                state, metrics = step_fn(state, batch)
            bad = self.watch.add(step, metrics, batch)
            if bad is None and self._waits(step):
                bad = self.watch.drain()
            if bad is not None:
                self._give_up(state, *bad)
            if self._due(step, config.log_every):
                values = jax.device_get(metrics)
                values.pop("finite")
                values["nonfinite_steps"] = self.watch.nonfinite_steps
                if self.data.num_corrupt is not None:
                    values["corrupt_images"] = self.data.num_corrupt
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
        """Evaluation, images and checkpoints, where they are due."""
        config, results, save = self.config, {}, self._due(step, self.config.checkpoint_every)
        if save and not config.keep_best:  # Otherwise the step is saved with what it measured.
            self._save(step, state)
        if self._due(step, config.eval_every):
            try:
                results = self._evaluate(step, state)
            except Exception:
                # The state is good. With several processes the others may not be here, and saving takes all.
                if jax.process_count() == 1:
                    self._save(step, state)
                    self.checkpoints.wait()
                raise
        if save:
            self._save(step, state, results)
        if self._due(step, config.image_every):
            for name, image in self.stage.images(state, sharding.gather(batch)).items():
                self.writer.image(step, name, image)

    def _evaluate(self, step, state):
        """Measures, logs, and keeps the best weights; returns what was measured in one number each."""
        results = self.stage.evaluate(state)
        numbers = {name: float(value) for name, value in results.items() if _is_number(value)}
        logging.info("step %d: %s", step, " ".join(f"{name}={value:.4g}" for name, value in numbers.items()))
        self.writer.scalars(step, results)
        self.best.update(step, results, functools.partial(self.stage.export, state))
        if self.config.keep_best and self.config.keep_best.partition(":")[0] not in numbers:
            logging.warning("keep_best=%r: step %d measured %s.", self.config.keep_best, step, sorted(numbers))
        return numbers

    def _save(self, step, state, results=None):
        counts = {"nonfinite_steps": self.watch.nonfinite_steps, "consecutive_nonfinite": self.watch.in_a_row}
        beside = {**self.data.get_state(), **counts, "tokenizer": self.stage.tokenizer}
        self.checkpoints.save(step, state, beside, results or None)

    def _give_up(self, state, step, metrics, batch):
        self._save(int(state.step), state)
        self.checkpoints.wait()
        where = "unknown"
        if self.stage.diagnose is not None:
            # Skipped updates changed nothing but the number of steps done.
            before = dataclasses.replace(state, step=state.step - (int(state.step) - (step - 1)))
            try:
                with jax.set_mesh(self.mesh):
                    where = self.stage.diagnose(before, batch, jax.random.fold_in(self.root, step - 1))
            except Exception as error:  # Whatever it is, most likely too little memory: the run's end is the news.
                where = f"unknown, as the search for it failed ({error!r:.200})"
        count = self.watch.in_a_row
        raise FloatingPointError(
            f"step {step}: {' and '.join(not_finite(metrics))} not finite, and the updates of {count} steps in a row, "
            f"from step {step - count + 1} on, were nonfinite_steps. First offending module: {where}. The last good state is "
            f"kept as checkpoint {int(state.step)}; resume with a lower learning rate, with gradient clipping, or in "
            "float32."
        )

    def _asked_to_stop(self, step):
        return self.checkpoints.preempted(step) if jax.process_count() > 1 else self.stop.received

    def _waits(self, step):
        """Whether something at this step looks at the state, so that the step must have been a good one."""
        config = self.config
        every = (config.log_every, config.eval_every, config.checkpoint_every, config.image_every)
        return self.stop.received or any(self._due(step, number) for number in every)

    def _due(self, step, every):
        return every is not None and (step % every == 0 or step == self.config.total_steps)


def _is_number(value):
    return jax.numpy.ndim(value) == 0


def _utilization(stage, mesh, state, batch):
    """A function of steps per second that gives the share of the devices' peak, {} where the peak is unknown."""
    peak = chips.peak_flops(mesh.devices.flat[0].device_kind)
    if not peak:
        return lambda steps_per_second: {}
    needed = flops.count(stage.plain_step or stage.step, state, batch, jax.random.key(0))
    logging.info("A step takes %.4g FLOPs of the model.", needed)
    return lambda steps_per_second: {"mfu": steps_per_second * needed / (peak * mesh.size)}
