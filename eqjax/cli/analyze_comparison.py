"""The analysis of several small models, which are trained for it and compared."""

from collections.abc import Iterator
import dataclasses
import functools
import json
import os
from typing import Any

from absl import flags, logging
from jaxtyping import Int, UInt8
import ml_collections
from ml_collections import config_flags
import numpy as np

import eqjax
from eqjax import config_files
from eqjax.cli.analyze_images import BATCH_SIZE, crops, encode, photo_config
from eqjax.cli.analyze_model import SAMPLING, seam_measures, tokenizer_measures
from eqjax.cli.comparison_config import check_comparison, generator_fields, protocol, training_config
from eqjax.differences import check_equal
from eqjax.equivariance import CanonicalCodec, PolyphaseAnchor, flips, model_codec, scales, warps
from eqjax.evaluation import analysis, comparison_report, generalization, tasks
from eqjax.evaluation.quality import LabeledImages, QualityReference
from eqjax.evaluation.results import json_values
from eqjax.io import read_json_object, write_json
from eqjax.progress import ProgressLogger, announced
from eqjax.training import tokenizer as tokenizer_training
from eqjax.training.config import resolve
from eqjax.typing import Config


def compare(args: flags.FlagValues) -> None:
    """Trains and measures every kind of model for every seed, and writes the report.

    Results are written one by one, and those that are there are not computed again.

    Raises:
      ValueError: flags without effect; models or results under --output were made with other fields.
    """
    given = [f"--data.{name}" for name in config_flags.get_override_values(args["data"])]
    if given:
        raise ValueError(
            f"a comparison uses the built-in photographs; {', '.join(given)} would have no effect: leave these out."
        )
    config: Config = config_files.load("comparison") if args.config is None else args.config
    check_comparison(config)
    results: dict[str, list[analysis.Measures]] = {}
    for tokenizer, anchored in _tokenizers(config):
        for seed in range(config.num_seeds):
            for kind, measures in _measure_tokenizer(config, args.output, tokenizer, anchored, seed).items():
                results.setdefault(kind, []).append(measures)
    with announced("Drawing the plots", patience=2.0):
        table = comparison_report.write_report(args.output, results)
    logging.info("Wrote %s:\n%s", os.path.abspath(args.output), table)


def _tokenizers(config: Config) -> Iterator[tuple[str, bool]]:
    """Yields the name of every tokenizer, and whether it is measured with anchored columns."""
    for name in config.tokenizers:
        yield name, False
        if name in config.anchored:
            yield name, True


def _measure_tokenizer(
    config: Config, output: str, tokenizer: str, anchored: bool, seed: int
) -> dict[str, analysis.Measures]:
    """Returns the measures of all generators on a tokenizer of one seed, by kind; computes those that are missing."""
    found, subject = {}, None
    for generator in config.generators:
        kind = f"{'anchored ' if anchored else ''}{tokenizer}, {generator}"
        path = os.path.join(output, "results", f"{kind.replace(', ', '_').replace(' ', '_')}_{seed}.json")
        made_with = protocol(config, tokenizer, anchored, generator)
        if not os.path.isfile(path):
            if subject is None:
                model = eqjax.load_pretrained(train_tokenizer(config, output, tokenizer, seed))
                subject = Subject(config, model, anchored, seed)
            measures = subject.tokenizer_measures | subject.measure(generator)
            write_json(path, json_values(measures | {"comparison": made_with}))
        found[kind] = analysis.read_measures(path, made_with)
        logging.info("seed %d, %s: %s", seed, kind, analysis.summary(found[kind]))
    return found


