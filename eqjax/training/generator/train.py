"""The generator's trainer: from a configuration to a run that evaluates, samples and exports."""

from collections.abc import Callable
import dataclasses
import functools
import os
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import checkpoints, loading, pixels, pretrained, sharding
from eqjax.data import EvalBatches, eval_batches, make_source
from eqjax.generator import LOGICAL_AXES, column_weights
from eqjax.latent_cache import check
from eqjax.latent_cache.encode import LatentEncoder, encoder_params, latent_scale
from eqjax.model import Model
from eqjax.progress import announced
from eqjax.published import LATENT_SCALE
from eqjax.training import loop
from eqjax.training.config import check_config, check_length, resolve
from eqjax.training.generator import nan_report
from eqjax.training.generator.initial_weights import load_initial_weights
from eqjax.training.generator.sample_metrics import make_evaluator
from eqjax.training.generator.step import Batch, GeneratorStep
from eqjax.training.state import TrainState
from eqjax.typing import Config, Params, PRNGKey

# Classes of which images are sampled for the logs, at most.
_NUM_LOGGED_CLASSES = 16


def train_and_evaluate(config: Config, workdir: str) -> TrainState:
    """Trains a generator; `loop.train` lists the files that it writes.

    The exported weights include the tokenizer: `eqjax.load_pretrained(workdir)` returns a complete model.

    Args:
      config: a `default_config` with changes.
      workdir: folder of the run; a run that was interrupted there is resumed.

    Returns:
      The final state.

    Raises:
      ValueError: a field is unknown or out of range, the run is too short for its EMA, or the tokenizer does not fit.
    """
    check_config(config, "generator")
    config = resolve(config)
    check_length(config)
    with announced("Reading weights and opening the data", patience=2.0):
        trainer = GeneratorTrainer(config, workdir)
    return loop.train(config, workdir, trainer)


