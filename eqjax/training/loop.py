"""The loop both stages share: data → step → logs, pictures, checkpoints."""

from collections.abc import Callable
import dataclasses
import math
import os

from absl import logging
import jax
import ml_collections

from eqjax import sharding
from eqjax.checkpoints import Checkpoints
from eqjax.data import make_iterator
from eqjax.training.metrics import MetricWriter, Progress


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one stage of training is, for the loop to run.

    Attributes:
      init: key → `TrainState`; traced.
      step: (state, batch, key, constants) → (state, {name: scalar}); traced; `key` belongs to the step alone.
      evaluate: state → {name: number}, on held-out data.
      pictures: (state, batch) → {name: uint8 picture}.
      export: (state, path) → None, writes the averaged weights.
      warm_start: fresh state → the state to start from, where it does not start from random parameters.
      constants: arrays that the step reads and never changes, say of frozen networks.
    """

    init: Callable
    step: Callable
    evaluate: Callable
    pictures: Callable
    export: Callable
    warm_start: Callable = lambda state: state
    constants: dict = dataclasses.field(default_factory=dict)


def default_config():
    """The loop's part of a configuration."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 256  # Global: all processes and devices together.
    config.total_steps = 100_000
    config.log_every = 100  # Steps; likewise below. 0 turns a thing off.
    config.eval_every = 1000
    config.picture_every = 1000
    config.checkpoint_every = 1000
    config.keep_checkpoints = 2
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
    and `model.safetensors` with the averaged weights at the end.

    Args:
      config: a ConfigDict with the fields of `default_config`, and `data`.
      workdir: a folder; made if it is not there.
      stage: a `Stage`.

    Returns:
      The final `TrainState`.

    Raises:
      ConfigMismatchError: `workdir` holds a run of another model.
      FloatingPointError: the loss is not finite; the step is named, the last checkpoint is kept.
    """
    os.makedirs(workdir, exist_ok=True)
    # ── State: on every device, from the seed or from a checkpoint ──────────────────────────────
    mesh, root = sharding.make_mesh(), jax.random.key(config.seed)
    checkpoints = Checkpoints(os.path.join(workdir, "checkpoints"), config.to_dict(), keep=config.keep_checkpoints)
    data = make_iterator(config.data, batch_size=config.batch_size, seed=config.seed)
    with checkpoints, data, MetricWriter(workdir) as writer:
        writer.config(config)
        state = initial_state(stage, mesh, root)
        restored = checkpoints.restore(state)
        if restored is None:
            state = stage.warm_start(state)
        else:
            state, data_state = restored
            data.set_state(data_state)
            logging.info("Resuming %s at step %d.", workdir, state.step)
        constants = jax.device_put(stage.constants, sharding.replicated(mesh))
        step_fn = jax.jit(
            lambda state, batch, constants: stage.step(state, batch, jax.random.fold_in(root, state.step), constants),
            donate_argnums=0,
        )

        # ── Steps ───────────────────────────────────────────────────────────────────────────────
        first, batch = int(state.step), None
        progress = Progress(first, config.total_steps, config.batch_size)
        for step in range(first + 1, config.total_steps + 1):
            batch = sharding.shard_batch(next(data), mesh)
            state, metrics = step_fn(state, batch, constants)
            if _due(step, config.log_every, config):
                metrics = jax.device_get(metrics)
                _check_finite(metrics, step)
                metrics["images_per_second"] = progress.update(step, metrics)
                writer.scalars(step, metrics)
            with progress.paused():
                if _due(step, config.checkpoint_every, config):
                    _check_finite(jax.device_get(metrics), step)
                    checkpoints.save(step, state, data.get_state())
                if _due(step, config.eval_every, config):
                    results = stage.evaluate(state)
                    logging.info("step %d: %s", step, " ".join(f"{k}={v:.4g}" for k, v in results.items()))
                    writer.scalars(step, results)
                if _due(step, config.picture_every, config):
                    for name, picture in stage.pictures(state, batch).items():
                        writer.picture(step, name, picture)
        progress.close()

        # ── Result ──────────────────────────────────────────────────────────────────────────────
        if jax.process_index() == 0:
            stage.export(state, os.path.join(workdir, "model.safetensors"))
            logging.info("Wrote %s", os.path.join(workdir, "model.safetensors"))
    return state


def initial_state(stage, mesh, root):
    """The state before the first step, made where it is to lie."""
    # Every random array is a long program to the CPU compiler: optimising the initialiser of a small
    # model took a minute and a half, for something that runs once.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(stage.init, out_shardings=sharding.replicated(mesh), compiler_options=options)
    return init(jax.random.fold_in(root, 2**31 - 1))


def _due(step, every, config):
    return every > 0 and (step % every == 0 or step == config.total_steps)


def _check_finite(metrics, step):
    wrong = {name: float(value) for name, value in metrics.items() if not math.isfinite(value)}
    if wrong:
        raise FloatingPointError(
            f"step {step}: {wrong} not finite. The last checkpoint was kept; resume with a lower learning "
            "rate, with gradient clipping, or in float32."
        )
