"""Thirteen photographs that scikit-image and scikit-learn install: a data set that needs no download.

Each image is one class. Its right-most part is held out: training crops come from the left part, evaluation crops
from the right part, so they share no pixels. The images are read with Pillow from the folders of the installed
packages; neither package is imported. They take 13 MB decoded and are decoded once per process.
"""

from collections.abc import Sequence
import dataclasses
import functools
import importlib.util
import operator
import os
from typing import SupportsIndex

from jaxtyping import UInt8
import numpy as np

from eqjax import extras, image_files
from eqjax.data import transforms
from eqjax.typing import Record


@dataclasses.dataclass(frozen=True)
class Photo:
    """The file of an image in an installed package.

    Attributes:
      package: import name of the package that ships it.
      path: path inside the folder of the package.
      box: part of the image to use, (left, top, right, bottom) in pixels; None uses the whole image.
    """

    package: str
    path: str
    box: transforms.Box | None = None


_PIP_NAMES = {"skimage": "scikit-image", "sklearn": "scikit-learn"}

# Textures (brick to tissue) look alike in both parts of the image; scenes (coffee to flower) are told apart by
# color. Images of people and of text that the packages also ship are left out: mirroring spoils text, and
# generated faces serve no purpose here.
PHOTOS: dict[str, Photo] = {
    "brick": Photo("skimage", "data/brick.png"),
    "grass": Photo("skimage", "data/grass.png"),
    "gravel": Photo("skimage", "data/gravel.png"),
    "moon": Photo("skimage", "data/moon.png"),
    "galaxies": Photo("skimage", "data/hubble_deep_field.jpg"),
    "tissue": Photo("skimage", "data/ihc.png"),
    # A disc on black, 1411 pixels wide. The inscribed square leaves no black corner, in either part.
    "retina": Photo("skimage", "data/retina.jpg", box=(225, 225, 1185, 1185)),
    "coins": Photo("skimage", "data/coins.png"),
    "coffee": Photo("skimage", "data/coffee.png"),
    "cat": Photo("skimage", "data/chelsea.png"),
    "rocket": Photo("skimage", "data/rocket.jpg"),
    "pagoda": Photo("sklearn", "datasets/images/china.jpg"),
    "flower": Photo("sklearn", "datasets/images/flower.jpg"),
}
# Photographs with a recognizable subject at 128 pixels: the classes of the shipped model.
DEMO_CLASSES = ("brick", "galaxies", "tissue", "coins", "coffee", "cat", "rocket", "pagoda", "flower")


