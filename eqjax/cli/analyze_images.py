"""The images of an analysis: crops of a data set that fits the model, and their latents."""

from typing import TYPE_CHECKING, Any

from absl import flags
from jaxtyping import Int, UInt8
import ml_collections
from ml_collections import config_flags
import numpy as np

from eqjax import data

if TYPE_CHECKING:
    from eqjax.evaluation.tasks import LatentBatch

BATCH_SIZE = 32  # Images in each batch of an analysis.


def photo_config(classes: tuple[str, ...] | None = None) -> ml_collections.ConfigDict:
    """Returns the data configuration for crops of the built-in photographs' training parts."""
    config = data.default_config()
    config.update(min_scale=0.5, classes=classes, num_threads=0)
    return config


def crops(
    config: ml_collections.ConfigDict, height: int, width: int, count: int, seed: int, held_out: bool = False
) -> tuple[UInt8[np.ndarray, "N H W 3"], Int[np.ndarray, "N"]]:
    """Returns random crops of the training images or of held-out ones, and the data source's labels.

    Args:
      config: data configuration.
      height: height of the crops in pixels.
      width: width of the crops in pixels.
      count: number of crops.
      seed: seed of the choice of images and crops.
      held_out: whether the images are those for evaluation.
    """
    config = config.copy_and_resolve_references()
    config.update(height=height, width=width)
    with data.make_iterator(config, batch_size=count, seed=seed, train=not held_out) as batches:
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
    return np.concatenate([model.encode(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)])


def latent_batches(
    model: Any,
    config: ml_collections.ConfigDict,
    labels: Int[np.ndarray, "classes"],
    *,
    num_columns: int,
    num_batches: int,
    seed: int,
) -> "list[LatentBatch]":
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
    images, found = crops(config, model.tokenizer.resolution, width, num_batches * BATCH_SIZE, seed)
    latents = encode(model, images)
    starts = range(0, len(images), BATCH_SIZE)
    return [(latents[i : i + BATCH_SIZE], labels[found[i : i + BATCH_SIZE]]) for i in starts]
