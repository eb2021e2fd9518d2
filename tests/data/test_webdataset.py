"""WebDataset archives: samples, classes, order, corrupt images, and messages about what is missing."""

import json
import os
import pickle
from typing import Any

import numpy as np
import pytest

from eqjax.data import WebDatasetSource, default_config, make_iterator, make_source
from tests.data import image_files, tar_files


def values(source):
    return [image_files.value(source[i]) for i in range(len(source))]


def labels(source, indices=None):
    return [source[i]["label"] for i in (range(len(source)) if indices is None else indices)]


@pytest.fixture(name="root")
def _root(tmp_path):
    """Two archives of classes 0, 2, 0 and 1, 1, 2, with gray values 0, 10, …, 50."""
    tar_files.write(tmp_path / "b-001.tar", tar_files.samples([1, 1, 2], 3))
    tar_files.write(tmp_path / "b-000.tar", tar_files.samples([0, 2, 0], json="{}"))
    (tmp_path / "notes.txt").write_text("no archive")
    return tmp_path


def test_samples_are_in_the_order_of_archives_and_files(root):
    source = WebDatasetSource(root)
    assert values(source) == [0, 10, 20, 30, 40, 50] and labels(source) == [0, 2, 0, 1, 1, 2]
    assert source.class_names == ("0", "1", "2") and source.num_corrupt == 0
    assert source[0]["image"].shape == (16, 20, 3) and source[0]["image"].dtype == np.uint8


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("b-000.tar", 3), ("b-*.tar", 6), ("b-{000..001}.tar", 6), ("b-00{1..1}.tar", 3)],
)
def test_a_root_may_be_a_file_or_a_pattern(root, pattern, expected):
    assert len(WebDatasetSource(root / pattern)) == expected


def test_names_of_classes_are_in_a_file_beside_numbers(root):
    (root / "class_names.json").write_text('["ant", "bee, the", "cow", "dog"]')
    assert WebDatasetSource(root).class_names == ("ant", "bee, the", "cow", "dog")
    chosen = WebDatasetSource(root, classes=("cow", "ant"))
    assert chosen.class_names == ("cow", "ant") and labels(chosen) == [1, 0, 1, 0] and values(chosen) == [0, 10, 20, 50]


def test_classes_may_be_names(tmp_path):
    tar_files.write(tmp_path / "a.tar", tar_files.samples(["dog", "a cat", "dog"]))
    source = WebDatasetSource(tmp_path)
    assert source.class_names == ("a cat", "dog") and labels(source) == [1, 0, 1]


def test_classes_may_be_a_field_of_json(tmp_path):
    files = {}
    for number, label in enumerate([3, "1", 0]):
        files |= {f"x/{number}.PNG": tar_files.png(number), f"x/{number}.json": json.dumps({"a": {"b": label}})}
    tar_files.write(tmp_path / "a.tar", files)
    assert labels(WebDatasetSource(tmp_path, "json.a.b")) == [3, 1, 0]
    with pytest.raises(ValueError, match=r"3 of 3 samples have no class in label='json.a', .* consist of .png, .json"):
        WebDatasetSource(tmp_path, "json.a")


def test_a_corrupt_image_is_replaced_by_the_nearest_of_its_class(tmp_path, caplog):
    files = tar_files.samples([0, 1, 1, 0, 1])
    files["0003.png"] = files["0003.png"][:40]
    tar_files.write(tmp_path / "a.tar", files)
    source = WebDatasetSource(tmp_path)
    assert values(source) == [0, 10, 20, 0, 40] and labels(source) == [0, 1, 1, 0, 1]
    assert source.num_corrupt == 1 and "a.tar, 0003.png" in caplog.text
    assert list(source._substitutes(2))[:2] == [1, 4]


def test_a_large_image_is_corrupt(root):
    source = WebDatasetSource(root, max_pixels=319, max_corrupt_fraction=0.9)
    with pytest.raises(ValueError, match="6 of 6 images.*tolerates 5"):
        source[0]


def test_other_files_and_samples_without_images_are_left_out(tmp_path, caplog):
    files = tar_files.samples([0, 1], **{"seg.png": b"no image", "txt": "a caption"})
    tar_files.write(tmp_path / "a.tar", {"README": "x", **files, "0007.cls": "1", "._0001.png": b"x"})
    assert len(WebDatasetSource(tmp_path)) == 2 and "left out 1 samples without an image" in caplog.text


def test_an_archive_that_is_replaced_while_it_is_read_ends_the_run(root):
    """Its images would get the labels of others."""
    source = WebDatasetSource(root, max_corrupt_fraction=0.9)
    source[0]
    path, size = root / "b-000.tar", (root / "b-000.tar").stat().st_size
    tar_files.write(path, tar_files.samples([2, 0, 2], json="{}"))
    os.utime(path, ns=(0, 0))
    assert path.stat().st_size == size  # Every image is where another one was.
    with pytest.raises(OSError, match=r"b-000.tar was replaced or changed after its images were listed; start again"):
        source[1]
    assert labels(source, range(3, 6)) == [1, 1, 2]


