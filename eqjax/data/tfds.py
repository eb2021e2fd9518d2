"""Data sets prepared by TensorFlow Datasets, such as imagenet2012, read without TensorFlow.

They must be stored in a format with random access (ArrayRecord). Preparing one needs TensorFlow, once, on any machine:

    tfds build imagenet2012 --file_format=array_record

Images are read undecoded and use the same decoder as class folders.
"""

from collections.abc import Iterator, Sequence
import io
import os
import re
from typing import Any

from eqjax import extras
from eqjax.addresses import local_path
from eqjax.data import image_source
from eqjax.data.transforms import ResizeShorterSide
from eqjax.image_files import MAX_PIXELS

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_INFO = "dataset_info.json"


def find_version(root: str) -> str:
    """Returns the folder of a prepared data set: `root` itself, or its newest version (`root/5.1.0`).

    Raises:
      FileNotFoundError: there is no prepared data set.
      ValueError: the root is an address such as gs://bucket/data.
    """
    if os.path.isfile(os.path.join(local_path(root, "root"), _INFO)):
        return root
    names = os.listdir(root) if os.path.isdir(root) else []
    versions = [name for name in names if _VERSION.fullmatch(name) and os.path.isfile(os.path.join(root, name, _INFO))]
    if not versions:
        found = f"it contains {', '.join(sorted(names)[:5]) or 'nothing'}" if os.path.isdir(root) else "no such folder"
        raise FileNotFoundError(
            f"root={root!r} is not a data set prepared by TensorFlow Datasets ({found}); expected root/{_INFO} or "
            f"root/<version>/{_INFO}, such as tensorflow_datasets/imagenet2012/5.1.0."
        )
    return os.path.join(root, max(versions, key=lambda name: tuple(map(int, name.split(".")))))


class TfdsSource(image_source.ImageSource):
    """Grain source of one split of a prepared image-classification data set.

    Record i is {"image": uint8 [H, W, 3], "label": int}. A corrupt image is replaced by the nearest record that can be
    decoded (i + 1, i - 1, i + 2, …), with the label of that record. Worker processes reopen the files.

    Attributes:
      root: folder of the version of the data set.
      split: name of the split.
    """

    root: str
    split: str

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        classes: Sequence[str] | None = None,
        max_corrupt_fraction: float = 0.01,
        resize: ResizeShorterSide | None = None,
        draft: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Opens the data set.

        Args:
          root: folder of the data set, or of one version of it.
          split: name of the split; slices such as "train[:90%]" are allowed.
          classes: all class names in the order of their labels; None keeps the order of the data set.
          max_corrupt_fraction: largest tolerated fraction of corrupt images, in [0, 1).
          resize: the size that images are resized to during decoding; None keeps their size.
          draft: whether large JPEGs may be halved during decoding; see `image_files.decode`.
          max_pixels: largest number of pixels of an image; larger ones count as corrupt.

        Raises:
          FileNotFoundError: `root` contains no prepared data set.
          ValueError: the format has no random access, the split is unknown, records do not have one image and one
            label, or `classes` are not the classes of the data set.
        """
        super().__init__(max_corrupt_fraction, resize, draft, max_pixels)
        self.root, self.split = find_version(os.fspath(root)), split
        tfds, builder = _open_builder(self.root, split)
        features = builder.info.features
        kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
        keys = {name: [k for k in features if isinstance(features[k], kind)] for name, kind in kinds.items()}
        for name, found in keys.items():
            if len(found) != 1:
                raise ValueError(f"{self.root} must have one {name} per record; it has the features {dict(features)}.")
        self._image_key, self._label_key = keys["image"][0], keys["label"][0]
        stored = tuple(features[self._label_key].names)
        self.class_names = stored if classes is None else tuple(classes)
        if len(stored) != len(self.class_names) or set(stored) != set(self.class_names):
            differing = sorted(set(stored) ^ set(self.class_names))
            raise ValueError(
                f"classes must name all {len(stored)} classes of {self.root}, in any order; "
                f"{len(self.class_names)} are given, and only one side has {', '.join(differing[:10])}. "
                "To train on some of the classes, use a folder of class folders."
            )
        self._labels = [self.class_names.index(name) for name in stored]
        self._records = self._open_records(tfds, builder)
        self._length = len(self._records)

    def _open_records(self, tfds: Any, builder: Any) -> Any:
        # Images keep their stored bytes, for the decoder that all sources share.
        return builder.as_data_source(self.split, decoders={self._image_key: tfds.decode.SkipDecoding()})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_records": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._records = self._open_records(*_open_builder(self.root, self.split))

    def __len__(self) -> int:
        return self._length

    def path(self, index: int) -> str:
        """Returns the folder, split and index of a record, for messages."""
        return f"{self.root}, {self.split}, record {index}"

    def _open(self, index: int) -> tuple[io.BytesIO, int]:
        record = self._records[index]
        return io.BytesIO(record[self._image_key]), self._labels[int(record[self._label_key])]

    def _substitutes(self, index: int) -> Iterator[int]:
        yield from image_source.nearest(index, 0, len(self))


def _open_builder(folder: str, split: str) -> tuple[Any, Any]:
    """Returns the module tensorflow_datasets and the builder of a prepared data set.

    Raises:
      ModuleNotFoundError: tensorflow_datasets is not installed.
      ValueError: the format has no random access, or there is no split of that name.
    """
    extras.require("tensorflow_datasets", "source='tfds' reads data sets of TensorFlow Datasets")
    import tensorflow_datasets as tfds  # Imported here because it takes a second and only this source needs it.

    builder = tfds.builder_from_directory(folder)
    stored = builder.info.file_format
    if stored is None or stored.value not in ("array_record", "parquet"):
        raise ValueError(
            f"{folder} is stored as {stored and stored.value}, which has no random access; prepare it with "
            f"tfds build {builder.name} --file_format=array_record."
        )
    if split.split("[")[0] not in builder.info.splits:
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(builder.info.splits) or 'none'}.")
    return tfds, builder
