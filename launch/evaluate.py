r"""Evaluates a model with the field's metrics.

Images of a generator, compared with reference statistics; the same command goes on after a kill:

    python -m launch.evaluate generation --weights=model.safetensors --output=outputs/evaluation \
        --num_images=50000 --guidance=1.5,2,3 --num_flow_steps=100 --reference=VIRTUAL_imagenet256_labeled.npz

Reconstructions of a tokenizer over a data set (`--data.…` as in training configurations):

    python -m launch.evaluate reconstruction --weights=photos --output=outputs/reconstruction \
        --data.source=folder --data.root=/path/to/root --data.height=256 --data.width=256 --data.resize=256

Metrics need Inception's weights (and LPIPS its own); without them, --network=none draws images to evaluate
elsewhere (--png, --npz), or measures PSNR and SSIM alone. Results: results.json and table.md under --output.
"""

import os

from absl import app, flags, logging
from ml_collections import config_flags

from eqjax import load_pretrained
from eqjax.data import default_config
from eqjax.evaluation import Extractor, Settings, evaluate_reconstruction, images, inception, report, statistics
from eqjax.evaluation.generation import fingerprint
from launch import runner

_WEIGHTS = flags.DEFINE_list("weights", ["photos"], "A shipped model's name, or weights files and workdirs, in order.")
_OUTPUT = flags.DEFINE_string("output", os.path.join("outputs", "evaluation"), "Folder for images and results.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", None, "Images; 50000 to generate, the whole set to reconstruct.", 1)
_ROWS = flags.DEFINE_integer("batch_per_device", 16, "Images that a device takes at a time.", 1)
_NETWORK = flags.DEFINE_enum("network", "inception", ["inception", "none"], "Features of the metrics.")
_NETS = flags.DEFINE_string("nets_folder", None, "Where frozen weights lie; as eqjax.nets.load without it.")
_REFERENCE = flags.DEFINE_string("reference", None, "Statistics file; made by launch.make_statistics, or ADM's.")
_KEEP = flags.DEFINE_integer("keep_features", 50_000, "Images whose features KID, precision and recall compare.", 0)

_COLUMNS = flags.DEFINE_integer("num_columns", None, "Width in columns; as many as make pictures square without it.", 1)
_GUIDANCE = flags.DEFINE_list("guidance", ["1"], "Guidance scales; several are a sweep, a row each.")
_SCHEDULE = flags.DEFINE_string("guidance_schedule", "linear", "Guidance over columns: linear or constant.")
_STEPS = flags.DEFINE_integer("num_flow_steps", 100, "Flow steps per column.", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Scale of the initial noise.", 0.0)
_SAMPLER = flags.DEFINE_list("sampler", [], "Further arguments of eqjax.sample_latents, as name=value.")
_SEED = flags.DEFINE_integer("seed", 0, "Of all noise.")
_PNG = flags.DEFINE_bool("png", False, "Also write every image as PNG.")
_NPZ = flags.DEFINE_bool("npz", False, "Also write samples.npz as ADM's tools read it: shuffled, labels inside.")

_LPIPS = flags.DEFINE_bool("lpips", True, "Measure LPIPS of reconstructions; not with --network=none.")
_DATA = config_flags.DEFINE_config_dict("data", default_config(), "Pictures to reconstruct.")


def main(argv):
    """Runs the part of evaluation that the first argument names."""
    parts = {"generation": generation, "reconstruction": reconstruction}
    if len(argv) != 2 or argv[1] not in parts:
        raise app.UsageError(f"say what to evaluate: {' or '.join(parts)}; got {argv[1:]}.")
    runner.set_up()
    try:
        results = parts[argv[1]](load_pretrained(*_WEIGHTS.value))
    except (ValueError, OSError, FloatingPointError) as error:
        logging.error("%s", error)
        raise SystemExit(1) from error
    logging.info("%s:\n%s", os.path.abspath(_OUTPUT.value), report.save(_OUTPUT.value, results))


def make_extractor():
    """The `Extractor` of `--network`, or None."""
    if _NETWORK.value == "none":
        return None
    return Extractor(inception.inception(_NETS.value), rows_per_device=_ROWS.value)


def generation(model):
    """A row per guidance scale; images of each lie in a folder of its own."""
    if model.generator is None or model.tokenizer is None:
        raise ValueError(f"generation needs a tokenizer and a generator; {_WEIGHTS.value} hold only one of them.")
    extractor = make_extractor()
    reference = statistics.load(_REFERENCE.value) if _REFERENCE.value else None
    columns = _COLUMNS.value or model.tokenizer.resolution // model.tokenizer.column_width
    results = []
    for text in _GUIDANCE.value:
        settings = Settings(
            num_columns=columns,
            guidance_scale=_number(text, "guidance"),
            guidance_schedule=_SCHEDULE.value,
            num_flow_steps=_STEPS.value,
            temperature=_TEMPERATURE.value,
            seed=_SEED.value,
            more=dict(_pair(item) for item in _SAMPLER.value),
        )
        result = report.evaluate_generation(
            model,
            settings,
            _NUM_IMAGES.value or 50_000,
            os.path.join(_OUTPUT.value, f"guidance_{settings.guidance_scale:g}"),
            extractor=extractor,
            reference=reference,
            reference_name=_REFERENCE.value or "",
            rows_per_device=_ROWS.value,
            png=_PNG.value,
            npz=_NPZ.value,
            keep=_KEEP.value,
        )
        results.append(result)
        report.save(_OUTPUT.value, results)  # What there is so far, should a later scale be cut off.
    return results


def reconstruction(model):
    """One row."""
    config = _DATA.value
    pictures = images.from_data(config, _NUM_IMAGES.value)
    extractor = make_extractor()
    metrics = evaluate_reconstruction(
        model,
        pictures,
        extractor=extractor,
        lpips=inception.lpips(_NETS.value) if extractor is not None and _LPIPS.value else None,
        reference=statistics.load(_REFERENCE.value) if _REFERENCE.value else None,
        rows_per_device=_ROWS.value,
    )
    size = config.height, config.width
    protocol = {"weights": fingerprint(model), "count": metrics.pop("count"), "source": pictures.source}
    protocol |= {"image_size": list(size), "rounding": "8 bit", "encoding": "posterior mean"}
    if extractor is not None:
        protocol |= {**extractor.network.protocol_for(size), "reference": _REFERENCE.value or "the originals"}
    return [{"metrics": metrics, "protocol": protocol}]


def _number(text, name):
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--{name} takes numbers, not {text!r}.") from None


def _pair(item):
    """(name, value) of "name=value", numbers as numbers."""
    name, sign, value = item.partition("=")
    if not sign:
        raise ValueError(f"--sampler takes name=value, not {item!r}.")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            pass
    return name, value


if __name__ == "__main__":
    app.run(main)
