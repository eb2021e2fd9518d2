"""Twelve photographs that come with scikit-image and scikit-learn: a data set that needs no download.

Each image is one class. Its right-most part is held out: training crops come from the left part, evaluation crops
from the right part, so the two never share a pixel column. The images are read with Pillow from the installed
packages' folders; neither package is imported. They take 13 MB decoded and are decoded once per process.
"""

from collections.abc import Sequence
import dataclasses
import functools
import importlib.util
import os

import numpy as np
from PIL import Image

from eqjax.data import transforms


@dataclasses.dataclass(frozen=True)
class Photo:
    """Where an image lies in an installed package, and which part of it is used.

    Attributes:
        package: Import name of the package that ships it.
        path: Path inside the package's folder.
        box: (left, top, right, bottom) in pixels of the part used; None for the whole image.
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
    "coffee": Photo("skimage", "data/coffee.png"),
    "cat": Photo("skimage", "data/chelsea.png"),
    "rocket": Photo("skimage", "data/rocket.jpg"),
    "pagoda": Photo("sklearn", "datasets/images/china.jpg"),
    "flower": Photo("sklearn", "datasets/images/flower.jpg"),
}
# Those with something to recognize at 64 pixels: the classes of the shipped model.
DEMO_CLASSES = ("brick", "galaxies", "tissue", "retina", "coffee", "cat", "rocket", "flower")


def _package_folder(package: str) -> str:
    """Finds the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"The built-in photographs come with scikit-image and scikit-learn, "
            f"and {_PIP_NAMES[package]} is not installed. "
            "Install both: pip install scikit-image scikit-learn"
        )
    return spec.submodule_search_locations[0]


@functools.cache
def load_photo(name: str) -> np.ndarray:
    """Loads a built-in photograph [H, W, 3] uint8 RGB (300–960 pixels high), read-only, decoded once per process.

    Args:
        name: A key of PHOTOS.

    Raises:
        ModuleNotFoundError: If the package that ships the image is not installed.
        FileNotFoundError: If the package is installed without the image.
    """
    photo = PHOTOS[name]
    path = os.path.join(_package_folder(photo.package), photo.path)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{path} is missing: this build of {_PIP_NAMES[photo.package]} comes without the image. "
            f"Install the published one: pip install --force-reinstall {_PIP_NAMES[photo.package]}"
        )
    with Image.open(path) as picture:
        image = np.array(picture.convert("RGB"))
    if photo.box is not None:
        image = np.ascontiguousarray(transforms.crop(image, photo.box))
    image.setflags(write=False)  # The cache hands the same array to everyone.
    return image


class PhotoSource:
    """Grain source of the photographs' training parts, or of their held-out parts.

    Record i is the whole part of image i modulo the number of classes; crops are drawn from it by a later
    transform. So an epoch is as long as one says, and every class has the same share of it.
    """

    def __init__(
        self,
        train: bool = True,
        holdout: float = 0.2,
        epoch_length: int | None = None,
        classes: Sequence[str] | None = None,
    ):
        """Makes the source.

        Args:
            train: True for the left parts, False for the held-out right parts.
            holdout: Fraction, in [0, 0.5], of each image's width that is held out at the right.
            epoch_length: Number of records; 100 per class when None. Best a multiple of the number of classes.
            classes: Names from PHOTOS, in the order of their labels; all, in the order of PHOTOS, when None.

        Raises:
            ValueError: If a name is unknown or given twice, `holdout` is out of range, or nothing is held out and
                `train` is False.
        """
        self.class_names = tuple(PHOTOS if classes is None else classes)
        unknown = [name for name in self.class_names if name not in PHOTOS]
        if unknown or not self.class_names or len(set(self.class_names)) < len(self.class_names):
            raise ValueError(
                f"classes={self.class_names} must be one or more different names of built-in photographs: "
                f"{', '.join(PHOTOS)}."
            )
        if not 0 <= holdout <= 0.5:
            raise ValueError(
                f"holdout={holdout} must lie in [0, 0.5]: the fraction of each image's width kept for evaluation."
            )
        if not train and holdout == 0:
            raise ValueError(
                "holdout=0 leaves nothing to evaluate on: give the held-out fraction of the width, such as 0.2."
            )
        if epoch_length is not None and epoch_length < 1:
            raise ValueError(f"epoch_length={epoch_length} must be at least 1 record.")
        self.train = train
        self.holdout = holdout
        self._length = 100 * len(self.class_names) if epoch_length is None else epoch_length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> transforms.Record:
        label = int(index) % len(self.class_names)
        image = load_photo(self.class_names[label])
        # Both parts round the same boundary, so they share no column and lose none.
        boundary = image.shape[1] - round(self.holdout * image.shape[1])
        return {"image": image[:, :boundary] if self.train else image[:, boundary:], "label": label}


class PhotoGrid:
    """Grain source of a fixed list of crops [height, width, 3] uint8, at several scales, class after class.

    It serves evaluation: the same crops in every run (see `transforms.region_grid`). With the default 0.2 of the
    width held out it lists 199 crops of 64 × 64 pixels, and 51 of 256 × 256, whose regions must be larger to stay
    sharp.
    """

    def __init__(self, source: PhotoSource, height: int, width: int, min_scale: float, max_scale: float):
        """Lists the crops; arguments as in `transforms.region_height_bounds`."""
        self.class_names = source.class_names
        self._size = (height, width)
        self._source = source
        self._crops = []  # (label, box)
        for label in range(len(source.class_names)):
            rows, columns = source[label]["image"].shape[:2]
            boxes = transforms.region_grid(rows, columns, height, width, min_scale, max_scale)
            self._crops.extend((label, box) for box in boxes)

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> transforms.Record:
        label, box = self._crops[index]
        image = transforms.crop(self._source[label]["image"], box)
        return {"image": transforms.resize(image, *self._size), "label": label}
