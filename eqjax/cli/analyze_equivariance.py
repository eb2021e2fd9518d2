"""The analysis of how a model follows transforms of its images."""

import os

from absl import flags, logging
import numpy as np

from eqjax import data, pixels
from eqjax.cli.analyze_images import BATCH_SIZE, crops, encode, model_images
from eqjax.cli.model_flags import load_model
from eqjax.equivariance import load_stereo_pair, model_codec
from eqjax.equivariance.report import default_groups, measure_codec, measure_generator, write_report
from eqjax.evaluation.protocol import device_entries
from eqjax.progress import announced

# Images whose orbits are measured; the statistics of latents take all.
_NUM_IMAGES = 16
# Height from which the stereo pair is taken at full size.
_FULL_HEIGHT = 128


def analyze_equivariance(args: flags.FlagValues) -> None:
    """Measures how the model of --weights follows transforms, and writes the report.

    Raises:
      ValueError: the model has no tokenizer, or the images do not fit it.
    """
    model = load_model(args, ["tokenizer"])
    tokenizer = model.require("tokenizer")
    config, labels = model_images(args, model)
    width = args.num_columns * tokenizer.column_width
    images, found = crops(config, tokenizer.resolution, width, args.num_batches * BATCH_SIZE, seed=1000)
    names = data.make_source(config).class_names
    codec = model_codec(model, args.boundary, args.interpolation)
    measures = {"weights": args.weights, "source": config.root or config.source, **device_entries()}
    measures |= {"boundary": args.boundary, "interpolation": args.interpolation}
    groups = default_groups(codec.geometry, args.num_columns)
    pair = None
    if args.stereo:
        pair = load_stereo_pair(1 if tokenizer.resolution >= _FULL_HEIGHT else 2)
    with announced("Compiling and measuring orbits, footprints and latents"):
        of_codec, orbits, stereo = measure_codec(
            codec, np.asarray(pixels.from_uint8(images)), groups, num_images=_NUM_IMAGES, stereo=pair
        )
    measures |= of_codec
    if model.generator is not None and labels is not None:
        with model.with_precision(), announced("Compiling and measuring the generator at shifted indices"):
            few = encode(model, images[:_NUM_IMAGES]), labels[found[:_NUM_IMAGES]]
            measures["generator"] = measure_generator(model.generator, model.generator_params, *few)
    with announced("Drawing the plots", patience=2.0):
        table = write_report(args.output, measures, orbits, stereo, [names[i] for i in found[:_NUM_IMAGES]])
    logging.info("Wrote %s:\n%s", os.path.abspath(args.output), table)
