"""The `data` section of a configuration: its fields, their defaults and their validation."""

import ml_collections
from ml_collections import config_dict

from eqjax.image_files import MAX_PIXELS
from eqjax.typing import Config

SOURCES = ("photos", "folder", "webdataset", "tfds", "latents")

_ROOTS = {
    "folder": "the folder that contains root/class_name/image.jpg",
    "webdataset": "a folder of .tar files, or a pattern such as train-{000..146}.tar",
    "tfds": "the folder of a prepared data set, such as tensorflow_datasets/imagenet2012",
    "latents": "a folder written by eqjax cache-latents",
}


def default_config() -> Config:
    """Returns the default data configuration: the built-in photographs in 64 × 64 crops.

    Fields of one source are grouped below; other sources ignore them.

    Example:
      >>> config = default_config()
      >>> config.update(source="folder", root="images/train", eval_root="images/validation")
      >>> config.height, config.width, config.resize = 256, 256, 256
    """
    config = ml_collections.ConfigDict()
    # "photos" (built in, no download), "folder" (root/class_name/image.jpg), "webdataset" (tar files, of others or of
    # eqjax convert-data), "tfds" (prepared by TensorFlow Datasets) or "latents" (written by eqjax cache-latents).
    config.source = "photos"
    # Class names in the order of their labels; see `class_names`. None takes all (photos: photo_classes).
    config.classes = config_dict.placeholder(tuple)
    config.height = 64  # Height of the crops in pixels.
    config.width = 64  # Width of the crops in pixels.
    config.flip = True  # Mirror training images left to right with probability one half.
    config.num_threads = 4  # Reading threads per process (per worker if there are workers); 0 reads on demand.
    # Worker processes per process. Each takes seconds to start; useful for folders on machines with many cores.
    config.num_workers = 0
    # All but photos.
    config.root = config_dict.placeholder(str)  # Folder of the training data.
    config.eval_root = config_dict.placeholder(str)  # Folder of the evaluation data; None evaluates on `root`.
    # Folder, webdataset and TFDS.
    config.class_file = config_dict.placeholder(str)  # Text file with one class (synset) per line, for `classes`.
    config.draft = True  # Let the decoder halve large JPEGs in training; evaluation always decodes in full.
    # The shorter side is resized to this many pixels before the crop; at least the shorter side of the crop.
    config.resize = 64
    # Largest tolerated fraction of corrupt images, in [0, 1); one corrupt image is tolerated unless it is 0.
    config.max_corrupt_fraction = 0.01
    # Largest number of pixels of an image (width × height); larger ones are not decoded and count as corrupt.
    config.max_pixels = MAX_PIXELS
    # Webdataset: extension of the file with a sample's class, or a field of a JSON file, "json.label".
    config.label = "cls"
    # TFDS.
    config.split = "train"  # Split for training.
    config.eval_split = "validation"  # Split for evaluation.
    # Photos.
    config.photo_classes = config_dict.placeholder(tuple)  # Photographs to use if `classes` is None; None takes all.
    config.holdout_fraction = 0.2  # Fraction of each image's width, in [0, 0.5], at its right, kept for evaluation.
    config.min_scale = 0.25  # Smallest crop region, as a fraction in (0, 1] of the largest that fits in the image.
    config.max_scale = 1.0  # Largest crop region, as such a fraction.
    return config


def class_names(config: Config) -> tuple[str, ...] | None:
    """Returns the classes that a configuration selects, in the order of their labels; None selects all.

    Fields that are tuples get one string from a command line, --config.data.classes=ant,bee gives ("ant,bee",); it is
    split at its commas. Numbers become strings, for class folders whose names are numbers.

    Example:
      >>> config = default_config()
      >>> config.classes = ("ant,bee",)
      >>> class_names(config)
      ('ant', 'bee')
    """
    classes = config.classes
    if classes is None and config.source == "photos":
        classes = config.photo_classes
    if classes is None:
        return None
    names = tuple(map(str, classes))
    return tuple(names[0].split(",")) if len(names) == 1 else names


def check_config(config: Config) -> None:
    """Checks the fields of a data configuration.

    Raises:
      ValueError: a field is unknown, missing or out of range.
    """
    if config.source not in SOURCES:
        raise ValueError(f"source={config.source!r} is unknown; choose one of {', '.join(map(repr, SOURCES))}.")
    for name, least in (("height", 1), ("width", 1), ("num_workers", 0), ("num_threads", 0)):
        if config[name] < least:
            raise ValueError(f"{name}={config[name]} must be at least {least}.")
    if config.source == "photos":
        _check_photos(config)
        return
    if not config.root:
        raise ValueError(f"root={config.root!r}: source={config.source!r} needs root, {_ROOTS[config.source]}.")
    if config.source != "latents":
        _check_files(config)


def _check_files(config: Config) -> None:
    if config.classes is not None and config.class_file:
        raise ValueError(f"Set classes={config.classes} or class_file={config.class_file!r}, not both.")
    if config.resize < min(config.height, config.width):
        raise ValueError(
            f"resize={config.resize} must be at least {min(config.height, config.width)}, the shorter side of the "
            f"{config.height} × {config.width} crop."
        )
    if not 0 <= config.max_corrupt_fraction < 1:
        raise ValueError(f"max_corrupt_fraction={config.max_corrupt_fraction} must be in [0, 1).")
    if config.max_pixels < 1:
        raise ValueError(f"max_pixels={config.max_pixels} must be at least 1.")


def _check_photos(config: Config) -> None:
    if not 0 < config.min_scale <= config.max_scale <= 1:
        raise ValueError(
            f"min_scale={config.min_scale} and max_scale={config.max_scale} must satisfy "
            "0 < min_scale <= max_scale <= 1."
        )
    if not 0 <= config.holdout_fraction <= 0.5:
        raise ValueError(f"holdout_fraction={config.holdout_fraction} must be in [0, 0.5].")
