r"""Measures whether all columns are one task, and whether latents shift with the image.

    eqjax analyze --weights=photos --output=outputs/analysis
    eqjax analyze --weights=runs/generator --data.source=folder --data.root=/path/to/root
    eqjax analyze --compare --num_seeds=5 --tokenizer_steps=3000 --generator_steps=3000 --tokenizer_channels=96

Without --compare one model is analyzed, and nothing is trained. The images are the built-in photographs if they are
the model's classes; otherwise --data.… names them as training configurations do.

With --compare four kinds of small models are trained on the built-in photographs, with several seeds each: tokenizers
as published and strictly equivariant, generators with a window and with full causal attention. An interrupted
comparison resumes when the command is run again: trained tokenizers and the results of each seed are under --output.

Both write plots (PNG), their data (CSV) and results.json. Plots need matplotlib: pip install 'eqjax[analysis]'
"""

import dataclasses
import json
import os
from typing import Any

from absl import flags, logging
import jax
from jaxtyping import Int, UInt8
import ml_collections
from ml_collections import config_flags
import numpy as np

import eqjax
from eqjax import config_files, data
from eqjax.cli.runner import flag_group
from eqjax.differences import check_equal
from eqjax.evaluation import analysis, plots, tasks
from eqjax.evaluation.protocol import device_entries
from eqjax.evaluation.results import json_values
from eqjax.io import read_json, write_json
from eqjax.training import tokenizer as tokenizer_training
from eqjax.training.config import resolve

_BATCH_SIZE = 32
_COLUMN_WIDTH = 8  # Column width of a comparison's tokenizers in pixels.
_STYLES = ("published", "strict")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "One model"):
        flags.DEFINE_list("weights", ["photos"], "A shipped model's name, or weights files and workdirs.",
                          flag_values=values)  # fmt: skip
        config_flags.DEFINE_config_dict("data", photo_config(), "Images: --data.source, --data.root …",
                                        flag_values=values)  # fmt: skip
    with flag_group(values, "Measures"):
        _define_integers(
            values,
            ("num_columns", 8, "Width of the images in columns.", 4),
            ("num_batches", 8, f"Batches of {_BATCH_SIZE} images behind every error bar.", 2),
        )
    with flag_group(values, "Comparison"):
        flags.DEFINE_bool("compare", False, "Train and compare small models.", flag_values=values)
        _define_integers(
            values,
            ("num_seeds", 3, "Number of seeds.", 1),
            ("height", 32, "Height of the images in pixels, a multiple of 8.", 16),
            ("tokenizer_channels", 32, "Width of the tokenizers, a multiple of 32.", 32),
            ("tokenizer_steps", 400, "Training steps of each tokenizer.", 1),
            ("generator_width", 96, "Width of the generators.", 8),
            ("generator_steps", 400, "Training steps of each generator.", 1),
            ("window_size", 3, "Columns that the windowed generators see.", 1),
            ("num_train_images", 1024, "Crops that the generators are trained on.", 32),
        )
    with flag_group(values, "Output"):
        flags.DEFINE_string("output", os.path.join("outputs", "analysis"), "Folder of plots, tables and models.",
                            flag_values=values)  # fmt: skip


def _define_integers(values: flags.FlagValues, *definitions: tuple[str, int, str, int]) -> None:
    for name, default, text, least in definitions:
        flags.DEFINE_integer(name, default, text, least, flag_values=values)


def run(args: flags.FlagValues) -> None:
    """Analyzes a model, or trains and compares several.

    Raises:
      ModuleNotFoundError: matplotlib is missing.
    """
    plots.check_installed()  # Fails here rather than after half an hour of training.
    if args.compare:
        compare(args)
    else:
        analyze(args)


# ── Images ────────────────────────────────────────────────────────────────────────────────────


def photo_config(classes: tuple[str, ...] | None = None) -> ml_collections.ConfigDict:
    """Returns the data configuration for crops of the built-in photographs' training parts."""
    config = data.default_config()
    config.update(min_scale=0.5, classes=classes, num_threads=0)
    return config


