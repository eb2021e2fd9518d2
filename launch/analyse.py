r"""Measures the paper's argument: are all columns one task, and does the tokenizer move with the picture?

One model (no training):

    python -m launch.analyse --weights=photos --output=outputs/analysis

Four kinds of small models, trained here on the built-in photographs, several seeds: tokenizer as published
against strictly equivariant, generator with a window against full causal attention:

    python -m launch.analyse --compare --output=outputs/analysis
    python -m launch.analyse --compare --seeds=5 --tokenizer_steps=3000 --generator_steps=3000 --channels=96

Both write plots (PNG), their data (CSV), and results.json. A comparison that was cut off goes on: trained
tokenizers stay under the output folder, and results are kept per seed.
"""

import os

from absl import app, flags, logging
import jax
import numpy as np

from configs import common, photos_tokenizer
from eqjax import Generator, data, load_pretrained
from eqjax.evaluation import analysis, tasks
from eqjax.training import tokenizer as tokenizer_training
from launch import runner

_OUTPUT = flags.DEFINE_string("output", os.path.join("outputs", "analysis"), "Folder for plots, tables and models.")
_WEIGHTS = flags.DEFINE_list("weights", ["photos"], "Of the model to analyse, as for eqjax.load_pretrained.")
_COMPARE = flags.DEFINE_bool("compare", False, "Train and compare small models instead of analysing one.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of a comparison.", 1)
_HEIGHT = flags.DEFINE_integer("height", 32, "Height of a comparison's pictures, pixels; a multiple of 8.", 16)
_COLUMNS = flags.DEFINE_integer("columns", 8, "Columns of the pictures: the length of the sequences.", 4)
_CHANNELS = flags.DEFINE_integer("channels", 32, "Width of a comparison's tokenizers; a multiple of 32.", 32)
_TOKENIZER_STEPS = flags.DEFINE_integer("tokenizer_steps", 400, "Training steps of each tokenizer.", 1)
_WIDTH = flags.DEFINE_integer("width", 96, "Width of a comparison's generators.", 8)
_WINDOW = flags.DEFINE_integer("window", 3, "Columns that the windowed generators see.", 1)
_GENERATOR_STEPS = flags.DEFINE_integer("generator_steps", 400, "Training steps of each generator.", 1)
_BATCHES = flags.DEFINE_integer("batches", 8, "Batches of 32 pictures behind every error bar.", 2)
_TRAIN_IMAGES = flags.DEFINE_integer("train_images", 1024, "Crops that a comparison's generators train on.", 32)

_BATCH = 32


def main(argv):
    """Analyses a model, or trains and compares several."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}.")
    runner.set_up()
    try:
        if _COMPARE.value:
            compare(_OUTPUT.value)
        else:
            analyse(_OUTPUT.value)
    except (ValueError, OSError) as error:
        logging.error("%s", error)
        raise SystemExit(1) from error


def crops(height, width, count, seed, classes=common.PHOTO_CLASSES):
    """Random crops of the photographs' training parts: (uint8 [count, H, W, 3], labels [count])."""
    config = data.default_config()
    config.update(height=height, width=width, min_scale=0.5, classes=classes, num_threads=0)
    with data.make_iterator(config, batch_size=count, seed=seed) as batches:
        batch = next(batches)
    return batch["image"], batch["label"]


