"""The `data` section of a configuration: its fields, their defaults and their validation."""

from collections.abc import Iterator

from eqjax import config_fields
from eqjax.arguments import check_arguments
from eqjax.config_fields import CONFIG, Field, Table
from eqjax.image_files import MAX_PIXELS
from eqjax.rules import Boolean, Choice, Either, Integer, Items, Number, Text
from eqjax.typing import Config

SOURCES = ("photos", "folder", "webdataset", "tfds", "latents")

_ROOTS = {
    "folder": "the folder that contains root/class_name/image.jpg",
    "webdataset": "a folder of .tar files, or a pattern such as train-{000..146}.tar",
    "tfds": "the folder of a prepared data set, such as tensorflow_datasets/imagenet2012",
    "latents": "a folder written by eqjax cache-latents",
}

_TEXT = Text(optional=True, may_be_empty=True)
_FRACTION = Number(above=0, most=1)
# Numbers name class folders too.
_NAMES = Items(Either((Text(), Integer())), least=1, optional=True, none_means="all")

# Fields of one source are grouped; other sources ignore them.
FIELDS: Table = {
    "source": Field(
        "photos",
        Choice(SOURCES),
        "Built-in photographs; root/class_name/image.jpg; tar files (WebDataset, or eqjax convert-data's output); a "
        "prepared TFDS data set; or eqjax cache-latents' output.",
    ),
    "classes": Field(
        None, _NAMES, "Class names in the order of their labels; None: all (of the photographs: photo_classes)."
    ),
    "height": Field(64, Integer(least=1), "Height of the crops, pixels."),
    "width": Field(64, Integer(least=1), "Width of the crops, pixels."),
    "flip": Field(True, Boolean(), "Mirror training images left to right with probability one half."),
    "num_threads": Field(
        4, Integer(least=0), "Reading threads per process (per worker if there are workers); 0 reads on demand."
    ),
    "num_workers": Field(
        None,
        Integer(least=0, optional=True, none_means="by cores"),
        "Worker processes per process; their number changes no batch. None: for files, by cores and images; else 0.",
    ),
    # All but photographs.
    "root": Field(None, _TEXT, "Folder of the training data; not for photographs."),
    "eval_root": Field(None, _TEXT, "Folder of the evaluation data; None evaluates on root."),
    # Folder, webdataset and TFDS.
    "class_file": Field(None, _TEXT, "Text file with one class (synset) per line, instead of classes."),
    "draft": Field(
        True, Boolean(), "Let the decoder halve large JPEGs in training; evaluation always decodes in full."
    ),
    "resize": Field(
        64,
        Integer(least=1),
        "The shorter side is resized to this before the crop, pixels; at least the shorter side of the crop.",
    ),
    "max_corrupt_fraction": Field(
        0.01,
        Number(least=0, below=1),
        "Largest tolerated fraction of corrupt images; one corrupt image is tolerated unless it is 0.",
    ),
    "max_pixels": Field(
        MAX_PIXELS,
        Integer(least=1),
        "Largest number of pixels of an image (width × height); larger ones are not decoded and count as corrupt.",
    ),
    # Webdataset.
    "label": Field(
        "cls", Text(), "Webdataset: extension of the file with a sample's class, or a field of a JSON file, json.NAME."
    ),
    # TFDS.
    "split": Field("train", Text(), "TFDS: split for training."),
    "eval_split": Field("validation", Text(), "TFDS: split for evaluation."),
    # Photos.
    "photo_classes": Field(None, _NAMES, "Photographs to use if classes is None; None takes all."),
    "holdout_fraction": Field(
        0.2, Number(least=0, most=0.5), "Fraction of each photograph's width, at its right, kept for evaluation."
    ),
    "min_scale": Field(
        0.25, _FRACTION, "Photographs: smallest crop region, as a fraction of the largest that fits in the image."
    ),
    "max_scale": Field(1.0, _FRACTION, "Photographs: largest crop region, as such a fraction."),
}


def default_config() -> Config:
    """Returns the default data configuration: the built-in photographs in 64 × 64 crops.

    `FIELDS` says what each field means and may be.

    Example:
      >>> config = default_config()
      >>> config.update(source="folder", root="images/train", eval_root="images/validation")
      >>> config.height, config.width, config.resize = 256, 256, 256
    """
    return config_fields.make(FIELDS)


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


@check_arguments(config=CONFIG)
def check_config(config: Config) -> None:
    """Checks the fields of a data configuration.

    Raises:
      ValueError: fields are unknown, missing, out of range or contradictory; the message names all of them.
    """
    name = "a data configuration"
    config_fields.check(config, FIELDS, name, "data.")
    config_fields.refuse(list(contradictions(config)), name)


def contradictions(config: Config) -> Iterator[str]:
    """Yields a sentence about every pair of fields that do not fit each other; each is in its own range."""
    if config.source == "photos":
        if config.min_scale > config.max_scale:
            yield f"data.min_scale={config.min_scale} must be at most data.max_scale={config.max_scale}."
        return
    if not config.root:
        yield f"data.root={config.root!r}: data.source={config.source!r} needs data.root, {_ROOTS[config.source]}."
    if config.source == "latents":
        return
    if config.classes is not None and config.class_file:
        yield f"set data.classes={config.classes} or data.class_file={config.class_file!r}, not both."
    if config.resize < (side := min(config.height, config.width)):
        yield (
            f"data.resize={config.resize} must be at least {side}, the shorter side of the {config.height} × "
            f"{config.width} crop."
        )
