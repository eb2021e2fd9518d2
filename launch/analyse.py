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

import json
import os

from absl import app, flags, logging
import jax
import numpy as np

from configs import common, photos_tokenizer
from eqjax import Generator, atomic, data, load_pretrained
from eqjax.evaluation import equivariance, plots, tasks
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
_MAX_SHIFT = 32


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
        result |= _generator_measures(model.generator, model.generator_params, latent_batches(model, width, 2000))
    _draw(output, {"model": [result]})


def _tokenizer_measures(model, width, seed):
    images, _ = crops(model.tokenizer.resolution, width + _MAX_SHIFT, 2 * _BATCH, seed, model.class_names)
    found = equivariance.shift_errors(model, images, np.arange(1, _MAX_SHIFT + 1), width)
    maps = equivariance.footprints(model, images[:_BATCH, :, :width])
    column = model.tokenizer.column_width
    middle = found.errors[:, 1 : _COLUMNS.value // 2]  # Away from the borders, and with a partner inside.
    return {
        "psnr": found.psnr,
        "column_width": column,
        "shift_errors": found.errors.tolist(),
        "shift_error_column": float(middle[column - 1].mean()),
        "shift_error_half": float(middle[column // 2 - 1].mean()),
        "shift_error_unrelated": found.unrelated,
        "footprint": maps.sum(1).tolist(),
        "footprint_map": maps[len(maps) // 2].tolist(),
        "footprint_share": equivariance.footprint_shares(maps, column),
    }


def _generator_measures(generator, params, batches):
    losses = tasks.column_losses(generator, params, batches, jax.random.key(0))
    conflict, ceiling = tasks.gradient_cosines(generator, params, batches, jax.random.key(1))
    return {
        "loss": losses.mean.tolist(),
        "loss_error": losses.error.tolist(),
        "cosines": conflict.mean.tolist(),
        "cosines_error": conflict.error.tolist(),
        "cosine": float(tasks.off_diagonal(conflict.mean)),
        # Columns after the first window, whose contexts are of one length.
        "cosine_inner": float(tasks.off_diagonal(conflict.mean[_WINDOW.value :, _WINDOW.value :])),
        "cosine_ceiling": float(np.diag(ceiling.mean).mean()),
    }


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
                    _write_json(path, measures | _compare_generators(model, kinds[kind][1], seed) | _flags())
                results[kind].append(_read_result(path))
                logging.info("seed %d, %s: %s", seed, kind, _summary(results[kind][-1]))
    _draw(output, results)


def _flags():
    names = (_HEIGHT, _COLUMNS, _CHANNELS, _TOKENIZER_STEPS, _WIDTH, _WINDOW, _GENERATOR_STEPS, _BATCHES, _TRAIN_IMAGES)
    return {"flags": {flag.name: flag.value for flag in names}}


def _read_result(path):
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    if result["flags"] != _flags()["flags"]:
        raise ValueError(f"{path} was measured with {result['flags']}, now {_flags()['flags']}: give another --output.")
    return result


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
    result = _generator_measures(generator, whole, batches)
    transferred = tasks.column_losses(generator, half, batches, jax.random.key(0))
    right = slice(_COLUMNS.value // 2, None)
    result["transfer_loss"] = transferred.mean.tolist()
    result["transfer_loss_error"] = transferred.error.tolist()
    result["transfer"] = float(transferred.mean[right].mean() / np.mean(result["loss"][right]))
    left = slice(None, _COLUMNS.value // 2)
    result["transfer_trained"] = float(transferred.mean[left].mean() / np.mean(result["loss"][left]))
    return result


# ── Results ─────────────────────────────────────────────────────────────────────────────────────

# Of the table, in order; errors under shifts never stand without PSNR.
_TABLE = {
    "psnr": "PSNR, dB",
    "shift_error_column": "shift by a column",
    "shift_error_half": "by half a column",
    "shift_error_unrelated": "unrelated pictures",
    "footprint": "own pixels",
    "cosine": "cosine",
    "cosine_inner": "cosine, full windows",
    "cosine_ceiling": "ceiling",
    "spread": "loss spread",
    "transfer": "transfer",
    "transfer_trained": "trained half",
}


def _summary(result):
    """{name of `_TABLE`: number} of one seed; only what was measured."""
    found = {name: result[name] for name in _TABLE if isinstance(result.get(name), float)}
    found["footprint"] = {int(reach): share for reach, share in result["footprint_share"].items()}[0]
    if "loss" in result:
        found["spread"] = float(np.std(result["loss"]) / np.mean(result["loss"]))
    return {name: found[name] for name in _TABLE if name in found}


def _draw(output, results):
    """Writes results.json, table.md, and CSV and PNG per measure; `results` is {kind: [one dict per seed]}."""
    _write_json(os.path.join(output, "results.json"), results)
    table = _table(results)
    with atomic.replacing(os.path.join(output, "table.md")) as temporary, open(temporary, "w") as file:
        file.write(table)
    _draw_shifts(output, results)
    _draw_footprints(output, results)
    if all("loss" in seeds[0] for seeds in results.values()):
        _draw_losses(output, results)
        _draw_cosines(output, results)
    logging.info("Wrote %s:\n%s", os.path.abspath(output), table)


def _table(results):
    rows = {kind: [_summary(result) for result in seeds] for kind, seeds in results.items()}
    names = [name for name in _TABLE if any(name in row[0] for row in rows.values())]
    lines = ["| | " + " | ".join(_TABLE[name] for name in names) + " |", "| --- " * (len(names) + 1) + "|"]
    for kind, seeds in rows.items():
        cells = [_mean_and_deviation([row[name] for row in seeds], name) for name in names]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean_and_deviation(values, name):
    digits = 1 if name == "psnr" else 3
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def _styles(results):
    """Results of tokenizers alone: one kind per style, as both of its generators share it."""
    return {kind.split(",")[0]: seeds for kind, seeds in results.items()}


def _over_seeds(seeds, name):
    """Mean over seeds, and what its error bar is: of batches for one seed, of seeds for more."""
    values = np.array([result[name] for result in seeds], np.float64)
    if len(seeds) > 1:
        return values.mean(0), values.std(0, ddof=1)
    return values[0], np.array(seeds[0][f"{name}_error"]) if f"{name}_error" in seeds[0] else None


def _draw_shifts(output, results):
    series, table = {}, {}
    for style, seeds in _styles(results).items():
        errors, _ = _over_seeds(seeds, "shift_errors")  # [shifts, columns]
        psnr = np.mean([result["psnr"] for result in seeds])
        with_partner = np.nanmean(errors[:, 1:-1], axis=1) if errors.shape[1] > 2 else np.nanmean(errors, axis=1)
        shifts = np.arange(1, len(errors) + 1)
        series[f"{style} (PSNR {psnr:.1f} dB)"] = shifts, with_partner, None
        table |= {"shift": shifts} | {f"{style}, column {k}": errors[:, k] for k in range(errors.shape[1])}
    plots.write_csv(os.path.join(output, "shifts.csv"), table)
    texts = dict(x_label="shift, pixels", y_label="error over the latents' RMS")
    plots.lines(os.path.join(output, "shifts.png"), series, title="Latents of shifted pictures", **texts)


def _draw_footprints(output, results):
    panels, table = {}, {}
    for style, seeds in _styles(results).items():
        rows, _ = _over_seeds(seeds, "footprint")  # [columns, pixels]
        panels[style] = np.log10(rows + 1e-6)
        table |= {"pixel": np.arange(rows.shape[1])} | {f"{style}, column {k}": row for k, row in enumerate(rows)}
    plots.write_csv(os.path.join(output, "footprints.csv"), table)
    texts = dict(x_label="pixel", y_label="column that is replaced")
    plots.maps(os.path.join(output, "footprints.png"), panels, title="Share of the change, log10", **texts)


def _draw_losses(output, results):
    series, table = {}, {}
    for kind, seeds in results.items():
        for name, text in (("loss", "all columns trained"), ("transfer_loss", "left half trained")):
            if name not in seeds[0]:
                continue
            mean, error = _over_seeds(seeds, name)
            table |= {"column": np.arange(len(mean)), f"{kind}, {text}": mean, f"{kind}, {text}, error": error}
            # In units of the model's own mean: losses of different tokenizers have different units.
            scale = np.mean(_over_seeds(seeds, "loss")[0])
            series[f"{kind}, {text}"] = np.arange(len(mean)), mean / scale, error / scale
    plots.write_csv(os.path.join(output, "losses.csv"), table)
    texts = dict(x_label="column", y_label="loss over the mean, all trained")
    plots.lines(os.path.join(output, "losses.png"), series, title="Loss per column", **texts)


def _draw_cosines(output, results):
    panels, table = {}, {}
    for kind, seeds in results.items():
        mean, error = _over_seeds(seeds, "cosines")
        panels[kind] = mean
        first, second = np.triu_indices(len(mean), 1)
        table |= {"column": first, "other": second, kind: mean[first, second]}
        table |= {f"{kind}, error": error[first, second]}
    plots.write_csv(os.path.join(output, "cosines.csv"), table)
    texts = dict(x_label="column", y_label="column", limits=(0, 1))
    plots.maps(os.path.join(output, "cosines.png"), panels, title="Cosine between gradients of columns", **texts)


def _write_json(path, values):
    with atomic.replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(values, file)


if __name__ == "__main__":
    app.run(main)