def crops(
    config: ml_collections.ConfigDict, height: int, width: int, count: int, seed: int
) -> tuple[UInt8[np.ndarray, "N H W 3"], Int[np.ndarray, "N"]]:
    """Returns random crops of the training images, and the data source's labels.

    Args:
      config: data configuration.
      height: height of the crops in pixels.
      width: width of the crops in pixels.
      count: number of crops.
      seed: seed of the choice of images and crops.
    """
    config = config.copy_and_resolve_references()
    config.update(height=height, width=width)
    with data.make_iterator(config, batch_size=count, seed=seed) as batches:
        batch = next(batches)
    return batch["image"], batch["label"]


def model_images(
    args: flags.FlagValues, model: Any
) -> tuple[ml_collections.ConfigDict, Int[np.ndarray, "classes"] | None]:
    """Returns the data configuration for a model, and the model's label of each of the data's classes.

    Args:
      args: the command's flags.
      model: an `eqjax.Model` with a tokenizer; without a generator there are no labels.

    Raises:
      ValueError: no data is given and the model's classes are not built-in photographs; the data's classes or size
        do not fit the model.
    """
    config, given = args.data.copy_and_resolve_references(), config_flags.get_override_values(args["data"])
    height, width = model.tokenizer.resolution, args.num_columns * model.tokenizer.column_width
    names, generator = model.class_names, model.generator
    if "source" not in given and not (names and set(names) <= set(data.PHOTOS)):
        classes = f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}" if names else "without names"
        raise ValueError(
            f"the classes of {','.join(args.weights)} ({classes}) are not built-in photographs; choose the images "
            "to analyze it on: --data.source=folder --data.root=/path/to/root, with a folder per class (or tfds; or "
            "--data.source=photos to use the photographs nevertheless)."
        )
    if config.source == "latents":
        raise ValueError("--data.source=latents holds no images; give the data source that the cache was made from.")
    if (given.get("height", height), given.get("width", width)) != (height, width):
        raise ValueError(
            f"--data.height={config.height} and --data.width={config.width}: leave them out. Crops are as high as the "
            f"model's images, {height} pixels, and --num_columns={args.num_columns} columns wide, {width} pixels."
        )
    config.update(height=height, width=width, resize=config.resize if "resize" in given else height)
    chosen = given.keys() & {"classes", "class_file"}
    if names and not chosen and (generator is not None or "source" not in given):
        config.classes = names
    found = data.make_source(config).class_names
    return config, None if generator is None else _model_labels(found, names, generator.num_classes, bool(chosen))


def _model_labels(
    found: tuple[str, ...], names: tuple[str, ...] | None, num_classes: int, chosen: bool
) -> Int[np.ndarray, "classes"]:
    """Returns the model's label of each of the data's classes.

    Args:
      found: classes of the data.
      names: classes of the model, if they have names.
      num_classes: number of the model's classes.
      chosen: whether flags choose the data's classes.

    Raises:
      ValueError: a class of the data is not among the model's; without names, the numbers of classes differ.
    """
    if names:
        labels = {name: label for label, name in enumerate(names[:num_classes])}
        unknown = [name for name in found if name not in labels]
        if unknown:
            raise ValueError(
                f"classes {unknown[:10]} of the data are not among the model's: {list(labels)[:10]}"
                f"{' …' if len(labels) > 10 else ''}. Choose some of the model's with --data.classes."
            )
        return np.array([labels[name] for name in found])
    if len(found) > num_classes or (len(found) < num_classes and not chosen):
        raise ValueError(
            f"the model has {num_classes} classes without names, but the data has {len(found)}: give data with all "
            "classes in the order of their labels, or name the first ones with --data.classes or --data.class_file."
        )
    return np.arange(len(found))


def encode(model: Any, images: UInt8[np.ndarray, "N H W 3"]) -> np.ndarray:
    """Returns the scaled latents [N, L, D] of images, for an `eqjax.Model` with a tokenizer."""
    return np.concatenate([model.encode(images[i : i + _BATCH_SIZE]) for i in range(0, len(images), _BATCH_SIZE)])