def test_a_pickled_source_reads_the_same_records(root):
    assert values(pickle.loads(pickle.dumps(WebDatasetSource(root)))) == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"0.txt": "a", "0.cls": "1"}, r"has no images: its samples consist of .txt, .cls; expected one of .jpg"),
        ({}, "has no images: its samples consist of no files"),
        ({"0.png": "x", "0.json": "{}"}, r"1 of 1 samples have no class in label='cls', such as .*a\.tar, '0'"),
        ({"0.png": "x", "0.cls": "1", "1.png": "x"}, "1 of 2 samples have no class"),
        ({"0.png": "x", "0.cls": " "}, "1 of 1 samples have no class"),
        ({"0.png": "x", "0.jpg": "x", "0.cls": "1"}, r"the sample '0' has several images \(png, jpg\)"),
        ({"0.png": "x", "0.cls": "-1"}, "1 samples have a class outside 0 … 999999, such as -1; negative"),
        ({"0.png": "x", "0.cls": "1" * 9}, "a class outside 0 … 999999, such as 111111111"),
        ({"0.png": "x", "0.cls": "1" * (2 << 20)}, "'0.cls' should hold a class, and has 2097152 bytes"),
    ],
)
def test_samples_that_do_not_fit_are_named(tmp_path, files, message):
    tar_files.write(tmp_path / "a.tar", files)
    with pytest.raises(ValueError, match=message):
        WebDatasetSource(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(classes=("0", "7")), r"classes=\('0', '7'\) must be one or more different classes of .*; it has 0, 1, 2"),
        (dict(classes=("0", "0")), "different classes"),
        (dict(label="json"), "label='json' must be an extension such as 'cls', or a field such as 'json.label'"),
        (dict(label="cls.x"), "label='cls.x' must be"),
    ],
)
def test_bad_arguments_are_named(root, options, message):
    with pytest.raises(ValueError, match=message):
        WebDatasetSource(root, **options)


def test_names_must_cover_the_numbers(root):
    (root / "class_names.json").write_text('["ant", "bee"]')
    with pytest.raises(ValueError, match="2 samples have a class outside 0 … 1, such as 2"):
        WebDatasetSource(root)
    (root / "class_names.json").write_text('{"ant": 0}')
    with pytest.raises(ValueError, match=r"class_names\.json must be a list of different names"):
        WebDatasetSource(root)


def test_missing_archives_are_named(tmp_path, root):
    for pattern in ("absent", "c-*.tar", "b-{000..002}.tar"):
        with pytest.raises(FileNotFoundError, match="there is no such archive"):
            WebDatasetSource(root / pattern)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no .tar files; decompress a.tar.gz"):
        WebDatasetSource(tmp_path / "other")
    (tmp_path / "other" / "a.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="holds Parquet files; convert them once: eqjax convert-data"):
        WebDatasetSource(tmp_path / "other")


@pytest.fixture(name="config")
def _config(root):
    config = default_config()
    config.update(source="webdataset", root=str(root), height=8, width=8, resize=10, num_threads=0)
    return config


def take(config, count, state=None, process=(0, 1), num_workers=0):
    config.num_workers = num_workers
    options: Any = dict(batch_size=4, seed=0, process_index=process[0], process_count=process[1])
    with make_iterator(config, **options) as batches:
        if state is not None:
            batches.set_state(json.loads(json.dumps(state)))
        return [next(batches) for _ in range(count)], batches.get_state()


def test_a_configuration_selects_and_crops(config):
    config.classes = ("2,0",)
    source = make_source(config)
    assert source.class_names == ("2", "0") and source[0]["image"].shape == (10, 12, 3)


def test_batches_resume_on_other_processes_bit_for_bit(config):
    uncut, _ = take(config, 5)
    _, state = take(config, 2, process=(1, 2))
    parts = [take(config, 3, state, process=(index, 2))[0] for index in range(2)]
    for whole, *shards in zip(uncut[2:], *parts, strict=True):
        for name in whole:
            joined = np.stack([shard[name] for shard in shards], axis=1).reshape(whole[name].shape)
            np.testing.assert_array_equal(joined, whole[name])
    assert len({batch["image"].tobytes() for batch in uncut}) == 5  # Shuffled, not the same batch again.


def test_workers_read_the_same_batches(config):
    for alone, worker in zip(take(config, 2)[0], take(config, 2, num_workers=1)[0], strict=True):
        np.testing.assert_array_equal(alone["image"], worker["image"])
