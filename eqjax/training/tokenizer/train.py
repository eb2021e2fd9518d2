"""The tokenizer's trainer: from a configuration to a run that evaluates, reconstructs and exports."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import os
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import numpy as np

from eqjax import checkpoints, pixels, pretrained, sharding
from eqjax.data import EvalBatches, eval_batches, make_iterator, make_source
from eqjax.evaluation.image_metrics import psnr
from eqjax.progress import announced
from eqjax.tokenizer import Tokenizer
from eqjax.training import loop
from eqjax.training.config import check_config, check_length, resolve
from eqjax.training.state import TokenizerState
from eqjax.training.tokenizer import nan_report
from eqjax.training.tokenizer.draws import Terms
from eqjax.training.tokenizer.sampled_latents import check_sampled, load_sampled_generator, obtain_sampled_latents
from eqjax.training.tokenizer.soft_weights import measure_soft_weights
from eqjax.training.tokenizer.stage1 import load_stage1
from eqjax.training.tokenizer.step import Batch, TokenizerStep
from eqjax.typing import AnyArray, Config, Params, PRNGKey

# Images whose reconstructions are logged.
_NUM_LOGGED_IMAGES = 8


def train_and_evaluate(config: Config, workdir: str) -> TokenizerState:
    """Trains a tokenizer; `loop.train` lists the files that it writes.

    Args:
      config: a `default_config` with changes.
      workdir: folder of the run; a run that was interrupted there is resumed.

    Returns:
      The final state.

    Raises:
      ValueError: a field is unknown or out of range, the run is too short for its EMA, or stage 1 does not fit.
    """
    check_config(config, "tokenizer")
    config = resolve(config)
    check_length(config)
    with announced("Reading weights and opening the data", patience=2.0):
        trainer = TokenizerTrainer(config, workdir)
    return loop.train(config, workdir, trainer)


class TokenizerTrainer(loop.Trainer):
    """Trains a tokenizer, in stage 1 or 2.

    Building it checks the configuration against stage 1 and loads the frozen networks, before anything is written or
    compiled.
    """

    def __init__(self, config: Config, workdir: str) -> None:
        """Loads the frozen networks, and what a fresh run starts from; a run with a checkpoint needs that no longer.

        Args:
          config: a resolved `tokenizer_config`.
          workdir: folder of the run.

        Raises:
          ValueError: fields do not fit each other, the weights of stage 1 are missing or of another architecture, or
            the generator of samples is one of other latents.
          FileNotFoundError: the file of stage 1, of a generator or of a frozen network is missing.
        """
        tokenizer: Any = pretrained.build_module("tokenizer", dict(config.tokenizer))
        self._config, self._tokenizer, self._generator = config, tokenizer, None
        if config.freeze_encoder and not config.stage1_weights:
            raise ValueError(
                "freeze_encoder=True trains the decoder of an existing tokenizer: set stage1_weights to the workdir "
                "of its stage 1, or to a weights file."
            )
        check_sampled(config)
        size = config.data.height, config.data.width
        try:
            tokenizer.check_images((config.batch_size, *size, 3))
        except ValueError as error:
            raise ValueError(f"data.height × data.width is {size[0]} × {size[1]}: {error}") from error
        if not checkpoints.has_steps(os.path.join(workdir, "checkpoints")):
            _ = self._stage1
            if config.sampled.generator_weights:
                self._generator = load_sampled_generator(config, tokenizer)
        self._train_step, self.frozen = TokenizerStep.from_config(config, tokenizer)
        self._reconstruct = jax.jit(self._psnr_and_images)

    @functools.cached_property
    def _stage1(self) -> pretrained.Weights | None:
        """The weights that a fresh run starts from; None if they are random."""
        return load_stage1(self._config, self._tokenizer)

    def make_frozen(self, workdir: str, is_resumed: bool, check_stop: Callable[[], None]) -> None:
        """Adds a generator's samples to the frozen arrays, if the configuration asks for them."""
        config, tokenizer = self._config, self._tokenizer
        weights, self._generator = self._generator, None
        if config.sampled.generator_weights:
            self.frozen["sampled"] = obtain_sampled_latents(config, tokenizer, workdir, is_resumed, weights, check_stop)

    # ── Training ────────────────────────────────────────────────────────────────────────────────

    def init_state(self, key: PRNGKey) -> TokenizerState:
        """Returns the state before the first step, with random parameters."""
        return self._train_step.init_state(key, self._config.data.height, self._config.data.width)

    def load_initial_weights(self, state: TokenizerState, check_stop: Callable[[], None]) -> TokenizerState:
        """Returns the state with the EMA weights of stage 1, if the run starts from them, and with soft weights."""
        regularization = self._train_step.objective.regularization
        if regularization is not None and regularization.soft_power is not None:
            measured = jnp.asarray(measure_soft_weights(self._config, regularization, check_stop))
            soft = sharding.put(measured, state.regularization.soft.sharding)
            state = dataclasses.replace(state, regularization=dataclasses.replace(state.regularization, soft=soft))
        if self._stage1 is None:
            return state
        if self._config.freeze_encoder:
            # A frozen encoder has the latents of stage 1, and so their scale: generators of either fit both.
            self.inherited = {"latent_scale": self._stage1.latent_scale}
        stored = self._stage1.params["tokenizer"]
        params = sharding.put(stored, jax.tree.map(lambda leaf: leaf.sharding, state.params))
        return dataclasses.replace(state, params=params, ema_params=jax.tree.map(jnp.copy, params))

    def step(self, frozen: Any, state: TokenizerState, batch: Batch, key: PRNGKey) -> tuple[TokenizerState, Terms]:
        """Updates the tokenizer, then the discriminator; see `TokenizerStep`."""
        return self._train_step(frozen, state, batch, key)

    def prepare_batch(self, batch: Batch, step: int) -> Batch:
        """Returns the batch with the host's choice of the step's transform, if there is one."""
        regularization = self._train_step.objective.regularization
        choice = None if regularization is None else regularization.choose(step - 1)
        return batch if choice is None else {**batch, "transform": choice}

    def notice(self, step: int, metrics: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        """Warns when the guard has turned explicit errors off."""
        if metrics.get("collapsed") and not before.get("collapsed"):
            logging.warning(
                "Step %d: the spread of the latents fell below %g of its start, so they collapse under the explicit "
                "errors of objective.equivariance, which are off from now on. Start again with a lower "
                "explicit_weight.", step, self._config.objective.equivariance.collapse_threshold,
            )  # fmt: skip

    def find_nonfinite(self, state: TokenizerState, batch: Batch, key: PRNGKey) -> str:
        """Names the first parameter, term or gradient that is not finite when the step is repeated."""
        frozen = sharding.put(self.frozen, sharding.replicated(sharding.mesh_of(state)))
        images = jax.jit(pixels.from_uint8)(batch["image"])
        return nan_report.first_nonfinite_term(self._train_step, frozen, state, images, key, batch.get("transform"))

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

    def evaluate(self, state: TokenizerState) -> dict[str, Any]:
        """Returns the PSNR of held-out images under the EMA weights."""
        values, mesh = [], sharding.mesh_of(state)
        for batch in self.evaluation_batches(mesh):
            batch = sharding.shard_batch(batch, mesh)
            per_image, _ = self._reconstruct(state.ema_params, batch["image"])
            values.append(sharding.gather(per_image)[sharding.gather(batch["mask"])])
        return {"eval_psnr": float(np.mean(np.concatenate(values)))}

    def images(self, state: TokenizerState, batch: Batch) -> dict[str, np.ndarray]:
        """Returns some of the batch's images, each above its reconstruction."""
        images = np.asarray(batch["image"])[:_NUM_LOGGED_IMAGES]
        _, reconstructions = self._reconstruct(sharding.local(state.ema_params), images)
        pairs = np.concatenate([images, np.asarray(reconstructions)], axis=1)
        return {"reconstructions": pixels.grid(pairs, columns=_NUM_LOGGED_IMAGES)}

    def _psnr_and_images(
        self, params: Params, images: UInt8[AnyArray, "B H W 3"]
    ) -> tuple[Float[jax.Array, " B"], UInt8[AnyArray, "B H W 3"]]:
        floats = pixels.from_uint8(images)
        decoded: Any = self._tokenizer.apply({"params": params}, floats)
        return psnr(floats, decoded.images), pixels.to_uint8(decoded.images)

    # ── Result ──────────────────────────────────────────────────────────────────────────────────

    def export(self, state: TokenizerState, path: str) -> None:
        """Writes the EMA weights with their latent scale; on process 0."""
        config, params = self._config, sharding.gather(state.ema_params)
        if jax.process_index():
            return
        scale = self.inherited.get("latent_scale")
        if scale is None:
            scale = measure_latent_scale(self._tokenizer, params, config, sharding.mesh_of(state))
        weights = pretrained.Weights(
            {"tokenizer": self._tokenizer},
            {"tokenizer": params},
            latent_scale=scale,
            class_names=tuple(make_source(config.data).class_names),
            notes=f"{_notes(int(state.step))} config: {config.to_json_best_effort()}",
        )
        pretrained.save(path, weights)

    def is_exported(self, step: int, path: str) -> bool:
        """Returns whether `export` wrote a file after a number of steps, and the file is whole."""
        try:
            return pretrained.load(path).notes.startswith(_notes(step))
        except (FileNotFoundError, pretrained.WeightsError):
            return False


def _notes(step: int) -> str:
    """Returns the beginning of the notes in an exported file."""
    return f"tokenizer after {step} steps;"


def measure_latent_scale(
    tokenizer: Tokenizer,
    params: Params,
    config: Config,
    mesh: jax.sharding.Mesh,
    num_batches: int = 16,
) -> float:
    """Measures the latent scale: one over the root mean square of latents sampled from training batches.

    The published 0.05493 is the published tokenizer's value: scaled latents, posterior noise included, have
    unit scale. One process measures it, on its shard of the batches of a run on `mesh`.

    Args:
      tokenizer: the module.
      params: its parameters.
      config: a resolved `tokenizer_config`.
      mesh: the run's mesh.
      num_batches: batches to measure.
    """

    @jax.jit
    def mean_square(images: Any, key: PRNGKey) -> jax.Array:
        posterior: Any = tokenizer.apply({"params": params}, pixels.from_uint8(images), method="encode")
        return jnp.mean(jnp.square(posterior.sample(key)))

    process_index, process_count = sharding.batch_shard(mesh)
    batches = make_iterator(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=process_index,
        process_count=process_count,
    )
    with batches as data:
        keys = jax.random.split(jax.random.key(config.seed), num_batches)
        squares = [float(mean_square(next(data)["image"], key)) for key in keys]
    return float(1 / np.sqrt(np.mean(squares)))