def latent_batches(model, width, seed):
    """Fresh crops as the generator sees them: [(scaled latents, labels)], `--batches` of them."""
    images, labels = crops(model.tokenizer.resolution, width, _BATCHES.value * _BATCH, seed, model.class_names)
    latents = np.concatenate([model.encode(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)])
    return [(latents[i : i + _BATCH], labels[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]


# ── One model ───────────────────────────────────────────────────────────────────────────────────


def analyse(output):
    """All measures of the model of `--weights` on crops of the built-in photographs."""
    model = load_pretrained(*_WEIGHTS.value)
    width = _COLUMNS.value * model.tokenizer.column_width
    result = {"weights": _WEIGHTS.value, "devices": str(jax.devices()[0].platform)}
    result |= _tokenizer_measures(model, width, 1000)
    if model.generator is not None:
        batches, window = latent_batches(model, width, 2000), model.generator.window_size or 1
        first = min(window, _COLUMNS.value - 2)
        result |= analysis.generator_measures(model.generator, model.generator_params, batches, first)
    _draw(output, {"model": [result]})


def _tokenizer_measures(model, width, seed):
    images, _ = crops(model.tokenizer.resolution, width + analysis.MAX_SHIFT, 2 * _BATCH, seed, model.class_names)
    return analysis.tokenizer_measures(model, images, width)


def _draw(output, results):
    logging.info("Wrote %s:\n%s", os.path.abspath(output), analysis.draw(output, results))


# ── A comparison ────────────────────────────────────────────────────────────────────────────────


def compare(output):
    """Trains and measures every kind for every seed, then writes plots and the table."""
    kinds = {
        f"{style}, {attention}": (style, window)
        for style in ("published", "strict")
        for attention, window in ((f"window {_WINDOW.value}", _WINDOW.value), ("full causal", None))
    }
    results = {kind: [] for kind in kinds}
    for seed in range(_SEEDS.value):
        for style in ("published", "strict"):
            model = _train_tokenizer(os.path.join(output, "models", f"{style}_{seed}"), style, seed)
            measures = None
            for kind in (kind for kind in kinds if kinds[kind][0] == style):
                path = os.path.join(output, "results", f"{kind.replace(', ', '_').replace(' ', '_')}_{seed}.json")
                if not os.path.isfile(path):
                    measures = measures or _tokenizer_measures(model, _COLUMNS.value * 8, 1000 + seed)
                    analysis.write_json(path, measures | _compare_generators(model, kinds[kind][1], seed) | _flags())
                results[kind].append(analysis.read_result(path, _flags()["flags"]))
                logging.info("seed %d, %s: %s", seed, kind, analysis.summary(results[kind][-1]))
    _draw(output, results)


def _flags():
    names = (_HEIGHT, _COLUMNS, _CHANNELS, _TOKENIZER_STEPS, _WIDTH, _WINDOW, _GENERATOR_STEPS, _BATCHES, _TRAIN_IMAGES)
    return {"flags": {flag.name: flag.value for flag in names}}


def _train_tokenizer(workdir, style, seed):
    """A small tokenizer of columns of 8 pixels; read from its workdir where it was trained before."""
    config = photos_tokenizer.get_config(f"style={style}")
    config.tokenizer.update(
        patch_size=4, channels=_CHANNELS.value, resolution=_HEIGHT.value, z_channels=16, embed_dim=32
    )
    # As published where it is called so: the small picture's lowest level attends, everywhere or nearby.
    config.tokenizer.update(attention_resolutions=(_HEIGHT.value // 8,))
    config.data.update(height=_HEIGHT.value, width=8 * _COLUMNS.value, num_threads=0)
    config.seed, config.total_steps = seed, _TOKENIZER_STEPS.value
    config.eval_every = config.picture_every = 0
    config.checkpoint_every = _TOKENIZER_STEPS.value
    if not os.path.isfile(os.path.join(workdir, "model.safetensors")):
        tokenizer_training.train_and_evaluate(config, workdir)
    return load_pretrained(workdir)


def _compare_generators(model, window, seed):
    """Trains on all columns, and on the left half alone; measures both."""
    width = _COLUMNS.value * 8
    images, labels = crops(_HEIGHT.value, width, _TRAIN_IMAGES.value, seed, model.class_names)
    latents = np.concatenate([model.encode(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)])
    generator = Generator(
        width=_WIDTH.value,
        depth=2,
        num_heads=4,
        latent_dim=model.tokenizer.embed_dim,
        num_classes=len(model.class_names),
        num_cond_tokens=4,
        window_size=window,
        max_rope_shift=_COLUMNS.value,
        flow_width=_WIDTH.value,
        flow_depth=2,
        dropout_rate=0.0,
    )
    options = dict(steps=_GENERATOR_STEPS.value, batch_size=_BATCH, learning_rate=2e-3, seed=seed)
    batches = latent_batches(model, width, 2000 + seed)
    whole = tasks.train(generator, latents, labels, **options)
    half = tasks.train(generator, latents, labels, columns=range(_COLUMNS.value // 2), **options)
    result = analysis.generator_measures(generator, whole, batches, _WINDOW.value)
    transferred = tasks.column_losses(generator, half, batches, jax.random.key(0))
    right = slice(_COLUMNS.value // 2, None)
    result["transfer_loss"] = transferred.mean.tolist()
    result["transfer_loss_error"] = transferred.error.tolist()
    result["transfer"] = float(transferred.mean[right].mean() / np.mean(result["loss"][right]))
    left = slice(None, _COLUMNS.value // 2)
    result["transfer_trained"] = float(transferred.mean[left].mean() / np.mean(result["loss"][left]))
    return result


if __name__ == "__main__":
    app.run(main)
