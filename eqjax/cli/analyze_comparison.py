"""The analysis of several small models, which are trained for it and compared."""

import dataclasses
import json
import os
from typing import Any

from absl import flags, logging
import jax
import ml_collections
from ml_collections import config_flags
import numpy as np

import eqjax
from eqjax import config_files
from eqjax.cli.analyze_images import BATCH_SIZE, crops, encode, latent_batches, photo_config
from eqjax.cli.analyze_model import seam_measures, tokenizer_measures, write_report
from eqjax.differences import check_equal
from eqjax.evaluation import analysis, tasks
from eqjax.evaluation.results import json_values
from eqjax.io import read_json_object, write_json
from eqjax.progress import announced
from eqjax.training import tokenizer as tokenizer_training
from eqjax.training.config import resolve

_COLUMN_WIDTH = 8  # Column width of a comparison's tokenizers in pixels.
_STYLES = ("published", "strict")


@dataclasses.dataclass(frozen=True)
class ComparisonOptions:
    """Flags that determine the results of a comparison."""

    num_columns: int
    num_batches: int
    height: int
    tokenizer_channels: int
    tokenizer_steps: int
    generator_width: int
    generator_steps: int
    window_size: int
    num_train_images: int

    @classmethod
    def from_flags(cls, args: flags.FlagValues) -> "ComparisonOptions":
        """Returns the options of the command's flags."""
        values: dict[str, Any] = {field.name: args[field.name].value for field in dataclasses.fields(cls)}
        return cls(**values)


def compare(args: flags.FlagValues) -> None:
    """Trains and measures every kind of model for every seed, and writes the report.

    Raises:
      ValueError: flags without effect; models or results under --output were made with other flags.
    """
    given = [f"--data.{name}" for name in config_flags.get_override_values(args["data"])]
    if given:
        raise ValueError(
            f"a comparison uses the built-in photographs; {', '.join(given)} would have no effect: leave these out."
        )
    options = ComparisonOptions.from_flags(args)
    windows = {f"window {options.window_size}": options.window_size, "full causal": None}
    results: dict[str, list[analysis.Measures]] = {f"{s}, {attention}": [] for s in _STYLES for attention in windows}
    for seed in range(args.num_seeds):
        for style in _STYLES:
            model = eqjax.load_pretrained(train_tokenizer(options, args.output, style, seed))
            photos = photo_config(model.class_names)
            of_tokenizer: analysis.Measures = {}
            for attention, window in windows.items():
                kind = f"{style}, {attention}"
                name = f"{kind.replace(', ', '_').replace(' ', '_')}_{seed}.json"
                path = os.path.join(args.output, "results", name)
                flag_values = dataclasses.asdict(options)
                if not os.path.isfile(path):
                    of_tokenizer = of_tokenizer or _tokenizer_measures(model, photos, options, seed)
                    measures = of_tokenizer | _compare_generators(model, photos, window, options, seed)
                    write_json(path, json_values(measures | {"flags": flag_values}))
                results[kind].append(analysis.read_measures(path, flag_values))
                logging.info("seed %d, %s: %s", seed, kind, analysis.summary(results[kind][-1]))
    write_report(args.output, results)


def train_tokenizer(options: ComparisonOptions, output: str, style: str, seed: int) -> str:
    """Trains a small tokenizer, unless it exists already, and returns its workdir.

    Args:
      options: options of the comparison.
      output: folder of the comparison.
      style: "published" or "strict".
      seed: seed of the training.

    Raises:
      ValueError: the workdir holds a tokenizer trained under other flags.
    """
    workdir = os.path.join(output, "models", f"{style}_{seed}")
    config: Any = config_files.load(f"photos_tokenizer:style={style}")
    config.tokenizer.update(
        patch_size=4,
        channels=options.tokenizer_channels,
        resolution=options.height,
        z_channels=16,
        embed_dim=32,
        # As in the published tokenizer, the lowest level attends, globally or within the window of its style.
        attention_resolutions=(options.height // _COLUMN_WIDTH,),
    )
    config.data.update(height=options.height, width=_COLUMN_WIDTH * options.num_columns, num_threads=0)
    config.seed, config.total_steps = seed, options.tokenizer_steps
    config.eval_every = config.image_every = None
    config.checkpoint_every = options.tokenizer_steps
    path = os.path.join(workdir, "config.json")
    if os.path.isfile(path):
        expected = json.loads(resolve(config).to_json_best_effort())
        message = f"{workdir} holds a tokenizer of other flags; give another --output, or the same flags."
        check_equal(read_json_object(path), expected, message, found_name="workdir", expected_name="now")
    if not os.path.isfile(os.path.join(workdir, "model.safetensors")):
        tokenizer_training.train_and_evaluate(config, workdir)
    return workdir


def _tokenizer_measures(
    model: eqjax.Model, photos: ml_collections.ConfigDict, options: ComparisonOptions, seed: int
) -> analysis.Measures:
    sizes = {"num_columns": options.num_columns, "num_batches": options.num_batches}
    seams = seam_measures(model, photos, None, **sizes, seed=3000 + seed)
    return tokenizer_measures(model, photos, options.num_columns, 1000 + seed) | seams


def _compare_generators(
    model: eqjax.Model,
    photos: ml_collections.ConfigDict,
    window_size: int | None,
    options: ComparisonOptions,
    seed: int,
) -> analysis.Measures:
    """Trains a generator on all columns, and one on the left half only; returns the measures of both."""
    class_names = model.class_names or ()
    width = options.num_columns * _COLUMN_WIDTH
    images, labels = crops(photos, options.height, width, options.num_train_images, seed)
    latents = encode(model, images)
    generator = eqjax.Generator(
        width=options.generator_width,
        depth=2,
        num_heads=4,
        latent_dim=model.require("tokenizer").embed_dim,
        num_classes=len(class_names),
        num_cond_tokens=4,
        window_size=window_size,
        max_rope_shift=options.num_columns,
        flow_width=options.generator_width,
        flow_depth=2,
        dropout_rate=0.0,
    )
    batches = latent_batches(
        model,
        photos,
        np.arange(len(class_names)),
        num_columns=options.num_columns,
        num_batches=options.num_batches,
        seed=2000 + seed,
    )
    half = options.num_columns // 2
    logging.info("Training two generators, %d steps each.", options.generator_steps)
    all_trained, left_trained = (
        tasks.train(
            generator,
            latents,
            labels,
            steps=options.generator_steps,
            batch_size=BATCH_SIZE,
            learning_rate=2e-3,
            columns=columns,
            seed=seed,
        )
        for columns in (None, range(half))
    )
    with announced("Compiling and measuring the losses and gradients of all columns"):
        measures = analysis.generator_measures(generator, all_trained, batches, options.window_size)
    transferred = tasks.column_losses(generator, left_trained, batches, jax.random.key(0))
    measures["transfer_loss"] = transferred.mean.tolist()
    measures["transfer_loss_stderr"] = transferred.stderr.tolist()
    measures["transfer"] = float(transferred.mean[half:].mean() / np.mean(measures["loss"][half:]))
    measures["transfer_trained"] = float(transferred.mean[:half].mean() / np.mean(measures["loss"][:half]))
    return measures
