r"""Measures the paper's argument: are all columns one task, and does the tokenizer move with the image?

One model (no training), on the built-in photographs where they are its classes, else on images that
`--data.…` names as training configurations do:

    python -m eqjax.cli.analyze --weights=photos --output=outputs/analysis
    python -m eqjax.cli.analyze --weights=runs/generator --data.source=folder --data.root=/path/to/root

Four kinds of small models, trained here on the built-in photographs, several seeds: tokenizer as published
against strictly equivariant, generator with a window against full causal attention:

    python -m eqjax.cli.analyze --compare --output=outputs/analysis
    python -m eqjax.cli.analyze --compare --seeds=5 --tokenizer_steps=3000 --generator_steps=3000 --channels=96

Both write plots (PNG), their data (CSV), and results.json. A comparison that was cut off goes on: trained
tokenizers stay under the output folder, and results are kept per seed. Plots need matplotlib:
pip install -e '.[analysis]'
"""

import json
import os

from absl import flags, logging
import jax
from ml_collections import config_flags
import numpy as np

from eqjax import Generator, config_files, data, load_pretrained
from eqjax.data.photos import DEMO_CLASSES
from eqjax.evaluation import analysis, plots, tasks
from eqjax.evaluation.protocol import device_entries
from eqjax.evaluation.results import json_values
from eqjax.io import write_json
from eqjax.training import tokenizer as tokenizer_training
from eqjax.training.config import resolve

_BATCH = 32


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    output = os.path.join("outputs", "analysis")
    flags.DEFINE_string("output", output, "Folder for plots, tables and models.", flag_values=values)
    flags.DEFINE_list(
        "weights", ["photos"], "Of the model to analyze, as for eqjax.load_pretrained.", flag_values=values
    )
    config_flags.DEFINE_config_dict(
        "data",
        photo_config(),
        "Images to analyze the model on; crops of its height.",
        flag_values=values,
    )
    flags.DEFINE_bool("compare", False, "Train and compare small models instead of analysing one.", flag_values=values)
    for name, default, text, least in (
        ("columns", 8, "Columns of the images: the length of the sequences.", 4),
        ("batches", 8, "Batches of 32 images behind every error bar.", 2),
        ("seeds", 3, "Seeds of a comparison.", 1),
        ("height", 32, "Height of a comparison's images, pixels; a multiple of 8.", 16),
        ("channels", 32, "Width of a comparison's tokenizers; a multiple of 32.", 32),
        ("tokenizer_steps", 400, "Training steps of each tokenizer.", 1),
        ("width", 96, "Width of a comparison's generators.", 8),
        ("window", 3, "Columns that the windowed generators see.", 1),
        ("generator_steps", 400, "Training steps of each generator.", 1),
        ("train_images", 1024, "Crops that a comparison's generators train on.", 32),
    ):
        flags.DEFINE_integer(name, default, text, least, flag_values=values)


def run(args):
    """What the command does with its flags; raises instead of ending the program."""
    plots.check_installed()  # Not after half an hour of training.
    if args.compare:
        compare(args)
    else:
        analyze(args)


# ── Images ────────────────────────────────────────────────────────────────────────────────────


def photo_config(classes=None):
    """The data part for crops of the built-in photographs' training parts."""
    config = data.default_config()
    config.update(min_scale=0.5, classes=classes, num_threads=0)
    return config


def crops(config, height, width, count, seed):
    """Random crops of the training images: (uint8 [count, H, W, 3], the source's labels [count])."""
    config = config.copy_and_resolve_references()
    config.update(height=height, width=width)
    with data.make_iterator(config, batch_size=count, seed=seed) as batches:
        batch = next(batches)
    return batch["image"], batch["label"]


