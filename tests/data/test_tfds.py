"""Prepared TFDS directories, read without TensorFlow."""

import io
import json
import pickle
import sys

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
from PIL import Image
import pytest

from eqjax.data import TfdsSource, default_config, eval_batches, make_source

NAMES = ("ant", "bee", "cow")


def _jpeg(value):
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (value, value, value)).save(file, "JPEG")
    return file.getvalue()


def write_dataset(folder, splits, file_format="array_record"):
    """Writes {split: [(encoded image, label)]} as TFDS does, without TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=NAMES),
            "file_name": tfds.features.Text(),
        }
    )
    features.save_config(str(folder))
    infos = []
    for split, records in splits.items():
        writer = ArrayRecordWriter(str(folder / f"toy-{split}.array_record-00000-of-00001"), "group_size:1")
        for i, (image, label) in enumerate(records):
            example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]  # Made at run time.
            example.features.feature["image"].bytes_list.value.append(image)
            example.features.feature["label"].int64_list.value.append(label)
            example.features.feature["file_name"].bytes_list.value.append(f"{i}.jpg".encode())
            writer.write(example.SerializeToString())
        writer.close()
        infos.append(
            {
                "name": split,
                "shardLengths": [str(len(records))],
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    info = {"name": "toy", "version": folder.name, "fileFormat": file_format, "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.fixture(name="root", scope="module")
def _root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds") / "toy"
    train = [(_jpeg(value), label) for value, label in ((10, 0), (110, 1), (210, 2), (20, 0))]
    train[1] = (train[1][0][:100], 1)  # A corrupt image.
    write_dataset(root / "1.9.0", {"train": train[:1]})
    write_dataset(root / "1.10.0", {"train": train, "validation": [(_jpeg(150), 2)]})
    return root


def _value(record):
    return int(record["image"].mean().round()), record["label"]


def test_newest_version_is_read_without_tensorflow(root):
    source = TfdsSource(root)
    assert source.root.endswith("1.10.0") and source.class_names == NAMES and len(source) == 4
    assert _value(source[0]) == (10, 0) and _value(source[3]) == (20, 0)
    assert source[0]["image"].shape == (16, 20, 3) and source[0]["image"].dtype == np.uint8
    assert _value(source[1]) == (210, 2) and source.num_corrupt == 1  # The neighbor, with its own label.
    assert "tensorflow" not in sys.modules


def test_pickled_source_keeps_its_slice_and_order_of_classes(root):
    source = pickle.loads(pickle.dumps(TfdsSource(root, "train[2:]", classes=("cow", "bee", "ant"))))
    assert [_value(source[i]) for i in range(len(source))] == [(210, 0), (20, 2)]


def test_version_can_be_chosen(root):
    assert len(TfdsSource(root / "1.9.0")) == 1


def test_configuration_selects_split_and_crop(root):
    config = default_config()
    config.update(source="tfds", root=str(root), height=8, width=8, resize=10, num_threads=0)
    assert make_source(config)[0]["image"].shape == (10, 12, 3)
    (batch,) = eval_batches(config, batch_size=1, process_index=0, process_count=1)
    assert batch["image"].shape == (1, 8, 8, 3) and batch["label"].tolist() == [2]


def test_missing_root_is_named(root):
    with pytest.raises(FileNotFoundError, match=r"no_such' is not a data set .*no such folder.*imagenet2012/5\.1\.0"):
        TfdsSource(root / "no_such")


def test_root_without_a_prepared_data_set_is_refused(tmp_path):
    (tmp_path / "n01440764").mkdir()
    with pytest.raises(FileNotFoundError, match="it contains n01440764"):
        TfdsSource(tmp_path)


def test_unknown_split_is_named(root):
    with pytest.raises(ValueError, match="has no split 'test'; it has train, validation"):
        TfdsSource(root, "test")


def test_classes_must_be_those_of_the_data_set(root):
    with pytest.raises(ValueError, match="all 3 classes .*; 2 are given, and only one side has bee, cow, dog"):
        TfdsSource(root, classes=("ant", "dog"))


def test_format_without_random_access_is_refused(tmp_path):
    write_dataset(tmp_path / "2.0.0", {"train": []}, file_format="tfrecord")
    with pytest.raises(ValueError, match="stored as tfrecord, .* tfds build toy --file_format=array_record"):
        TfdsSource(tmp_path)