class GeneratorTrainer(loop.Trainer):
    """Trains a generator on the latents of a frozen tokenizer.

    Building it checks the configuration against tokenizer and data, before anything is written or compiled.
    """

    rules = LOGICAL_AXES

    def __init__(self, config: Config, workdir: str) -> None:
        """Loads the tokenizer, and checks it, the data and the metrics against the configuration.

        The weights that a fresh run starts from are read and checked too; a run with a checkpoint needs them no longer.

        Args:
          config: a resolved `generator_config`.
          workdir: folder of the run; it also holds samples while metrics are computed.

        Raises:
          ValueError: the tokenizer, the data or the metrics do not fit the configuration.
          FileNotFoundError: a file that the configuration names is missing.
        """
        self._config, self._workdir, self._weights = config, workdir, load_tokenizer(config)
        self._model = model = load_model(config, self._weights)
        if not checkpoints.has_steps(os.path.join(workdir, "checkpoints")):
            _ = self._initial
        params = model.tokenizer_params
        self.frozen = {} if config.data.source == "latents" else encoder_params(params)
        self.tokenizer_fingerprint = check.encoder_fingerprint(params)
        encode = LatentEncoder(model.require("tokenizer"), model.latent_scale)
        self._train_step = GeneratorStep.from_config(config, model.require("generator"), encode)
        self._per_image_losses = jax.jit(self._train_step.per_image_losses)
        self._evaluator = make_evaluator(config, model) if config.metrics.every else None

    @functools.cached_property
    def _initial(self) -> tuple[Params, str] | None:
        """The parameters that a fresh run starts from, and the notes of their file; None if they are random."""
        config, model = self._config, self._model
        if not config.initial_weights:
            return None
        generator, class_names = model.require("generator"), model.class_names or ()
        return load_initial_weights(
            config.initial_weights, generator, class_names, self._weights, config.tokenizer_weights
        )

    # ── Training ────────────────────────────────────────────────────────────────────────────────

    def init_state(self, key: PRNGKey) -> TrainState:
        """Returns the state before the first step, with random parameters."""
        return self._train_step.init_state(key)

    def load_initial_weights(self, state: TrainState, check_stop: Callable[[], None]) -> TrainState:
        """Returns the state with the weights of the generator that is fine-tuned, if the configuration names one."""
        del check_stop
        if self._initial is None:
            return state
        initial, notes = self._initial
        self.inherited = {"origin": f"It started from:\n{notes}\n"}
        params = sharding.put(initial, jax.tree.map(lambda leaf: leaf.sharding, state.params))
        return dataclasses.replace(state, params=params, ema_params=jax.tree.map(jnp.copy, params))

    def step(
        self, frozen: Any, state: TrainState, batch: Batch, key: PRNGKey
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Updates the generator; see `GeneratorStep`."""
        return self._train_step(frozen, state, batch, key)

    def plain_step(
        self, frozen: Any, state: TrainState, batch: Batch, key: PRNGKey
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Updates the generator without rematerialization."""
        return self._train_step.without_remat()(frozen, state, batch, key)

    def find_nonfinite(self, state: TrainState, batch: Batch, key: PRNGKey) -> str:
        """Names the first module whose output or gradient is not finite when the step is repeated."""
        params, batch = sharding.gather(state.params), sharding.gather(batch)
        return nan_report.first_nonfinite_module(self._train_step, params, self.frozen, batch, key)

    # ── Evaluation ──────────────────────────────────────────────────────────────────────────────

    def evaluation_batches(self, mesh: jax.sharding.Mesh) -> EvalBatches:
        """Opens this process's batches of held-out images."""
        config, (process_index, process_count) = self._config, sharding.batch_shard(mesh)
        return eval_batches(
            config.data,
            batch_size=config.batch_size,
            num_images=config.eval_images,
            process_index=process_index,
            process_count=process_count,
        )

    def evaluate(self, state: TrainState) -> dict[str, Any]:
        """Returns the loss on held-out images, of all columns and of each, and FID if it is due."""
        # The noise is the same every time, so that losses of different steps can be compared.
        key, mesh, losses = jax.random.key(0), sharding.mesh_of(state), []
        encoder_params = sharding.put(self.frozen, sharding.replicated(mesh))
        for i, batch in enumerate(self.evaluation_batches(mesh)):
            batch = sharding.shard_batch(batch, mesh)
            values = self._per_image_losses(state.ema_params, encoder_params, batch, jax.random.fold_in(key, i))
            losses.append(sharding.gather(values)[sharding.gather(batch["mask"])])
        column_losses, step = np.mean(np.concatenate(losses), axis=0), int(state.step)
        results = {"eval_loss": float(np.mean(column_losses)), "eval_column_loss": column_losses}
        due = bool(self._config.metrics.every) and step % self._config.metrics.every == 0
        if self._evaluator is not None and (due or step == self._config.total_steps):
            results |= self._evaluator.evaluate_step(step, self._trained_model(state), workdir=self._workdir)
        return results

    def images(self, state: TrainState, batch: Batch) -> dict[str, np.ndarray]:
        """Samples one image per class, with the EMA weights."""
        del batch
        model = self._trained_model(state)
        labels = list(range(min(_NUM_LOGGED_CLASSES, model.require("generator").num_classes)))
        return {"samples": pixels.grid(model.sample(labels, **self._config.sampling), columns=2)}

    # ── Result ──────────────────────────────────────────────────────────────────────────────────

    def export(self, state: TrainState, path: str) -> None:
        """Writes the tokenizer and the generator's EMA weights to one file; on process 0."""
        params, model = sharding.gather(state.ema_params), self._model
        if jax.process_index():
            return
        config = self._config.to_json_best_effort()
        sources = self.inherited.get("origin", "") + self._weights.notes
        weights = pretrained.Weights(
            {"tokenizer": model.tokenizer, "generator": model.generator},
            {"tokenizer": model.tokenizer_params, "generator": params},
            latent_scale=model.latent_scale,
            class_names=model.class_names,
            notes=f"{_notes(int(state.step))} config: {config}\n{sources}",
        )
        pretrained.save(path, weights)

    def is_exported(self, step: int, path: str) -> bool:
        """Returns whether `export` wrote a file after a number of steps, and the file is whole."""
        try:
            return pretrained.load(path).notes.startswith(_notes(step))
        except (FileNotFoundError, pretrained.WeightsError):
            return False

    def _trained_model(self, state: TrainState) -> Model:
        return dataclasses.replace(self._model, generator_params=sharding.local(state.ema_params))


def _notes(step: int) -> str:
    """Returns the beginning of the notes in an exported file."""
    return f"generator after {step} steps;"


def load_model(config: Config, weights: pretrained.Weights) -> Model:
    """Builds the model that is trained, opens the data and checks that they fit the generator.

    Args:
      config: a `generator_config`.
      weights: the frozen tokenizer, of `load_tokenizer`.

    Returns:
      The model, with the shapes of the generator's parameters in their place.

    Raises:
      ValueError: the data do not fit the generator; loss_columns has columns that do not exist.
      FileNotFoundError: a file is missing.
      CacheError: another tokenizer made the latent cache.
    """
    generator: Any = pretrained.build_module("generator", dict(config.generator))
    tokenizer, params = weights.modules["tokenizer"], weights.params["tokenizer"]
    source: Any = make_source(config.data)
    class_names = tuple(source.class_names)
    if len(class_names) != generator.num_classes:
        first = ", ".join([*class_names[:5], *["…"][: len(class_names) > 5]])
        raise ValueError(
            f"generator.num_classes={generator.num_classes}, but the data has {len(class_names)} classes ({first}): "
            f"add --config.generator.num_classes={len(class_names)}."
        )
    if config.data.source == "latents":
        # Without evaluation, its cache need not exist.
        evaluation: Any = make_source(config.data, train=config.eval_every is None)
        check.check_caches(source, evaluation, weights, config.data, config.tokenizer_weights)
    if config.loss_columns is not None:
        try:
            column_weights(config.data.width // tokenizer.column_width, config.loss_columns)
        except ValueError as error:
            raise ValueError(f"loss_columns={config.loss_columns} does not fit the images: {error}") from error
    abstract, scale = pretrained.abstract_params(generator), latent_scale(weights)
    return Model(tokenizer, params, generator, abstract, scale, class_names, config.precision)


def load_tokenizer(config: Config) -> pretrained.Weights:
    """Loads the frozen tokenizer of a configuration and checks it against generator and data.

    Raises:
      ValueError: the configuration names no tokenizer, the file has none, it has another latent size or image
        height, or the images are not made of whole columns.
      FileNotFoundError: there is no such file.
    """
    if not config.tokenizer_weights:
        raise ValueError("set tokenizer_weights: a shipped model's name, a weights file, or a tokenizer run's workdir.")
    path = config.tokenizer_weights
    weights = loading.load_weights(path)
    if "tokenizer" not in weights.modules:
        raise ValueError(f"{path} holds no tokenizer; give tokenizer_weights a file written by tokenizer training.")
    tokenizer = weights.modules["tokenizer"]
    for name, found, expected in (
        ("generator.latent_dim", config.generator.latent_dim, tokenizer.embed_dim),
        ("data.height", config.data.height, tokenizer.resolution),
    ):
        if found != expected:
            raise ValueError(f"{name}={found} does not fit the tokenizer of {path}, which needs {expected}.")
    if config.data.width % tokenizer.column_width:
        raise ValueError(
            f"data.width={config.data.width} is not a multiple of {tokenizer.column_width}, the width of a column of "
            f"the tokenizer of {path}."
        )
    if weights.latent_scale is None:
        logging.warning("%s has no latent scale; using the published %s.", path, LATENT_SCALE)
    # A generator in the same file would take memory throughout the run.
    params = {"tokenizer": weights.params["tokenizer"]}
    return dataclasses.replace(weights, modules={"tokenizer": tokenizer}, params=params)