def model_images(args, model):
    """Where a model's images come from, and which of its labels they have.

    Args:
      args: the command's flags.
      model: with a tokenizer.

    Returns:
      The data configuration; the model's label of each class there (None without a generator).

    Raises:
      ValueError: nothing says which images, or their classes or size are not the model's.
    """
    config, given = args.data.copy_and_resolve_references(), config_flags.get_override_values(args["data"])
    height, width = model.tokenizer.resolution, args.columns * model.tokenizer.column_width
    names, generator = model.class_names, model.generator
    if "source" not in given and not (names and set(names) <= set(data.PHOTOS)):
        classes = f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}" if names else "without names"
        raise ValueError(
            f"the classes of {','.join(args.weights)} ({classes}) are not built-in photographs; say on which images "
            "to analyze it: --data.source=folder --data.root=/path/to/root, with a folder per class (or tfds; "
            "--data.source=photos for the photographs all the same)."
        )
    if config.source == "latents":
        raise ValueError("--data.source=latents holds no images; give those that it was made of.")
    if (given.get("height", height), given.get("width", width)) != (height, width):
        raise ValueError(
            f"--data.height={config.height} and --data.width={config.width}: leave them out. Crops are as high as the "
            f"model's images, {height} pixels, and --columns={args.columns} columns wide, {width} pixels."
        )
    config.update(height=height, width=width, resize=config.resize if "resize" in given else height)
    chosen = given.keys() & {"classes", "class_file"}
    if names and not chosen and (generator is not None or "source" not in given):
        config.classes = names
    found = data.make_source(config).class_names
    if generator is None:
        return config, None
    if names:
        labels = {name: label for label, name in enumerate(names[: generator.num_classes])}
        unknown = [name for name in found if name not in labels]
        if unknown:
            raise ValueError(
                f"classes {unknown[:10]} of the data are not among the model's: {list(labels)[:10]}"
                f"{' …' if len(labels) > 10 else ''}. Choose by --data.classes."
            )
        return config, np.array([labels[name] for name in found])
    if len(found) > generator.num_classes or (len(found) < generator.num_classes and not chosen):
        raise ValueError(
            f"the model has {generator.num_classes} classes without names, the data has {len(found)}: give all, in "
            "the order of their labels, or by --data.classes or --data.class_file the first of them."
        )
    return config, np.arange(len(found))


def latent_batches(model, config, labels, args, seed):
    """Fresh crops as the generator sees them: [(scaled latents, labels)], `--batches` of them."""
    width = args.columns * model.tokenizer.column_width
    images, found = crops(config, model.tokenizer.resolution, width, args.batches * _BATCH, seed)
    latents = np.concatenate([model.encode(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)])
    return [(latents[i : i + _BATCH], labels[found[i : i + _BATCH]]) for i in range(0, len(images), _BATCH)]


# ── One model ───────────────────────────────────────────────────────────────────────────────────


def analyze(args):
    """All measures of the model of `--weights`."""
    model = load_pretrained(*args.weights)
    model.require("tokenizer")
    config, labels = model_images(args, model)
    result = {"weights": args.weights, "source": config.root or config.source, **device_entries()}
    result |= _tokenizer_measures(model, config, args, 1000)
    if model.generator is not None:
        batches, window = latent_batches(model, config, labels, args, 2000), model.generator.window_size or 1
        first = min(window, args.columns - 2)
        result |= analysis.generator_measures(model.generator, model.generator_params, batches, first)
    _draw(args.output, {"model": [result]})


def _tokenizer_measures(model, config, args, seed):
    width = args.columns * model.tokenizer.column_width
    images, _ = crops(config, model.tokenizer.resolution, width + analysis.MAX_SHIFT, 2 * _BATCH, seed)
    return analysis.tokenizer_measures(model, images, width)


def _draw(output, results):
    logging.info("Wrote %s:\n%s", os.path.abspath(output), analysis.write_report(output, results))


# ── A comparison ────────────────────────────────────────────────────────────────────────────────