def latent_batches(
    model: Any,
    config: ml_collections.ConfigDict,
    labels: Int[np.ndarray, "classes"],
    *,
    num_columns: int,
    num_batches: int,
    seed: int,
) -> list[tasks.LatentBatch]:
    """Returns batches of scaled latents and labels of random crops, as the generator sees them.

    Args:
      model: an `eqjax.Model` with a tokenizer.
      config: data configuration.
      labels: the model's label of each of the data's classes.
      num_columns: width of the crops in columns.
      num_batches: number of batches.
      seed: seed of the crops.
    """
    width = num_columns * model.tokenizer.column_width
    images, found = crops(config, model.tokenizer.resolution, width, num_batches * _BATCH_SIZE, seed)
    latents = encode(model, images)
    starts = range(0, len(images), _BATCH_SIZE)
    return [(latents[i : i + _BATCH_SIZE], labels[found[i : i + _BATCH_SIZE]]) for i in starts]


# ── One model ─────────────────────────────────────────────────────────────────────────────────


def analyze(args: flags.FlagValues) -> None:
    """Measures the model of --weights, and writes the report."""
    model = eqjax.load_pretrained(*args.weights)
    model.require("tokenizer")
    config, labels = model_images(args, model)
    measures = {"weights": args.weights, "source": config.root or config.source, **device_entries()}
    measures |= _tokenizer_measures(model, config, args.num_columns, seed=1000)
    if model.generator is not None and labels is not None:
        batches = latent_batches(
            model, config, labels, num_columns=args.num_columns, num_batches=args.num_batches, seed=2000
        )
        first_inner = min(model.generator.window_size or 1, args.num_columns - 2)
        measures |= analysis.generator_measures(model.generator, model.generator_params, batches, first_inner)
    _write_report(args.output, {"model": [measures]})


def _tokenizer_measures(
    model: eqjax.Model, config: ml_collections.ConfigDict, num_columns: int, seed: int
) -> analysis.Measures:
    tokenizer = model.require("tokenizer")
    width = num_columns * tokenizer.column_width
    images, _ = crops(config, tokenizer.resolution, width + analysis.MAX_SHIFT, 2 * _BATCH_SIZE, seed)
    return analysis.tokenizer_measures(model, images, width)


def _write_report(output: str, results: analysis.MeasuresByKind) -> None:
    logging.info("Wrote %s:\n%s", os.path.abspath(output), analysis.write_report(output, results))


# ── A comparison ──────────────────────────────────────────────────────────────────────────────


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
            f"--compare uses the built-in photographs; {', '.join(given)} would have no effect: leave these out."
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
                    of_tokenizer = of_tokenizer or _tokenizer_measures(model, photos, options.num_columns, 1000 + seed)
                    measures = of_tokenizer | _compare_generators(model, photos, window, options, seed)
                    write_json(path, json_values(measures | {"flags": flag_values}))
                results[kind].append(analysis.read_measures(path, flag_values))
                logging.info("seed %d, %s: %s", seed, kind, analysis.summary(results[kind][-1]))
    _write_report(args.output, results)


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
        check_equal(read_json(path), expected, message, found_name="workdir", expected_name="now")
    if not os.path.isfile(os.path.join(workdir, "model.safetensors")):
        tokenizer_training.train_and_evaluate(config, workdir)
    return workdir


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
    all_trained, left_trained = (
        tasks.train(
            generator,
            latents,
            labels,
            steps=options.generator_steps,
            batch_size=_BATCH_SIZE,
            learning_rate=2e-3,
            columns=columns,
            seed=seed,
        )
        for columns in (None, range(half))
    )
    measures = analysis.generator_measures(generator, all_trained, batches, options.window_size)
    transferred = tasks.column_losses(generator, left_trained, batches, jax.random.key(0))
    measures["transfer_loss"] = transferred.mean.tolist()
    measures["transfer_loss_stderr"] = transferred.stderr.tolist()
    measures["transfer"] = float(transferred.mean[half:].mean() / np.mean(measures["loss"][half:]))
    measures["transfer_trained"] = float(transferred.mean[:half].mean() / np.mean(measures["loss"][:half]))
    return measures
