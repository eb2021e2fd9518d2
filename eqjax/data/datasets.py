"""Makes data sets of single records from a configuration: the source of images, its crops and its flips.

Images stay uint8 until they are on the device: bytes take a quarter of the transfer of float32, and the division
belongs in the jitted step (images / 127.5 − 1).
"""

from typing import Any, TypeAlias

from absl import logging
import grain
import numpy as np

from eqjax.arguments import check_arguments
from eqjax.config_fields import CONFIG
from eqjax.data import folder, photos, tfds, transforms, webdataset
from eqjax.data.config import check_config, class_names
from eqjax.data.image_source import ImageSource
from eqjax.latent_cache.format import LatentSource, RandomVariant
from eqjax.rules import Boolean
from eqjax.typing import Config, Record

Source: TypeAlias = photos.PhotoSource | ImageSource | LatentSource


@check_arguments(config=CONFIG, train=Boolean())
def make_source(config: Config, train: bool = True) -> Source:
    """Returns the source of whole images that a configuration names.

    Args:
      config: data configuration, see `default_config`.
      train: True for the training images; False for the held-out parts of the photographs, for the images under
        `eval_root`, or for `eval_split`.

    Returns:
      A Grain random-access source of {"image": uint8 [H, W, 3], "label": int}, with `class_names`. The shorter side of
      images from files is already resized. A latent cache gives {"latents": [L, D], "label": int}.

    Raises:
      ValueError: the configuration or the data that it names are invalid.
      FileNotFoundError: the folder does not exist.

    Example:
      >>> from eqjax import data
      >>> source = data.make_source(data.default_config())
      >>> source.class_names[source[9]["label"]]
      'cat'
    """
    check_config(config)
    if config.source == "photos":
        return photos.PhotoSource(train=train, holdout_fraction=config.holdout_fraction, classes=class_names(config))
    if not train and not config.eval_root and config.source != "tfds":
        logging.info("eval_root is not set: evaluating on the training data under %s.", config.root)
    root = config.root if train else config.eval_root or config.root
    if config.source == "latents":
        return LatentSource(root)
    options: dict[str, Any] = dict(
        classes=folder.read_class_file(config.class_file) if config.class_file else class_names(config),
        max_corrupt_fraction=config.max_corrupt_fraction,
        max_pixels=config.max_pixels,
        resize=transforms.ResizeShorterSide(config.resize, config.height, config.width),
        # Evaluation decodes in full, so that its results are comparable with those of other programs.
        draft=config.draft and train,
    )
    if config.source == "tfds":
        return tfds.TfdsSource(root, config.split if train else config.eval_split, **options)
    if config.source == "webdataset":
        return webdataset.WebDatasetSource(root, config.label, **options)
    return folder.FolderSource(root, **options)


def random_crop(config: Config) -> transforms.RandomScaleCrop | transforms.RandomCrop:
    """Returns the random crop of training images, a function (record, rng) → record."""
    if config.source == "photos":
        return transforms.RandomScaleCrop(config.height, config.width, config.min_scale, config.max_scale)
    return transforms.RandomCrop(config.height, config.width)


def train_dataset(config: Config, source: Source, seed: int) -> grain.MapDataset:
    """Returns an endless data set of shuffled records, with another order and other crops in every epoch.

    Args:
      config: data configuration, see `default_config`.
      source: the result of `make_source(config)`.
      seed: seed of the order, the crops and the flips, in [0, 2**32).

    Returns:
      A data set of {"image": uint8 [height, width, 3], "label": int32}; a latent cache gives "latents" [L, D] for
      "image".
    """
    if isinstance(source, LatentSource):
        # Indices of images; the cached variant is drawn at random.
        dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle()
        dataset = dataset.random_map(RandomVariant(source, config.flip))
    else:
        dataset = grain.MapDataset.source(source).seed(seed).shuffle().random_map(random_crop(config))
        if config.flip:
            dataset = dataset.random_map(transforms.RandomFlip())
    return dataset.map(_int32_label).repeat(None)


def eval_dataset(config: Config, source: Source) -> grain.MapDataset:
    """Returns the finite data set of evaluation records, in order and without randomness.

    Args:
      config: data configuration, see `default_config`.
      source: the result of `make_source(config, train=False)`.

    Returns:
      A data set of {"image": uint8 [height, width, 3], "label": int32}: the grid of crops of the photographs, or center
      crops of other images. A latent cache gives "latents" [L, D] for "image", the first variant of every image.
    """
    if isinstance(source, photos.PhotoSource):
        grid = photos.PhotoGrid(source, config.height, config.width, config.min_scale, config.max_scale)
        dataset = grain.MapDataset.source(grid)
    elif isinstance(source, LatentSource):
        dataset = grain.MapDataset.source(source)
    else:
        dataset = grain.MapDataset.source(source).map(transforms.CenterCrop(config.height, config.width))
    return dataset.map(_int32_label)


def _int32_label(record: Record) -> Record:
    return {**record, "label": np.int32(record["label"])}
