r"""Evaluates a model with the field's metrics.

Images of a generator, compared with reference statistics; the same command goes on after a kill:

    python -m eqjax.cli.evaluate generation --weights=model.safetensors --output=outputs/evaluation \
        --num_images=50000 --guidance=1.5,2,3 --num_flow_steps=100 --reference=VIRTUAL_imagenet256_labeled.npz

Reconstructions of a tokenizer over a data set (`--data.…` as in training configurations):

    python -m eqjax.cli.evaluate reconstruction --weights=photos --output=outputs/reconstruction \
        --data.source=folder --data.root=/path/to/root --data.height=256 --data.width=256 --data.resize=256

Metrics need Inception's weights (and LPIPS its own); without them, --network=none draws images to evaluate
elsewhere (--png, --npz), or measures PSNR and SSIM alone. Results: results.json and table.md under --output; a
later call with other settings adds its rows.
"""

import os

from absl import app, flags, logging
from ml_collections import config_flags

from eqjax import flow, load_pretrained
from eqjax.cli import runner
from eqjax.data import default_config
from eqjax.evaluation import (
    Extractor,
    GenerationEvaluator,
    GenerationOptions,
    evaluate_reconstruction,
    image_sets,
    networks,
    results,
    statistics,
)
from eqjax.evaluation.protocol import device_entries, weights_id


def define_flags(values=flags.FLAGS, argv=None):
    """Defines the command's flags; `argv` is where --data.… are looked for, sys.argv without it."""
    flags.DEFINE_list(
        "weights", ["photos"], "A shipped model's name, or weights files and workdirs, in order.", flag_values=values
    )
    flags.DEFINE_string(
        "output", os.path.join("outputs", "evaluation"), "Folder for images and results.", flag_values=values
    )
    flags.DEFINE_integer(
        "num_images", None, "Images; 50000 to generate, the whole set to reconstruct.", 1, flag_values=values
    )
    flags.DEFINE_integer("batch_per_device", 16, "Images that a device takes at a time.", 1, flag_values=values)
    flags.DEFINE_enum("network", "inception", ["inception", "none"], "Features of the metrics.", flag_values=values)
    flags.DEFINE_string(
        "nets_folder", None, "Where frozen weights lie; as eqjax.nets.load without it.", flag_values=values
    )
    flags.DEFINE_string(
        "reference", None, "Statistics file; made by eqjax.cli.make_statistics, or ADM's.", flag_values=values
    )
    flags.DEFINE_integer(
        "num_stored_features", 50_000, "Images whose features KID, precision and recall compare.", 0, flag_values=values
    )

    flags.DEFINE_integer(
        "num_columns", None, "Width in columns; as many as make images square without it.", 1, flag_values=values
    )
    flags.DEFINE_list("guidance", ["1"], "Guidance scales; several are a sweep, a row each.", flag_values=values)
    flags.DEFINE_enum("guidance_schedule", "linear", flow.SCHEDULES, "Guidance over columns.", flag_values=values)
    flags.DEFINE_integer("num_flow_steps", 100, "Flow steps per column.", 1, flag_values=values)
    flags.DEFINE_enum("solver", "euler", flow.SOLVERS, "Of the flow; heun evaluates twice a step.", flag_values=values)
    flags.DEFINE_enum("time_grid", "uniform", flow.TIME_GRIDS, "Where the steps lie.", flag_values=values)
    flags.DEFINE_float("temperature", 1.0, "Scale of the initial noise.", 0.0, flag_values=values)
    flags.DEFINE_integer(
        "max_position", None, "Cross-attention's positions stop here; none as published.", 0, flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "Of all noise.", flag_values=values)
    flags.DEFINE_bool("png", False, "Also write every image as PNG.", flag_values=values)
    flags.DEFINE_bool(
        "npz", False, "Also write samples.npz as ADM's tools read it: shuffled, labels inside.", flag_values=values
    )

    flags.DEFINE_bool("lpips", True, "Measure LPIPS of reconstructions; not with --network=none.", flag_values=values)
    config_flags.DEFINE_config_dict(
        "data", default_config(), "Images to reconstruct.", flag_values=values, sys_argv=argv
    )


def main(argv):
    """Runs the part of evaluation that the first argument names."""
    parts = {"generation": generation, "reconstruction": reconstruction}
    if len(argv) != 2 or argv[1] not in parts:
        raise app.UsageError(f"say what to evaluate: {' or '.join(parts)}; got {argv[1:]}.")
    runner.finish(lambda: parts[argv[1]](flags.FLAGS))


def make_extractor(args):
    """The `Extractor` of `--network`, or None."""
    if args.network == "none":
        return None
    return Extractor(networks.inception(args.nets_folder), per_device_batch_size=args.batch_per_device)


def generation(args):
    """A row per guidance scale; images of each lie in a folder of its own."""
    results.load(args.output)  # Refuses a folder of something else before hours of drawing.
    if given := config_flags.get_override_values(args["data"]):
        names = ", ".join(f"--data.{name}" for name in given)
        raise ValueError(
            f"{names}: generation reads no images, and compares with --reference (from eqjax.cli.make_statistics); "
            "--data.… is of reconstruction."
        )
    model = load_pretrained(*args.weights)
    tokenizer, num_images = model.require("tokenizer"), args.num_images or 50_000
    sweep = [
        GenerationOptions(
            num_columns=args.num_columns or tokenizer.resolution // tokenizer.column_width,
            guidance_scale=scale,
            guidance_schedule=args.guidance_schedule,
            num_flow_steps=args.num_flow_steps,
            solver=args.solver,
            time_grid=args.time_grid,
            temperature=args.temperature,
            max_position=args.max_position,
            seed=args.seed,
        )
        for scale in dict.fromkeys(_number(text) for text in args.guidance)
    ]
    options = dict(
        extractor=make_extractor(args),
        reference=statistics.load(args.reference) if args.reference else None,
        reference_name=args.reference or "",
        per_device_batch_size=args.batch_per_device,
        write_png=args.png,
        write_npz=args.npz,
        num_stored_features=args.num_stored_features,
    )
    evaluators = [GenerationEvaluator(model, settings, num_images, **options) for settings in sweep]
    found = []
    for evaluator in evaluators:
        folder = os.path.join(args.output, f"guidance_{evaluator.options.guidance_scale:g}")
        found.append(evaluator.evaluate(model, folder))
        _save(args, found)  # After every scale, in case a later one is interrupted.


def reconstruction(args):
    """One row."""
    results.load(args.output)
    config, model = args.data, load_pretrained(*args.weights)
    model.require("tokenizer")
    images = image_sets.from_data(config, args.num_images)
    extractor = make_extractor(args)
    metrics = evaluate_reconstruction(
        model,
        images,
        extractor=extractor,
        lpips=networks.lpips(args.nets_folder) if extractor is not None and args.lpips else None,
        reference=statistics.load(args.reference) if args.reference else None,
        per_device_batch_size=args.batch_per_device,
    )
    size = config.height, config.width
    protocol = {"weights": weights_id(model), "count": images.count, "source": images.source}
    protocol |= {"image_size": list(size), "rounding": "8 bit", "encoding": "posterior mean", **device_entries()}
    if extractor is not None:
        protocol |= {**extractor.network.protocol_for(size), "reference": args.reference or "the originals"}
    _save(args, [{"metrics": metrics, "protocol": protocol}])


def _save(args, found):
    logging.info("%s:\n%s", os.path.abspath(args.output), results.save(args.output, found))


def _number(text):
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--guidance takes numbers, not {text!r}.") from None


if __name__ == "__main__":
    define_flags()
    app.run(main)
