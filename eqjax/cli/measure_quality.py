r"""Compares samples and reconstructions of a model of a few classes with real images, without downloaded networks.

    eqjax measure-quality --weights=photos --guidance_scale=1.25 --guidance_schedule=constant
    eqjax measure-quality --weights=runs/generator --data.source=folder --data.root=/path/to/root

Every row of the table is a set of images, measured against the same real crops of the training images:

  PSNR        of reconstructions, dB
  energy      power per octave of spatial frequency over that of real crops, coarse to fine, in the median class
  border      roughness at column borders over that of real crops, in the class where it is farthest from 1
  middle      the same at the middles of columns
  recognized  images that a classifier trained on the real crops, and on blurred and noisy ones, takes for their class
  diversity   mean distance of two images of a class over that of two real ones; near 0 they are all alike
  Fréchet     distance to the real crops in a fixed space of filter responses; not comparable with FID

"real" are other crops of the training images, "held out" the data's evaluation images. The reconstructions of both are
compared with their originals. The measures of every class are in quality.json.
"""

import os
from typing import TYPE_CHECKING, Any

from absl import flags, logging
from ml_collections import config_flags
import numpy as np

from eqjax import data
from eqjax.cli.analyze_images import model_images, photo_config
from eqjax.cli.command_line import define_folder, flag_group
from eqjax.cli.model_flags import define_model_flags, load_model
from eqjax.cli.sampling_flags import define_sampling_flags, sampling_options
from eqjax.progress import ProgressLogger, announced

if TYPE_CHECKING:
    from eqjax.evaluation.quality import LabeledImages, Quality
    from eqjax.model import Model

_BATCH_SIZE = 32


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "What"):
        define_model_flags(values)
        config_flags.DEFINE_config_dict("data", photo_config(), "Images: --data.source, --data.root …",
                                        flag_values=values)  # fmt: skip
        flags.DEFINE_integer("num_columns", 8, "Width of the images in columns.", 2, flag_values=values)
        flags.DEFINE_integer("num_images", 64, "Images per class, in every row.", 2, flag_values=values)
        flags.DEFINE_integer("seed", 0, "Seed of crops and samples.", 0, flag_values=values)
    with flag_group(values, "Samples"):
        define_sampling_flags(values)
    with flag_group(values, "Output"):
        define_folder(values, os.path.join("outputs", "quality"), "Folder of the table and of quality.json.")


