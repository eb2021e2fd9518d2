"""Class folders: labels, broken files, and errors that name what is wrong."""

from concurrent import futures
import logging
import pickle
import threading

import numpy as np
from PIL import Image
import pytest

from eqjax.data import FolderSource, folder, image_source, transforms


def _write(path, value, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def _break(path):
    """Cuts an image file in half, as an interrupted copy does."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.fixture(name="root")
def _root(tmp_path):
    """Classes ant (10, 20, 30), bee (110, 120, 130), cow (210), images of one gray value; and files that are none."""
    for name, values in {"bee": (110, 120, 130), "ant": (10, 20, 30), "cow": (210,)}.items():
        for value in values:
            _write(tmp_path / name / f"{value:03d}.jpg", value)
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def _value(record):
    return int(record["image"].mean().round())


def test_sorted_classes_and_records(root):
    source = FolderSource(root)
    assert source.class_names == ("ant", "bee", "cow") and len(source) == 7
    assert [_value(source[i]) for i in range(7)] == [10, 20, 30, 110, 120, 130, 210]
    assert [source[i]["label"] for i in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert source[0]["image"].shape == (16, 20, 3) and source[0]["image"].dtype == np.uint8
    assert source.num_corrupt == 0


def test_class_list_sets_the_labels(root):
    source = FolderSource(root, classes=("cow", "ant"))
    assert source.class_names == ("cow", "ant")
    assert [(source[i]["label"], _value(source[i])) for i in range(4)] == [(0, 210), (1, 10), (1, 20), (1, 30)]


def test_other_formats_and_modes_become_rgb(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("L", (4, 4), 77).save(tmp_path / "a" / "1.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 128)).save(tmp_path / "a" / "2.webp", lossless=True)
    Image.new("CMYK", (4, 4)).save(tmp_path / "a" / "3.JPEG")
    source = FolderSource(tmp_path)
    assert [source[i]["image"].shape for i in range(3)] == [(4, 4, 3)] * 3
    assert source[0]["image"][0, 0].tolist() == [77, 77, 77] and source[1]["image"][0, 0].tolist() == [1, 2, 3]


def test_broken_file_is_logged_counted_and_replaced(root, caplog):
    _break(root / "bee" / "110.jpg")
    source = FolderSource(root)
    with caplog.at_level(logging.WARNING, logger="absl"):
        records = [source[i] for i in (3, 3, 2, 3)]
    assert [(record["label"], _value(record)) for record in records] == [(1, 120), (1, 120), (0, 30), (1, 120)]
    assert source.num_corrupt == 1
    assert sum(str(root / "bee" / "110.jpg") in message for message in caplog.messages) == 1


def test_replacement_does_not_depend_on_access_order(root):
    _break(root / "ant" / "020.jpg")
    _break(root / "ant" / "030.jpg")
    forward, backward = FolderSource(root, max_corrupt_fraction=0.5), FolderSource(root, max_corrupt_fraction=0.5)
    values = [_value(forward[i]) for i in range(7)]
    assert values == [10, 10, 10, 110, 120, 130, 210]  # Never a neighbor of another class.
    assert [_value(backward[i]) for i in reversed(range(7))] == values[::-1]
    assert forward.num_corrupt == backward.num_corrupt == 2


def test_class_without_a_good_file_borrows_image_and_label(root):
    _break(root / "cow" / "210.jpg")
    record = FolderSource(root)[6]
    assert (record["label"], _value(record)) == (1, 130)


def test_too_many_broken_files_end_the_run(root):
    for name in ("ant/010.jpg", "bee/120.jpg"):
        _break(root / name)
    source = FolderSource(root)
    source[0]  # One bad file is always tolerated.
    with pytest.raises(ValueError) as error:
        source[4]
    for part in ("2 of 7", "28.57%", "max_corrupt_fraction=0.01 tolerates 1", "010.jpg", "120.jpg"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="2 of 7"):
        source[0]  # The verdict stands.


def test_threads_that_meet_a_broken_file_together_count_it_once(root, caplog, monkeypatch):
    meeting = threading.Barrier(2)

    def decode(path, *_):
        if path.endswith("110.jpg"):
            meeting.wait(timeout=5)
            raise OSError("broken")
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(image_source, "decode", decode)
    source = FolderSource(root)
    with caplog.at_level(logging.WARNING, logger="absl"), futures.ThreadPoolExecutor(2) as pool:
        assert [record["label"] for record in pool.map(source.__getitem__, [3, 3])] == [1, 1]
    assert source.num_corrupt == 1 and len(caplog.messages) == 1


def test_share_of_zero_tolerates_none(root):
    _break(root / "ant" / "010.jpg")
    with pytest.raises(ValueError, match="1 of 7 .*tolerates 0"):
        FolderSource(root, max_corrupt_fraction=0)[0]


def test_nothing_good_at_all(tmp_path):
    _write(tmp_path / "a" / "1.jpg", 5)
    _break(tmp_path / "a" / "1.jpg")
    with pytest.raises(ValueError, match="No image can be decoded; the last error, .*1.jpg: OSError"):
        FolderSource(tmp_path)[0]


def test_source_can_be_sent_to_a_worker(root):
    copy = pickle.loads(pickle.dumps(FolderSource(root)))
    assert _value(copy[6]) == 210


def test_errors_name_what_is_wrong(root, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match="no_such_root"):
        FolderSource(root / "no_such_root")
    with pytest.raises(ValueError, match="has no class folders"):
        FolderSource(empty)
    with pytest.raises(ValueError, match="classes dog have no folder in .*it has ant, bee, cow"):
        FolderSource(root, classes=("ant", "dog"))
    with pytest.raises(ValueError, match="different names"):
        FolderSource(root, classes=("ant", "ant"))
    with pytest.raises(ValueError, match=r"max_corrupt_fraction=1 must lie in \[0, 1\)"):
        FolderSource(root, max_corrupt_fraction=1)
    with pytest.raises(ValueError, match="has no class folders: it holds images itself, expected .* root/data/"):
        FolderSource(root / "ant")
    (root / "dog").mkdir()
    with pytest.raises(ValueError, match="Class folder '.*dog' has no images"):
        FolderSource(root)


def test_class_folders_under_data(root, tmp_path_factory):
    """The layout of latent diffusion code; and a class that happens to be called data."""
    split = tmp_path_factory.mktemp("imagenet") / "ILSVRC2012_train"
    (split / "data").mkdir(parents=True)
    for name in ("ant", "bee"):
        (root / name).rename(split / "data" / name)
    (split / "filelist.txt").write_text("ant/010.jpg")
    source = FolderSource(split)
    assert source.class_names == ("ant", "bee") and _value(source[3]) == 110
    assert FolderSource(split / "data").class_names == ("ant", "bee")
    with pytest.raises(
        ValueError, match="'.*ILSVRC2012_train' has no images but folders .data, ….: root lies too high"
    ):
        FolderSource(split.parent)
    (split / "data").rename(split.parent / "elsewhere")
    _write(split / "data" / "1.jpg", 5)
    assert FolderSource(split).class_names == ("data",)


def test_class_file_sets_the_labels(tmp_path):
    path = tmp_path / "synsets.txt"
    path.write_text("# synset name\ncow a big animal\n\nant a small one\n")
    assert folder.read_class_file(path) == ("cow", "ant")
    path.write_text("cow\ncow\n")
    with pytest.raises(ValueError, match="must name each class once.*names .'cow'."):
        folder.read_class_file(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="it names none"):
        folder.read_class_file(path)


def test_images_are_resized_as_they_are_decoded(tmp_path):
    """The same pixels as decoding and then resizing; with draft mode nearly, and only where there is much to shrink."""
    smooth = np.stack(np.meshgrid(np.linspace(0, 255, 200), np.linspace(0, 255, 120)) * 2, axis=-1)[..., :3]
    path = tmp_path / "1.jpg"
    Image.fromarray(smooth.astype(np.uint8)).save(path, quality=95)
    for side, drafts in ((80, False), (40, True)):
        fit = transforms.ResizeShorterSide(side, side, side)
        expected = transforms.resize(image_source.decode(path), side, side * 200 // 120)
        np.testing.assert_array_equal(image_source.decode(path, fit), expected)
        drafted = image_source.decode(path, fit, draft=True)
        assert drafted.shape == expected.shape and (drafted != expected).any() == drafts
        assert np.abs(drafted.astype(int) - expected).max() <= 4
