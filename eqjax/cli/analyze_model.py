"""The analysis of one model."""

import os

from absl import flags, logging
import ml_collections

import eqjax
from eqjax.cli.analyze_images import BATCH_SIZE, crops, latent_batches, model_images
from eqjax.evaluation import analysis
from eqjax.evaluation.protocol import device_entries


def analyze(args: flags.FlagValues) -> None:
    """Measures the model of --weights, and writes the report."""
    model = eqjax.load_pretrained(*args.weights)
    model.require("tokenizer")
    config, labels = model_images(args, model)
    measures = {"weights": args.weights, "source": config.root or config.source, **device_entries()}
    measures |= tokenizer_measures(model, config, args.num_columns, seed=1000)
    if model.generator is not None and labels is not None:
        batches = latent_batches(
            model, config, labels, num_columns=args.num_columns, num_batches=args.num_batches, seed=2000
        )
        first_inner = min(model.generator.window_size or 1, args.num_columns - 2)
        measures |= analysis.generator_measures(model.generator, model.generator_params, batches, first_inner)
    write_report(args.output, {"model": [measures]})


def tokenizer_measures(
    model: eqjax.Model, config: ml_collections.ConfigDict, num_columns: int, seed: int
) -> analysis.Measures:
    """Returns the measures of a model's tokenizer, on fresh crops of `num_columns` columns."""
    tokenizer = model.require("tokenizer")
    width = num_columns * tokenizer.column_width
    images, _ = crops(config, tokenizer.resolution, width + analysis.MAX_SHIFT, 2 * BATCH_SIZE, seed)
    return analysis.tokenizer_measures(model, images, width)


def write_report(output: str, results: analysis.MeasuresByKind) -> None:
    """Writes the report of `analysis.write_report`, and logs its table."""
    logging.info("Wrote %s:\n%s", os.path.abspath(output), analysis.write_report(output, results))
