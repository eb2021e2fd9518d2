r"""Evaluates a generator by FID and related metrics, or a tokenizer by its reconstructions.

    eqjax evaluate generation --weights=model.safetensors --num_images=50000 --guidance_scale=1.5,2,3 \
        --reference=VIRTUAL_imagenet256_labeled.npz --output=outputs/evaluation
    eqjax evaluate reconstruction --weights=photos --data.source=folder --data.root=/path/to/root

"generation" samples images and compares them with reference statistics, one row of results per guidance scale. An
interrupted command resumes when it is run again. "reconstruction" encodes and decodes the data set of --data.…
The metrics need Inception's weights, and LPIPS its own. Without them, --network=none only samples images, for other
evaluation programs (--png, --npz), or measures only PSNR and SSIM. Results are in results.json and table.md under
--output; a later call with other options adds its rows.
"""

import os
from typing import TYPE_CHECKING

from absl import flags, logging
from ml_collections import config_flags

from eqjax.cli.command_line import define_folder, flag_group
from eqjax.cli.model_flags import define_model_flags, load_model
from eqjax.cli.sampling_flags import define_sampling_flags, guidance_scales, sampling_options
from eqjax.data import default_config
from eqjax.progress import announced

if TYPE_CHECKING:
    from eqjax.evaluation import Extractor
    from eqjax.evaluation.results import Result

_NUM_IMAGES = 50_000


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "What"):
        define_model_flags(values)
        flags.DEFINE_integer("num_images", None, f"Number of images; {_NUM_IMAGES} to sample, or the whole data set.",
                             1, flag_values=values)  # fmt: skip
        flags.DEFINE_integer("batch_size", None, "Images at a time on each device; as its memory allows.", 1,
                             flag_values=values)  # fmt: skip
    with flag_group(values, "Metrics"):
        flags.DEFINE_enum("network", "inception", ["inception", "none"], "Feature network.", flag_values=values)
        flags.DEFINE_string("nets_folder", None, "Folder of frozen weights; by default that of `eqjax fetch-weights`.",
                            flag_values=values)  # fmt: skip
        flags.DEFINE_string("reference", None, "Statistics file of `eqjax make-statistics`, or ADM's.",
                            flag_values=values)  # fmt: skip
        flags.DEFINE_integer("num_stored_features", 50_000, "Images whose features KID, precision and recall compare.",
                             0, flag_values=values)  # fmt: skip
        flags.DEFINE_bool("lpips", True, "LPIPS of reconstructions; never with --network=none.",
                          flag_values=values)  # fmt: skip
    with flag_group(values, "Generation"):
        flags.DEFINE_integer("num_columns", None, "Width in columns; by default that of square images.", 1,
                             flag_values=values)  # fmt: skip
        flags.DEFINE_integer("seed", 0, "Seed of all noise.", flag_values=values)
        define_sampling_flags(values, guidance_help="Classifier-free guidance scale, 1 for none; or several.")
    with flag_group(values, "Reconstruction"):
        config_flags.DEFINE_config_dict("data", default_config(), "Images to reconstruct: --data.source, --data.root …",
                                        flag_values=values)  # fmt: skip
    with flag_group(values, "Output"):
        define_folder(values, os.path.join("outputs", "evaluation"), "Folder of images and results.")
        flags.DEFINE_bool("png", False, "Write every sampled image as PNG.", flag_values=values)
        flags.DEFINE_bool("npz", False, "Write samples.npz for ADM's tools: shuffled, with labels.",
                          flag_values=values)  # fmt: skip


def run(args: flags.FlagValues, words: list[str]) -> None:
    """Runs the evaluation that the only word names, "generation" or "reconstruction".

    Raises:
      ValueError: the word is missing or unknown.
    """
    evaluations = {"generation": evaluate_generation, "reconstruction": evaluate_images}
    if len(words) != 1 or words[0] not in evaluations:
        raise ValueError(f"name what to evaluate: {' or '.join(evaluations)}; got {words}.")
    evaluations[words[0]](args)


def make_extractor(args: flags.FlagValues) -> "Extractor | None":
    """Returns the extractor of --network, or None."""
    from eqjax.evaluation import Extractor, networks

    if args.network == "none":
        return None
    with announced("Loading Inception's weights", patience=2.0):
        return Extractor(networks.inception(args.nets_folder), per_device_batch_size=args.batch_size)