def train_tokenizer(config: Config, output: str, name: str, seed: int) -> str:
    """Trains a small tokenizer, unless it exists already, and returns its workdir.

    Args:
      config: the comparison.
      output: folder of the comparison.
      name: name of the tokenizer.
      seed: seed of the training.

    Raises:
      ValueError: the workdir holds a tokenizer trained with other fields.
    """
    workdir = os.path.join(output, "models", f"{name}_{seed}")
    training = training_config(config, name, seed)
    path = os.path.join(workdir, "config.json")
    if os.path.isfile(path):
        expected = json.loads(resolve(training).to_json_best_effort())
        message = f"{workdir} holds a tokenizer of other fields; give another --output, or the same fields."
        check_equal(read_json_object(path), expected, message, found_name="workdir", expected_name="now")
    if not os.path.isfile(os.path.join(workdir, "model.safetensors")):
        tokenizer_training.train_and_evaluate(training, workdir)
    return workdir


@dataclasses.dataclass(frozen=True)
class Subject:
    """A tokenizer of a comparison with the images that it and its generators are measured on.

    Attributes:
      config: the comparison.
      model: the tokenizer.
      anchored: whether images are cut so that columns begin at their strongest phase.
      seed: seed of everything.
    """

    config: Config
    model: eqjax.Model
    anchored: bool
    seed: int

    @functools.cached_property
    def photos(self) -> ml_collections.ConfigDict:
        """The photographs, with the parts held out that were held out from the tokenizer's training."""
        photos = photo_config(self.model.class_names)
        photos.holdout_fraction = training_config(
            self.config, next(iter(self.config.tokenizers)), 0
        ).data.holdout_fraction
        return photos

    @functools.cached_property
    def anchor(self) -> PolyphaseAnchor:
        """Finds the strongest phase of crops."""
        return PolyphaseAnchor(self.model.require("tokenizer").column_width, energy="gradient", boundary="crop")

    def images(
        self, columns: int, count: int, seed: int, held_out: bool = False
    ) -> tuple[UInt8[np.ndarray, "N H W 3"], Int[np.ndarray, "N"]]:
        """Returns crops and their labels; if columns are anchored, from the strongest phase of a wider crop."""
        tokenizer = self.model.require("tokenizer")
        stride, width = tokenizer.column_width, columns * tokenizer.column_width
        # All are cut from crops of one size, so that anchored ones are not magnified differently.
        images, labels = crops(self.photos, tokenizer.resolution, width + stride, count, seed, held_out)
        if not self.anchored:
            return images[:, :, :width], labels
        floats = np.asarray(eqjax.pixels.from_uint8(images))
        phases = np.asarray(self.anchor.element(floats).shift, np.int64)
        return np.stack([x[:, p : p + width] for x, p in zip(images, phases, strict=True)]), labels

    def latents(self, columns: int, count: int, seed: int, held_out: bool = False) -> list[tasks.LatentBatch]:
        """Returns batches of scaled latents and labels of such crops."""
        images, labels = self.images(columns, count, seed, held_out)
        latents = encode(self.model, images)
        return [(latents[i : i + BATCH_SIZE], labels[i : i + BATCH_SIZE]) for i in range(0, count, BATCH_SIZE)]

    @functools.cached_property
    def reference(self) -> tuple[QualityReference, LabeledImages]:
        """Real images that samples are compared with, which are the same for all models of a seed."""
        tokenizer, columns = self.model.require("tokenizer"), self.config.num_columns
        width = columns * tokenizer.column_width
        images, labels = crops(self.photos, tokenizer.resolution, width, self.config.num_samples, 5000 + self.seed)
        real = LabeledImages(images, labels)
        return QualityReference(real, tokenizer.column_width), real

    # ── Measures ────────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def tokenizer_measures(self) -> analysis.Measures:
        """The measures of the tokenizer; latents that are anchored have no action of shifts, and no error under it."""
        config, columns, count = self.config, self.config.num_columns, self.config.num_batches * BATCH_SIZE
        codec, canonical = model_codec(self.model), CanonicalCodec(model_codec(self.model), self.anchor)
        stride, height = codec.geometry.stride, self.model.require("tokenizer").resolution
        wide, _ = crops(self.photos, height, (columns + 1) * stride, count, 4000 + self.seed, held_out=True)
        measures: analysis.Measures = {"column_width": stride}
        with announced("Compiling and measuring reconstructions", patience=2.0):
            if self.anchored:
                measures |= generalization.reconstruction_measures(
                    lambda x: canonical.decode(canonical.encode(x)), wide, stride, columns
                )
            else:
                measures |= generalization.reconstruction_measures(
                    lambda x: codec.decode(codec.encode(x)), wide, stride, columns
                )
                measures |= tokenizer_measures(self.model, self.photos, columns, 1000 + self.seed)
                sizes = {"num_columns": columns, "num_batches": config.num_batches}
                measures |= seam_measures(self.model, self.photos, None, **sizes, seed=3000 + self.seed)
                groups = {"flip": flips(), "scale": scales("1/2"), "warp": warps(columns * stride)}
                measures |= generalization.orbit_measures(codec, wide[:, :, : columns * stride], groups)
        measures |= generalization.latent_measures(self.latents(columns, count, 4000 + self.seed, held_out=True))
        reference, real = self.reference
        decoded = [self.model.decode(latents) for (latents,) in _batches(encode(self.model, real.images))]
        found = LabeledImages(np.concatenate([np.asarray(images) for images in decoded]), real.labels)
        return measures | generalization.image_set_measures(reference, {"reconstructed": found})

    def measure(self, name: str) -> analysis.Measures:
        """Trains a generator on all columns, and one on the left half only; returns the measures of both."""
        config, columns, seed = self.config, self.config.num_columns, self.seed
        images, labels = self.images(columns, config.num_train_images, seed)
        latents = encode(self.model, images)
        generator = eqjax.Generator(
            latent_dim=self.model.require("tokenizer").embed_dim,
            num_classes=len(self.model.class_names or ()),
            **{"max_rope_shift": columns, **generator_fields(config, name)},
        )
        window = min(generator.window_size or 3, columns - 2)
        count, half = config.num_batches * BATCH_SIZE, columns // 2
        batches = self.latents(columns, count, 2000 + seed)
        logging.info("Training two generators, %d steps each.", config.generator_steps)
        all_trained, left_trained = (
            tasks.train(
                generator,
                latents,
                labels,
                steps=config.generator_steps,
                batch_size=BATCH_SIZE,
                learning_rate=2e-3,
                columns=which,
                seed=seed,
            )
            for which in (None, range(half))
        )
        with announced("Compiling and measuring the losses of all columns"):
            measures = analysis.generator_measures(generator, all_trained, batches, window, gradients=config.gradients)
            held_out = self.latents(columns, count, 4000 + seed, held_out=True)
            long = self.latents(2 * columns, count, 6000 + seed)
            measures |= generalization.loss_measures(generator, all_trained, held_out, long, window)
        measures |= generalization.transfer_measures(generator, left_trained, batches, measures["loss"], half)
        return measures | self._sample_measures(generator, all_trained)

    def _sample_measures(self, generator: eqjax.Generator, params: Any) -> analysis.Measures:
        """Samples images of twice the length, and compares their beginnings and their ends with real images."""
        reference, real = self.reference
        model = dataclasses.replace(self.model, generator=generator, generator_params=params)
        width, samples = real.images.shape[2], []
        progress = ProgressLogger("samples of twice the length", len(real.labels))
        for i, (labels,) in enumerate(_batches(real.labels)):
            found = model.sample(
                labels, num_columns=2 * self.config.num_columns, seed=7000 + 100 * self.seed + i, **SAMPLING
            )
            samples.append(np.asarray(found))
            progress.update(len(labels))
        images = np.concatenate(samples)
        parts = {"sampled": images[:, :, :width], "sampled_beyond": images[:, :, width:]}
        sets = {name: LabeledImages(part, real.labels) for name, part in parts.items()}
        return generalization.image_set_measures(reference, sets) | {"sampling": SAMPLING}


def _batches(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields the arrays in batches."""
    for i in range(0, len(arrays[0]), BATCH_SIZE):
        yield tuple(array[i : i + BATCH_SIZE] for array in arrays)
