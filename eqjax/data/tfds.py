"""Data sets that TensorFlow Datasets has prepared, such as imagenet2012, read without TensorFlow.

They must lie in a format with random access (ArrayRecord). Preparing one needs TensorFlow, once, on any machine:

    tfds build imagenet2012 --file_format=array_record

Images are handed over as they are stored and decoded as those of folders are.
"""

from collections.abc import Iterator, Sequence
import io
import os
import re

from eqjax.data import image_source, transforms

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_INFO = "dataset_info.json"


def find_version(root: str) -> str:
    """Returns the folder of a prepared data set: `root` itself, or its newest version (`root/5.1.0`).

    Raises:
        FileNotFoundError: If there is none.
    """
    if os.path.isfile(os.path.join(root, _INFO)):
        return root
    names = os.listdir(root) if os.path.isdir(root) else []
    versions = [name for name in names if _VERSION.fullmatch(name) and os.path.isfile(os.path.join(root, name, _INFO))]
    if not versions:
        held = f"it holds {', '.join(sorted(names)[:5]) or 'nothing'}" if os.path.isdir(root) else "no such folder"
        raise FileNotFoundError(
            f"root={root!r} is no data set that TensorFlow Datasets prepared ({held}); expected root/{_INFO} or "
            f"root/<version>/{_INFO}, such as tensorflow_datasets/imagenet2012/5.1.0."
        )
    return os.path.join(root, max(versions, key=lambda name: tuple(map(int, name.split(".")))))


def _open_builder(folder: str, split: str):
    """Opens a prepared data set, checked: random access, and a split of that name."""
    import tensorflow_datasets as tfds  # Only here: it takes a second to import, and only this source needs it.

    builder = tfds.builder_from_directory(folder)
    stored = builder.info.file_format
    if stored is None or stored.value not in ("array_record", "parquet"):
        raise ValueError(
            f"{folder} is stored as {stored and stored.value}, which cannot be read in random order; prepare it with "
            f"tfds build {builder.name} --file_format=array_record."
        )
    if split.split("[")[0] not in builder.info.splits:
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(builder.info.splits) or 'none'}.")
    return tfds, builder


class TfdsSource(image_source.ImageSource):
    """Grain source of one split of a prepared image-classification data set.

    Record i is {"image": [H, W, 3] uint8, "label": int}. An image that cannot be decoded is replaced by the nearest
    good record (i + 1, i - 1, i + 2, …) with its own label. Worker processes open the files anew.
    """

    def __init__(
        self,
        root: str,
        split: str = "train",
        classes: Sequence[str] | None = None,
        max_corrupt_fraction: float = 0.01,
        fit: transforms.ResizeShorterSide | None = None,
        draft: bool = False,
    ):
        """Opens the data set.

        Args:
            root: Folder of the data set, or of one version of it.
            split: Name of the split; slices such as "train[:90%]" are allowed.
            classes: All class names in the order that labels are wanted in; the data set's order when None.
            max_corrupt_fraction: Largest tolerated share of undecodable images, in [0, 1).
            fit: Size that images are resized to as they are decoded; their own when None.
            draft: Whether large JPEGs may be halved while they are decoded; see `image_source.decode`.

        Raises:
            FileNotFoundError: If `root` holds no prepared data set.
            ValueError: If its format has no random access, the split is unknown, it has no image or no label, or
                `classes` are not its classes.
        """
        super().__init__(max_corrupt_fraction, fit, draft)
        self.root, self.split = find_version(os.fspath(root)), split
        tfds, builder = _open_builder(self.root, split)
        features = builder.info.features
        kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
        keys = {what: [k for k in features if isinstance(features[k], kind)] for what, kind in kinds.items()}
        for what, found in keys.items():
            if len(found) != 1:
                raise ValueError(f"{self.root} must have one {what} per record; it has the features {dict(features)}.")
        self._image_key, self._label_key = keys["image"][0], keys["label"][0]
        stored = tuple(features[self._label_key].names)
        self.class_names = stored if classes is None else tuple(classes)
        if len(stored) != len(self.class_names) or set(stored) != set(self.class_names):
            odd = sorted(set(stored) ^ set(self.class_names))
            raise ValueError(
                f"classes must name all {len(stored)} classes of {self.root}, in any order; "
                f"{len(self.class_names)} are given, and only one side has {', '.join(odd[:10])}. "
                "A selection of classes is read from a folder of class folders."
            )
        self._labels = [self.class_names.index(name) for name in stored]
        self._records = self._open_records(tfds, builder)
        self._length = len(self._records)

    def _open_records(self, tfds, builder):
        # Images stay the bytes that are stored, for the decoder that all sources share.
        return builder.as_data_source(self.split, decoders={self._image_key: tfds.decode.SkipDecoding()})

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_records": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._records = self._open_records(*_open_builder(self.root, self.split))

    def __len__(self) -> int:
        return self._length

    def path(self, index: int) -> str:
        """Returns where record `index` lies."""
        return f"{self.root}, {self.split}, record {index}"

    def _open(self, index: int) -> tuple[io.BytesIO, int]:
        record = self._records[index]
        return io.BytesIO(record[self._image_key]), self._labels[int(record[self._label_key])]

    def _substitutes(self, index: int) -> Iterator[int]:
        yield from image_source.nearest(index, 0, len(self))
