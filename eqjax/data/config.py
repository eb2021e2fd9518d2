"""The data part of a configuration: its fields, their defaults and their check."""

import ml_collections
from ml_collections import config_dict

SOURCES = ("photos", "folder", "tfds", "latents")

_ROOTS = {
    "folder": "the folder that holds root/class_name/image.jpg",
    "tfds": "the folder of a prepared data set, such as tensorflow_datasets/imagenet2012",
    "latents": "the folder that eqjax.cli.cache_latents wrote",
}


def default_config() -> ml_collections.ConfigDict:
    """Returns the data configuration with its defaults: the built-in photographs in 64 × 64 crops.

    Fields that belong to one source say so; the other source does not read them.
    """
    config = ml_collections.ConfigDict()
    # "photos" (built in, no download), "folder" (root/class_name/image.jpg), "tfds" (prepared by TensorFlow Datasets)
    # or "latents" (made by eqjax.cli.cache_latents).
    config.source = "photos"
    # Class names in the order of their labels, "ant,bee" on a command line; None takes all (photos: photo_classes).
    config.classes = config_dict.placeholder(tuple)
    config.height = 64  # Of the crops, pixels.
    config.width = 64  # Of the crops, pixels.
    config.flip = True  # Mirror training images left to right with probability one half.
    config.num_threads = 4  # Reading threads per process (per worker where there are workers); 0 reads only when asked.
    # Worker processes per process. Each takes seconds to start: for folders on machines with many cores.
    config.num_workers = 0
    # Folder, TFDS, latents.
    config.root = config_dict.placeholder(str)  # Folder of the data, for training.
    config.eval_root = config_dict.placeholder(str)  # The same, for evaluation; None evaluates on `root`.
    # Folder and TFDS.
    config.class_file = config_dict.placeholder(str)  # Text file with a class (synset) per line, instead of `classes`.
    config.draft = True  # Let the decoder halve large JPEGs; for training only, evaluation decodes in full.
    # Pixels that the shorter side is brought to before the crop; at least the shorter side of the crop.
    config.resize = 64
    # Largest tolerated share of undecodable files, in [0, 1); one file is tolerated unless it is 0.
    config.max_corrupt_fraction = 0.01
    # TFDS.
    config.split = "train"  # For training.
    config.eval_split = "validation"  # For evaluation.
    # Photos.
    config.photo_classes = config_dict.placeholder(tuple)  # Which of them where `classes` is None; None takes all.
    config.holdout = 0.2  # Fraction, in [0, 0.5], of each image's width, at its right, that only evaluation sees.
    config.min_scale = 0.25  # Smallest crop region, as a fraction in (0, 1] of the largest that fits in the image.
    config.max_scale = 1.0  # Largest crop region, likewise.
    return config


def class_names(config: ml_collections.ConfigDict) -> tuple[str, ...] | None:
    """Returns the classes that a configuration asks for, in the order of their labels; None for all.

    A command line cannot quote a list with ease: it hands over ("ant,bee",), or numbers for folders of such names.
    """
    classes = config.classes
    if classes is None:
        return config.photo_classes if config.source == "photos" else None
    names = tuple(map(str, classes))
    return tuple(names[0].split(",")) if len(names) == 1 else names


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks a data configuration.

    Raises:
        ValueError: If a field is out of range; the message names the field, its value and what is allowed.
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


def _check_files(config: ml_collections.ConfigDict) -> None:
    if config.classes is not None and config.class_file:
        raise ValueError(f"Give classes={config.classes} or class_file={config.class_file!r}, not both.")
    if config.resize < min(config.height, config.width):
        raise ValueError(
            f"resize={config.resize} must be at least {min(config.height, config.width)}, the shorter side of the "
            f"{config.height} × {config.width} crop."
        )
    if not 0 <= config.max_corrupt_fraction < 1:
        raise ValueError(f"max_corrupt_fraction={config.max_corrupt_fraction} must lie in [0, 1).")


def _check_photos(config: ml_collections.ConfigDict) -> None:
    if not 0 < config.min_scale <= config.max_scale <= 1:
        raise ValueError(
            f"min_scale={config.min_scale} and max_scale={config.max_scale} must satisfy "
            "0 < min_scale <= max_scale <= 1."
        )
    if not 0 <= config.holdout <= 0.5:
        raise ValueError(f"holdout={config.holdout} must lie in [0, 0.5].")