@functools.cache
def load_photo(name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a built-in photograph (RGB, 300–960 pixels high), read-only and decoded once per process.

    Args:
      name: a key of PHOTOS.

    Raises:
      ModuleNotFoundError: the package that ships the image is not installed.
      FileNotFoundError: the package is installed without the image.

    Example:
      >>> load_photo("cat").shape
      (300, 451, 3)
    """
    photo = PHOTOS[name]
    path = os.path.join(package_folder(photo.package), photo.path)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{path} is missing: this build of {_PIP_NAMES[photo.package]} comes without the image. "
            f"Install the published one: pip install --force-reinstall {_PIP_NAMES[photo.package]}"
        )
    image = image_files.read(path)
    if photo.box is not None:
        image = np.ascontiguousarray(transforms.crop(image, photo.box))
    image.setflags(write=False)  # All callers get the same array.
    return image


class PhotoSource:
    """Grain source of the training parts of the photographs, or of their held-out parts.

    Record i is the whole part of image i modulo the number of classes; a later transform draws crops from it. The
    epoch length is configurable and classes are balanced.

    Attributes:
      class_names: names of the labels.
      train: whether the records are the training parts.
      holdout_fraction: held-out fraction of each image's width.
    """

    class_names: tuple[str, ...]
    train: bool
    holdout_fraction: float

    def __init__(
        self,
        train: bool = True,
        holdout_fraction: float = 0.2,
        epoch_length: int | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Selects photographs; they are decoded when they are first read.

        Args:
          train: True for the left parts, False for the held-out right parts.
          holdout_fraction: fraction of each image's width, in [0, 0.5], that is held out at the right.
          epoch_length: number of records, ideally a multiple of the number of classes; None takes 100 per class.
          classes: names from PHOTOS in the order of their labels; None takes all, in the order of PHOTOS.

        Raises:
          ModuleNotFoundError: a package that ships the photographs is not installed.
          ValueError: a name is unknown or repeated, `holdout_fraction` is out of range, or `train` is False and nothing
            is held out.
        """
        self.class_names = tuple(PHOTOS if classes is None else classes)
        unknown = [name for name in self.class_names if name not in PHOTOS]
        if unknown or not self.class_names or len(set(self.class_names)) < len(self.class_names):
            raise ValueError(
                f"classes={self.class_names} must be one or more different names of built-in photographs: "
                f"{', '.join(PHOTOS)}."
            )
        if not 0 <= holdout_fraction <= 0.5:
            raise ValueError(
                f"holdout_fraction={holdout_fraction} must be in [0, 0.5]: it is the fraction of each image's width "
                "kept for evaluation."
            )
        if not train and holdout_fraction == 0:
            raise ValueError(
                "holdout_fraction=0 leaves nothing to evaluate on; set the held-out fraction of the width, such as 0.2."
            )
        if epoch_length is not None and epoch_length < 1:
            raise ValueError(f"epoch_length={epoch_length} must be at least 1 record.")
        for package in {PHOTOS[name].package for name in self.class_names}:
            package_folder(package)  # A missing package is told now, not after minutes of compiling.
        self.train = train
        self.holdout_fraction = holdout_fraction
        self._length = 100 * len(self.class_names) if epoch_length is None else epoch_length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> Record:
        label = operator.index(index) % len(self.class_names)
        image = load_photo(self.class_names[label])
        # Both parts round to the same boundary, so they share no pixel and lose none.
        boundary = image.shape[1] - round(self.holdout_fraction * image.shape[1])
        return {"image": image[:, :boundary] if self.train else image[:, boundary:], "label": label}


class PhotoGrid:
    """Grain source of a fixed list of crops [height, width, 3] uint8, at several scales, class after class.

    It serves evaluation: the crops are the same in every run (see `transforms.region_grid`). With the default
    holdout_fraction of 0.2 it lists 210 crops of 64 × 64 pixels, and 54 of 256 × 256, whose regions must be larger to
    stay sharp.

    Attributes:
      class_names: names of the labels.
    """

    class_names: tuple[str, ...]

    def __init__(self, source: PhotoSource, height: int, width: int, min_scale: float, max_scale: float) -> None:
        """Lists the crops.

        Args:
          source: the photographs.
          height: height of the crops in pixels.
          width: width of the crops in pixels.
          min_scale: smallest region, as in `transforms.region_height_bounds`.
          max_scale: largest region, as in `transforms.region_height_bounds`.
        """
        self.class_names = source.class_names
        self._size = (height, width)
        self._source = source
        self._crops: list[tuple[int, transforms.Box]] = []  # (label, box)
        for label in range(len(source.class_names)):
            image_height, image_width = source[label]["image"].shape[:2]
            boxes = transforms.region_grid(image_height, image_width, height, width, min_scale, max_scale)
            self._crops.extend((label, box) for box in boxes)

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: SupportsIndex) -> Record:
        label, box = self._crops[operator.index(index)]
        image = transforms.crop(self._source[label]["image"], box)
        return {"image": transforms.resize(image, *self._size), "label": label}


def package_folder(package: str) -> str:
    """Returns the folder of an installed package that ships images, without importing it.

    Args:
      package: "skimage" or "sklearn".

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    extras.require(package, "the built-in photographs come with scikit-image and scikit-learn")
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return spec.submodule_search_locations[0]