def evaluate_generation(args: flags.FlagValues) -> None:
    """Evaluates generated images: a row, and a folder of images, per guidance scale.

    Raises:
      ValueError: flags without effect; options out of their range; another protocol under --output.
    """
    with announced("Loading the libraries", patience=2.0):
        from eqjax.evaluation import GenerationEvaluator, GenerationOptions, results, statistics

    results.load(args.output)  # Rejects a folder of something else before hours of sampling.
    if given := config_flags.get_override_values(args["data"]):
        names = ", ".join(f"--data.{name}" for name in given)
        raise ValueError(
            f"{names}: generation reads no images, and compares with --reference (from `eqjax make-statistics`); "
            "--data.… is for reconstruction."
        )
    scales = list(dict.fromkeys(guidance_scales(args)))
    model = load_model(args)
    tokenizer = model.require("tokenizer")
    num_columns = args.num_columns or tokenizer.resolution // tokenizer.column_width
    sweep = [
        GenerationOptions(
            num_columns=num_columns, seed=args.seed, **sampling_options(args, guidance_scale=scale).to_dict()
        )
        for scale in scales
    ]
    extractor = make_extractor(args)
    reference = statistics.load(args.reference) if args.reference else None
    evaluators = [
        GenerationEvaluator(
            model,
            options,
            args.num_images or _NUM_IMAGES,
            extractor=extractor,
            reference=reference,
            reference_name=args.reference or "",
            per_device_batch_size=args.batch_size,
            write_png=args.png,
            write_npz=args.npz,
            num_stored_features=args.num_stored_features,
        )
        for options in sweep
    ]
    rows: list[Result] = []
    for scale, evaluator in zip(scales, evaluators, strict=True):
        folder = os.path.join(args.output, f"guidance_{scale:g}")
        logging.info("Guidance scale %g: %d images in %s.", scale, args.num_images or _NUM_IMAGES, folder)
        rows.append(evaluator.evaluate(model, folder))
        _save(args, rows)  # After every scale, in case a later one is interrupted.


def evaluate_images(args: flags.FlagValues) -> None:
    """Evaluates reconstructions of the images of --data.….

    Raises:
      ValueError: the model has no tokenizer, or the images do not fit it.
    """
    with announced("Loading the libraries", patience=2.0):
        from eqjax.evaluation import evaluate_reconstruction, image_sets, networks, results, statistics
        from eqjax.evaluation.protocol import device_entries, model_entries

    results.load(args.output)
    model = load_model(args, ["tokenizer"])
    size = args.data.height, args.data.width
    try:
        model.require("tokenizer").check_images((1, *size, 3))
    except ValueError as error:
        raise ValueError(f"--data.height={size[0]} --data.width={size[1]}: {error}") from error
    with announced("Reading the list of images", patience=2.0):
        images = image_sets.from_data(args.data, args.num_images)
    extractor = make_extractor(args)
    metrics = evaluate_reconstruction(
        model,
        images,
        extractor=extractor,
        lpips=networks.lpips(args.nets_folder) if extractor is not None and args.lpips else None,
        reference=statistics.load(args.reference) if args.reference else None,
        per_device_batch_size=args.batch_size,
    )
    protocol = {**model_entries(model), "count": images.count, "source": images.source}
    protocol |= {"image_size": list(size), "rounding": "8 bit", "encoding": "posterior mean", **device_entries()}
    if extractor is not None:
        protocol |= {**extractor.network.protocol_for(size), "reference": args.reference or "the originals"}
    _save(args, [{"metrics": metrics, "protocol": protocol}])


def _save(args: flags.FlagValues, rows: "list[Result]") -> None:
    from eqjax.evaluation import results

    table = results.save(args.output, rows)
    if not any(row["metrics"] for row in rows):
        logging.info(
            "No metric was measured, as --network=none asks: the images are under %s (--png or --npz for other "
            "programs). FID and others need --network=inception and a --reference.",
            os.path.abspath(args.output),
        )
        return
    logging.info("%s:\n%s", os.path.abspath(args.output), table)