def compare(args):
    """Trains and measures every kind for every seed, then writes plots and the table."""
    given = [f"--data.{name}" for name in config_flags.get_override_values(args["data"])]
    if given:
        raise ValueError(f"--compare trains on the built-in photographs; {', '.join(given)} would change nothing.")
    photos = photo_config(DEMO_CLASSES)
    kinds = {
        f"{style}, {attention}": (style, window)
        for style in ("published", "strict")
        for attention, window in ((f"window {args.window}", args.window), ("full causal", None))
    }
    results = {kind: [] for kind in kinds}
    for seed in range(args.seeds):
        for style in ("published", "strict"):
            model = load_pretrained(train_tokenizer(args, style, seed))
            measures = None
            for kind in (kind for kind in kinds if kinds[kind][0] == style):
                path = os.path.join(args.output, "results", f"{kind.replace(', ', '_').replace(' ', '_')}_{seed}.json")
                if not os.path.isfile(path):
                    measures = measures or _tokenizer_measures(model, photos, args, 1000 + seed)
                    generators = _compare_generators(model, photos, kinds[kind][1], args, seed)
                    write_json(path, json_values(measures | generators | _flags(args)))
                results[kind].append(analysis.read_measures(path, _flags(args)["flags"]))
                logging.info("seed %d, %s: %s", seed, kind, analysis.summary(results[kind][-1]))
    _draw(args.output, results)


def _flags(args):
    names = ("height", "columns", "channels", "tokenizer_steps", "width", "window", "generator_steps", "batches")
    return {"flags": {name: args[name].value for name in (*names, "train_images")}}


def train_tokenizer(args, style, seed):
    """Trains a small tokenizer of columns of 8 pixels, unless it was before; gives its workdir.

    Raises:
      ValueError: it was trained under other flags.
    """
    workdir = os.path.join(args.output, "models", f"{style}_{seed}")
    config = config_files.load(f"photos_tokenizer:style={style}")
    config.tokenizer.update(patch_size=4, channels=args.channels, resolution=args.height, z_channels=16, embed_dim=32)
    # As published where it is called so: the small image's lowest level attends, everywhere or nearby.
    config.tokenizer.update(attention_resolutions=(args.height // 8,))
    config.data.update(height=args.height, width=8 * args.columns, num_threads=0)
    config.seed, config.total_steps = seed, args.tokenizer_steps
    config.eval_every = config.image_every = None
    config.checkpoint_every = args.tokenizer_steps
    _check_config(workdir, resolve(config))
    if not os.path.isfile(os.path.join(workdir, "model.safetensors")):
        tokenizer_training.train_and_evaluate(config, workdir)
    return workdir


def _check_config(workdir, config):
    """Compares a configuration with the one that a training left in its workdir."""
    path = os.path.join(workdir, "config.json")
    if not os.path.isfile(path):
        return
    with open(path, encoding="utf-8") as file:
        there = _flat(json.load(file))
    now = _flat(json.loads(config.to_json_best_effort()))
    lines = [
        f"  {name}: there {there.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name)
    ]
    if lines:
        raise ValueError(
            f"{workdir} holds a tokenizer of other flags; give another --output, or the same flags.\n"
            + "\n".join(lines)
        )


def _flat(fields, prefix=""):
    """{"outer.inner": value} of nested dicts."""
    found = {}
    for name, value in fields.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _compare_generators(model, photos, window, args, seed):
    """Trains on all columns, and on the left half alone; measures both."""
    images, labels = crops(photos, args.height, args.columns * 8, args.train_images, seed)
    latents = np.concatenate([model.encode(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)])
    generator = Generator(
        width=args.width,
        depth=2,
        num_heads=4,
        latent_dim=model.tokenizer.embed_dim,
        num_classes=len(model.class_names),
        num_cond_tokens=4,
        window_size=window,
        max_rope_shift=args.columns,
        flow_width=args.width,
        flow_depth=2,
        dropout_rate=0.0,
    )
    options = dict(steps=args.generator_steps, batch_size=_BATCH, learning_rate=2e-3, seed=seed)
    batches = latent_batches(model, photos, np.arange(len(model.class_names)), args, 2000 + seed)
    half = args.columns // 2
    whole = tasks.train(generator, latents, labels, **options)
    left = tasks.train(generator, latents, labels, columns=range(half), **options)
    result = analysis.generator_measures(generator, whole, batches, args.window)
    transferred = tasks.column_losses(generator, left, batches, jax.random.key(0))
    result["transfer_loss"] = transferred.mean.tolist()
    result["transfer_loss_stderr"] = transferred.stderr.tolist()
    result["transfer"] = float(transferred.mean[half:].mean() / np.mean(result["loss"][half:]))
    result["transfer_trained"] = float(transferred.mean[:half].mean() / np.mean(result["loss"][:half]))
    return result
