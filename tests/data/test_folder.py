"""Class folders: labels, layouts, and messages about what is missing."""

import logging
import os
import pickle
import re

import numpy as np
import pytest

from eqjax.data import FolderSource, folder
from tests.data import image_files


def test_classes_and_files_are_sorted(class_folders):
    source = FolderSource(class_folders)
    assert source.class_names == ("ant", "bee", "cow") and len(source) == 7
    assert [image_files.value(source[i]) for i in range(7)] == [10, 20, 30, 110, 120, 130, 210]
    assert [source[i]["label"] for i in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert source[0]["image"].shape == (16, 20, 3) and source[0]["image"].dtype == np.uint8
    assert source.num_corrupt == 0


def test_class_list_sets_the_labels(class_folders):
    source = FolderSource(class_folders, classes=("cow", "ant"))
    assert source.class_names == ("cow", "ant")
    assert [source[i]["label"] for i in range(4)] == [0, 1, 1, 1]
    assert [image_files.value(source[i]) for i in range(4)] == [210, 10, 20, 30]


def test_class_of_corrupt_images_gets_image_and_label_of_another(class_folders):
    image_files.truncate(class_folders / "cow" / "210.jpg")
    record = FolderSource(class_folders)[6]
    assert (record["label"], image_files.value(record)) == (1, 130)


def test_pickled_source_reads_the_same_records(class_folders):
    copy = pickle.loads(pickle.dumps(FolderSource(class_folders)))
    assert image_files.value(copy[6]) == 210


def test_missing_root_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no_such_root' is not a folder"):
        FolderSource(tmp_path / "no_such_root")


def test_empty_root_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no class folders: expected root/class_name"):
        FolderSource(tmp_path)


def test_root_that_contains_images_is_refused(class_folders):
    with pytest.raises(ValueError, match="has no class folders: it contains images itself, expected .* root/data/"):
        FolderSource(class_folders / "ant")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("ant", "dog"), "classes dog have no folder in .*it has ant, bee, cow"),
        (("ant", "ant"), "different names"),
        ((), "one or more different names"),
    ],
)
def test_bad_classes_are_named(class_folders, classes, message):
    with pytest.raises(ValueError, match=message):
        FolderSource(class_folders, classes=classes)


def test_class_without_images_is_named(class_folders):
    (class_folders / "dog").mkdir()
    with pytest.raises(ValueError, match="Class folder '.*dog' has no images"):
        FolderSource(class_folders)


def test_what_is_no_regular_file_is_left_out_and_named(class_folders, caplog):
    os.mkfifo(class_folders / "bee" / "000.jpg")
    os.symlink("100.jpg", class_folders / "bee" / "100.jpg")  # Leads to itself.
    os.symlink("absent", class_folders / "bee" / "115.jpg")
    os.symlink("/dev/zero", class_folders / "bee" / "125.jpg")
    os.symlink("loop", class_folders / "loop")
    with caplog.at_level(logging.WARNING, logger="absl"):
        source = FolderSource(class_folders)
    assert source.class_names == ("ant", "bee", "cow")
    assert [image_files.value(source[i]) for i in range(7)] == [10, 20, 30, 110, 120, 130, 210]
    message = "bee: left out, as they are no regular files .*: 000.jpg, 100.jpg, 115.jpg, 125.jpg"
    assert len(caplog.messages) == 1 and re.search(message, caplog.messages[0])


def test_class_folders_in_the_folder_data_are_found(class_folders, tmp_path):
    split = tmp_path / "imagenet" / "ILSVRC2012_train"
    (split / "data").mkdir(parents=True)
    for name in ("ant", "bee"):
        (class_folders / name).rename(split / "data" / name)
    (split / "filelist.txt").write_text("ant/010.jpg")
    source = FolderSource(split)
    assert source.class_names == ("ant", "bee") and image_files.value(source[3]) == 110
    assert FolderSource(split / "data").class_names == ("ant", "bee")
    with pytest.raises(ValueError, match="'.*ILSVRC2012_train' has no images but folders .data, ….: root is too high"):
        FolderSource(split.parent)


def test_class_may_be_named_data(tmp_path):
    image_files.write(tmp_path / "data" / "1.jpg", 5)
    assert FolderSource(tmp_path).class_names == ("data",)


def test_missing_class_file_is_named_with_its_field(tmp_path):
    with pytest.raises(FileNotFoundError, match="class_file='.*synsets.txt': there is no such file"):
        folder.read_class_file(tmp_path / "synsets.txt")


def test_class_file_lists_the_first_word_of_each_line(tmp_path):
    path = tmp_path / "synsets.txt"
    path.write_text("# synset name\ncow a big animal\n\nant a small one\n")
    assert folder.read_class_file(path) == ("cow", "ant")


@pytest.mark.parametrize(
    ("content", "message"), [("cow\ncow\n", "must name each class once.*repeated: cow"), ("\n", "it names none")]
)
def test_bad_class_file_is_refused(tmp_path, content, message):
    (tmp_path / "synsets.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        folder.read_class_file(tmp_path / "synsets.txt")