def run(args: flags.FlagValues) -> None:
    """Measures the model, logs the table, and writes table.md and quality.json.

    Raises:
      ValueError: the model has no tokenizer or no generator; the data's classes or size do not fit it.
      ModuleNotFoundError: scikit-learn is missing.
    """
    with announced("Loading the libraries", patience=2.0):
        from eqjax.evaluation.quality import LabeledImages, QualityReference
        from eqjax.evaluation.results import json_values
    from eqjax.io import atomic_write, write_json

    options = sampling_options(args).to_dict()
    model = load_model(args)
    tokenizer = model.require("tokenizer")
    config, labels = model_images(args, model)
    assert labels is not None  # There is a generator.
    height, width = tokenizer.resolution, args.num_columns * tokenizer.column_width
    count = args.num_images * len(labels)

    config.update(height=height, width=width)
    with announced("Measuring real images", patience=2.0):
        reference = QualityReference(_train_crops(config, args.num_images, 2 * args.seed), tokenizer.column_width)
        real, held_out = _train_crops(config, args.num_images, 2 * args.seed + 1), _held_out(config, count)
        rows = {"real": reference.measure(real), "held out": reference.measure(held_out)}
    psnr: dict[str, float] = {}
    for name, originals in (("reconstructed", real), ("reconstructed, held out", held_out)):
        with announced(f"Compiling, and measuring {name} images", patience=2.0):
            images, psnr[name] = _reconstruct(model, originals.images)
            rows[name] = reference.measure(LabeledImages(images, originals.labels), paired=originals)
    classes = np.repeat(np.arange(len(labels)), args.num_images)
    samples, progress = [], ProgressLogger("samples", count)
    for start in range(0, count, _BATCH_SIZE):
        seed = int(np.random.SeedSequence([args.seed, start]).generate_state(1)[0])
        batch = labels[classes[start : start + _BATCH_SIZE]]
        samples.append(np.asarray(model.sample(batch, num_columns=args.num_columns, seed=seed, **options)))
        progress.update(len(batch))
    with announced("Measuring samples", patience=2.0):
        rows["samples"] = reference.measure(LabeledImages(np.concatenate(samples), classes))

    names = data.make_source(config).class_names
    text = _table(rows, psnr)
    values = {name: _values(quality, names, psnr.get(name)) for name, quality in rows.items()}
    document = {"weights": args.weights, "num_images": args.num_images, "num_columns": args.num_columns}
    document |= {"seed": args.seed, "sampling": options, "sets": values}
    write_json(os.path.join(args.output, "quality.json"), json_values(document))
    with atomic_write(os.path.join(args.output, "table.md")) as path, open(path, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    logging.info("Wrote %s:\n%s", os.path.abspath(args.output), text)


def _train_crops(config: Any, num_images: int, seed: int) -> "LabeledImages":
    """Returns `num_images` random crops of every class of the training images.

    Raises:
      ValueError: a class is so rare that a hundred times as many images hold too few of it.
    """
    from eqjax.evaluation.quality import LabeledImages

    num_classes = len(data.make_source(config).class_names)
    kept: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
    with data.make_iterator(config, batch_size=_BATCH_SIZE, seed=seed) as batches:
        for _ in range(100 * num_classes * num_images // _BATCH_SIZE + 1):
            batch = next(batches)
            for image, label in zip(batch["image"], batch["label"], strict=True):
                if len(kept[label]) < num_images:
                    kept[label].append(image)
            if all(len(images) == num_images for images in kept):
                break
        else:
            raise ValueError(
                f"--num_images={num_images}: too few images of some classes, {[len(images) for images in kept]}; "
                "choose classes with --data.classes, or lower --num_images."
            )
    return LabeledImages(np.concatenate(kept), np.repeat(np.arange(num_classes), num_images))


def _held_out(config: Any, count: int) -> "LabeledImages":
    """Returns at most `count` images of the data's evaluation part."""
    from eqjax.evaluation.quality import LabeledImages

    batches = [*data.eval_batches(config, batch_size=_BATCH_SIZE, num_images=count)]
    images, labels = (np.concatenate([batch[name][batch["mask"]] for batch in batches]) for name in ("image", "label"))
    found = LabeledImages(images, labels)
    rare = np.bincount(labels)[labels] < 2  # A distance between images needs two.
    return found if not rare.any() else LabeledImages(images[~rare], labels[~rare])


def _reconstruct(model: "Model", images: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the reconstructions, uint8, and their mean PSNR."""
    from eqjax import pixels
    from eqjax.evaluation.image_metrics import psnr

    found: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    for start in range(0, len(images), _BATCH_SIZE):
        batch = images[start : start + _BATCH_SIZE]
        found.append(np.asarray(model.decode(model.encode(batch))))
        scores.append(np.asarray(psnr(pixels.from_uint8(batch), pixels.from_uint8(found[-1]))))
    return np.concatenate(found), float(np.concatenate(scores).mean())


def _table(rows: dict[str, Any], psnr: dict[str, float]) -> str:
    from eqjax.tables import markdown_table

    cells = [
        [
            name,
            f"{psnr[name]:.2f}" if name in psnr else "",
            " ".join(f"{kept:.2f}" for kept in np.asarray(quality.median("energy_kept"))),
            f"{quality.farthest('border'):.2f}",
            f"{quality.farthest('middle'):.2f}",
            f"{quality.mean('recognized'):.1%}",
            f"{quality.mean('diversity'):.2f}",
            f"{quality.frechet:.2f}",
        ]
        for name, quality in rows.items()
    ]
    return markdown_table(["images", "PSNR", "energy", "border", "middle", "recognized", "diversity", "Fréchet"], cells)


def _values(quality: "Quality", names: tuple[str, ...], psnr: float | None) -> dict[str, Any]:
    """Returns the measures as JSON values."""
    classes = {
        names[label]: {
            "energy_kept": [round(float(kept), 4) for kept in found.energy_kept],
            **{name: round(getattr(found, name), 4) for name in ("border", "middle", "recognized", "diversity")},
        }
        for label, found in quality.classes.items()
    }
    return {"psnr": psnr, "frechet": round(quality.frechet, 4), "classes": classes}
