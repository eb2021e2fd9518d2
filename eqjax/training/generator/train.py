"""The generator's trainer: from a configuration to a run that evaluates, samples and exports."""

from collections.abc import Sequence
import os
import shutil
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from eqjax import pixels, pretrained, sharding
from eqjax.data import EvalBatches, eval_batches, make_source
from eqjax.evaluation import Extractor, Settings, features, generation, networks, report, statistics
from eqjax.generator import LOGICAL_AXES, column_weights
from eqjax.latent_cache import check
from eqjax.model import Model
from eqjax.published import LATENT_SCALE
from eqjax.training import loop, nan_report
from eqjax.training.config import check_config, generator_config, resolve
from eqjax.training.generator.step import Batch, GeneratorStep
from eqjax.training.state import TrainState
from eqjax.typing import PRNGKey

# Classes of which images are sampled for the logs, at most.
_NUM_LOGGED_CLASSES = 16


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> TrainState:
    """Trains a generator; `loop.train` lists the files that it writes.

    The exported weights include the tokenizer: `eqjax.load_pretrained(workdir)` returns a complete model.

    Args:
      config: a `default_config` with changes.
      workdir: folder of the run; a run that was interrupted there is resumed.

    Returns:
      The final state.

    Raises:
      ValueError: a field is unknown or out of range, or the tokenizer does not fit.
    """
    check_config(config, generator_config())
    config = resolve(config)
    return loop.train(config, workdir, GeneratorTrainer(config, workdir))


class GeneratorTrainer(loop.Trainer):
    """Trains a generator on the latents of a frozen tokenizer.

    Building it checks the configuration against tokenizer and data, before anything is written or compiled.
    """

    rules = LOGICAL_AXES

    def __init__(self, config: ml_collections.ConfigDict, workdir: str):
        """Loads the tokenizer and checks what the run needs.

        Args:
          config: a resolved `generator_config`.
          workdir: folder of the run; samples are there while they are measured.

        Raises:
          ValueError: the tokenizer, the data or the metrics do not fit the configuration.
          FileNotFoundError: a file that the configuration names is missing.
        """
        generator = pretrained.build_module("generator", dict(config.generator))
        weights = load_tokenizer(config)
        class_names = _check_data(config, weights)
        tokenizer, params = weights.modules["tokenizer"], weights.params["tokenizer"]
        scale = check.latent_scale(weights)
        self.frozen = {} if config.data.source == "latents" else check.encoding_params(params)
        self.tokenizer_fingerprint = check.tokenizer_hash(params)
        self._train_step = GeneratorStep.from_config(config, generator, check.make_encode(tokenizer, scale))
        self._plain_step = self._train_step.without_remat()
        self._per_image_losses = jax.jit(self._train_step.per_image_losses)
        # The generator's parameters are not made yet: their shapes stand for them.
        abstract = pretrained.abstract_params(generator)
        self._model = Model(tokenizer, params, generator, abstract, scale, class_names)
        self._config, self._tokenizer_notes = config, weights.notes
        self._metrics = SampleMetrics(config, self._model, workdir) if config.metrics.every else None

    # ── Training ────────────────────────────────────────────────────────────────────────────────

    def init_state(self, key: PRNGKey) -> TrainState:
        """Returns the state before the first step, with random parameters."""
        return self._train_step.init_state(key)

    def step(
        self, frozen: Any, state: TrainState, batch: Batch, key: PRNGKey
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Updates the generator; see `GeneratorStep`."""
        return self._train_step(frozen, state, batch, key)

    def plain_step(
        self, frozen: Any, state: TrainState, batch: Batch, key: PRNGKey
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Updates the generator without rematerialization."""
        return self._plain_step(frozen, state, batch, key)

    def find_nonfinite(self, state: TrainState, batch: Batch, key: PRNGKey) -> str:
        """Names the first module whose output or gradient is not finite when the step is repeated."""
        params, batch = sharding.gather(state.params), sharding.gather(batch)
        return nan_report.first_nonfinite_module(self._train_step, params, self.frozen, batch, key)

    # ── Evaluation ──────────────────────────────────────────────────────────────────────────────

    def evaluation_batches(self, mesh: jax.sharding.Mesh) -> EvalBatches:
        """Opens this process's batches of held-out images."""
        config, (process_index, process_count) = self._config, sharding.batch_share(mesh)
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
        every = self._config.metrics.every
        if self._metrics is not None and (step % every == 0 or step == self._config.total_steps):
            results |= self._metrics.measure(step, self._trained_model(state))
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
        weights = pretrained.Weights(
            {"tokenizer": model.tokenizer, "generator": model.generator},
            {"tokenizer": model.tokenizer_params, "generator": params},
            latent_scale=model.latent_scale,
            class_names=model.class_names,
            notes=f"generator after {int(state.step)} steps; config: {config}\n{self._tokenizer_notes}",
        )
        pretrained.save(path, weights)

    def _trained_model(self, state: TrainState) -> Model:
        return self._model.replace(generator_params=sharding.local(state.ema_params))
