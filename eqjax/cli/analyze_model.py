"""The analysis of one model."""

import os
from typing import Any

from absl import flags, logging
from jaxtyping import Int
import ml_collections
import numpy as np

import eqjax
from eqjax import data
from eqjax.cli.analyze_images import BATCH_SIZE, crops, encode, latent_batches, model_images
from eqjax.cli.model_flags import load_model
from eqjax.evaluation import analysis
from eqjax.evaluation.protocol import device_entries
from eqjax.progress import ProgressLogger, announced

# How the samples are made whose seams are measured.
SAMPLING: dict[str, Any] = {
    "guidance_scale": 2.0,
    "guidance_schedule": "constant",
    "num_flow_steps": 32,
    "solver": "adams_bashforth",
    "time_grid": "cosine",
}


def analyze(args: flags.FlagValues) -> None:
    """Measures the model of --weights, and writes the report."""
    model = load_model(args, ["tokenizer"])
    config, labels = model_images(args, model)
    measures = {"weights": args.weights, "source": config.root or config.source, **device_entries()}
    measures |= tokenizer_measures(model, config, args.num_columns, seed=1000)
    measures |= seam_measures(
        model, config, labels, num_columns=args.num_columns, num_batches=args.num_batches, seed=3000
    )
    if model.generator is not None and labels is not None:
        batches = latent_batches(
            model, config, labels, num_columns=args.num_columns, num_batches=args.num_batches, seed=2000
        )
        first_inner = min(model.generator.window_size or 1, args.num_columns - 2)
        with model.with_precision(), announced("Compiling and measuring the losses and gradients of all columns"):
            measures |= analysis.generator_measures(model.generator, model.generator_params, batches, first_inner)
    write_report(args.output, {"model": [measures]})


def tokenizer_measures(
    model: eqjax.Model, config: ml_collections.ConfigDict, num_columns: int, seed: int
) -> analysis.Measures:
    """Returns the measures of a model's tokenizer, on fresh crops of `num_columns` columns."""
    tokenizer = model.require("tokenizer")
    width = num_columns * tokenizer.column_width
    with announced("Compiling and measuring shift errors and footprints"):
        images, _ = crops(config, tokenizer.resolution, width + analysis.MAX_SHIFT, 2 * BATCH_SIZE, seed)
        return analysis.tokenizer_measures(model, images, width)


def seam_measures(
    model: eqjax.Model,
    config: ml_collections.ConfigDict,
    labels: Int[np.ndarray, "classes"] | None,
    *,
    num_columns: int,
    num_batches: int,
    seed: int,
) -> analysis.Measures:
    """Returns the roughness of crops, of their reconstructions, and of samples of the same classes.

    Args:
      model: a model with a tokenizer; without a generator or labels there are no samples.
      config: data configuration.
      labels: the model's label of each of the data's classes.
      num_columns: width of the images in columns.
      num_batches: number of batches of images.
      seed: seed of the crops and the samples.
    """
    tokenizer = model.require("tokenizer")
    width = num_columns * tokenizer.column_width
    images, found = crops(config, tokenizer.resolution, width, num_batches * BATCH_SIZE, seed)
    batches = range(0, len(images), BATCH_SIZE)
    with announced("Reconstructing images, to look for seams", patience=2.0):
        latents = encode(model, images)
        decoded = [np.asarray(model.decode(latents[i : i + BATCH_SIZE])) for i in batches]
    sets = {"real": images, "reconstructed": np.concatenate(decoded)}
    if model.generator is not None and labels is not None:
        progress, samples = ProgressLogger("samples, to look for seams", len(images)), []
        for i in batches:
            rows = labels[found[i : i + BATCH_SIZE]]
            samples.append(np.asarray(model.sample(rows, num_columns=num_columns, seed=seed + i, **SAMPLING)))
            progress.update(len(rows))
        sets["sampled"] = np.concatenate(samples)
    names = data.make_source(config).class_names
    measures = analysis.roughness_measures(sets, found, names, tokenizer.column_width)
    return measures | ({"sampling": SAMPLING} if "sampled" in sets else {})


def write_report(output: str, results: analysis.MeasuresByKind) -> None:
    """Writes the report of `analysis.write_report`, and logs its table."""
    with announced("Drawing the plots", patience=2.0):
        table = analysis.write_report(output, results)
    logging.info("Wrote %s:\n%s", os.path.abspath(output), table)
