"""Corrupt images: replaced, counted, bounded."""

from concurrent import futures
import logging
import os
import re
import threading

import numpy as np
from PIL import Image
import pytest

from eqjax.data import FolderSource, image_source, transforms
from tests.data import image_files


def test_nearest_are_sorted_by_distance():
    assert list(image_source.nearest(2, 0, 5)) == [3, 1, 4, 0]
    assert list(image_source.nearest(0, 0, 1)) == []


def test_fraction_out_of_range_is_refused(class_folders):
    with pytest.raises(ValueError, match=r"max_corrupt_fraction=1 must be in \[0, 1\)"):
        FolderSource(class_folders, max_corrupt_fraction=1)


def test_corrupt_image_is_logged_counted_and_replaced(class_folders, caplog):
    image_files.truncate(class_folders / "bee" / "110.jpg")
    source = FolderSource(class_folders)
    with caplog.at_level(logging.WARNING, logger="absl"):
        records = [source[i] for i in (3, 3, 2, 3)]
    assert [record["label"] for record in records] == [1, 1, 0, 1]
    assert [image_files.value(record) for record in records] == [120, 120, 30, 120]
    assert source.num_corrupt == 1
    assert sum(str(class_folders / "bee" / "110.jpg") in message for message in caplog.messages) == 1


def test_replacement_does_not_depend_on_access_order(class_folders):
    image_files.truncate(class_folders / "ant" / "020.jpg")
    image_files.truncate(class_folders / "ant" / "030.jpg")
    forward, backward = (FolderSource(class_folders, max_corrupt_fraction=0.5) for _ in range(2))
    values = [image_files.value(forward[i]) for i in range(7)]
    assert values == [10, 10, 10, 110, 120, 130, 210]  # Never a neighbor of another class.
    assert [image_files.value(backward[i]) for i in reversed(range(7))] == values[::-1]
    assert forward.num_corrupt == backward.num_corrupt == 2


def test_too_many_corrupt_images_raise_again_and_again(class_folders):
    for name in ("ant/010.jpg", "bee/120.jpg"):
        image_files.truncate(class_folders / name)
    source = FolderSource(class_folders)
    assert source[0]["label"] == 0  # A single corrupt image is always tolerated.
    message = r"2 of 7 images \(28.57%\) .*max_corrupt_fraction=0.01 tolerates 1: .*010\.jpg, .*120\.jpg"
    with pytest.raises(ValueError, match=message):
        source[4]
    with pytest.raises(ValueError, match="2 of 7"):
        source[0]  # Also on a later visit.


def test_threads_that_read_a_corrupt_image_together_count_it_once(class_folders, caplog, monkeypatch):
    meeting = threading.Barrier(2)

    def decode(path, *_, **__):
        if path.endswith("110.jpg"):
            meeting.wait(timeout=5)
            raise OSError("broken")
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(image_source, "decode", decode)
    source = FolderSource(class_folders)
    with caplog.at_level(logging.WARNING, logger="absl"), futures.ThreadPoolExecutor(2) as pool:
        assert [record["label"] for record in pool.map(source.__getitem__, [3, 3])] == [1, 1]
    assert source.num_corrupt == 1 and len(caplog.messages) == 1


def test_fraction_of_zero_tolerates_no_corrupt_image(class_folders):
    image_files.truncate(class_folders / "ant" / "010.jpg")
    with pytest.raises(ValueError, match="1 of 7 .*tolerates 0"):
        FolderSource(class_folders, max_corrupt_fraction=0)[0]


def test_source_without_any_readable_image_raises(tmp_path):
    image_files.write(tmp_path / "a" / "1.jpg", 5)
    image_files.truncate(tmp_path / "a" / "1.jpg")
    with pytest.raises(ValueError, match=r"No image can be decoded; the last error, .*1\.jpg: OSError"):
        FolderSource(tmp_path)[0]


def test_refused_image_is_corrupt(class_folders, caplog):
    """By its size, and by values without a range; the size can be set."""
    image_files.write(class_folders / "ant" / "010.jpg", 10, size=(50, 40))
    Image.new("F", (4, 4)).save(class_folders / "bee" / "110.tif")
    source = FolderSource(class_folders, max_pixels=1999, max_corrupt_fraction=0.5)
    with caplog.at_level(logging.WARNING, logger="absl"):
        values = [image_files.value(source[i]) for i in range(len(source))]
    assert values == [20, 20, 30, 110, 120, 120, 130, 210] and source.num_corrupt == 2
    assert re.search(r"010\.jpg \(it has 50 × 40 pixels, more than max_pixels=1999", caplog.messages[0])
    assert re.search(r"110\.tif \(its values are floats", caplog.messages[1])
    source = FolderSource(class_folders, max_pixels=2000)
    assert image_files.value(source[0]) == 10 and source.num_corrupt == 0


def test_training_reads_images_by_the_common_rule(tmp_path):
    """16 bits are scaled, transparency becomes white, images are upright."""
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (6, 4), 77).save(tmp_path / "a" / "1.jpg", exif=exif)
    Image.new("I;16", (4, 4), 257 * 9).save(tmp_path / "a" / "2.png")
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "a" / "3.png")
    Image.new("CMYK", (4, 4)).save(tmp_path / "a" / "4.JPEG")
    source = FolderSource(tmp_path, resize=transforms.ResizeShorterSide(4, 6, 4))
    assert [source[i]["image"].shape for i in range(4)] == [(6, 4, 3), (6, 6, 3), (6, 6, 3), (6, 6, 3)]
    assert [image_files.value(source[i]) for i in range(4)] == [77, 9, 255, 255]


def test_pipe_in_the_place_of_an_image_does_not_stop_reading(class_folders):
    source = FolderSource(class_folders)
    (class_folders / "bee" / "110.jpg").unlink()
    os.mkfifo(class_folders / "bee" / "110.jpg")
    records = []
    thread = threading.Thread(target=lambda: records.append(source[3]), daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert records and image_files.value(records[0]) == 120 and source.num_corrupt == 1
