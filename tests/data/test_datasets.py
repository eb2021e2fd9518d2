"""Sources and data sets of a configuration."""

from typing import Any

import numpy as np
from PIL import Image
import pytest

from eqjax.data import datasets, make_source


def test_classes_select_photographs(config):
    config.photo_classes = ("cat", "brick")
    assert make_source(config).class_names == ("brick", "coffee", "cat")
    config.classes = None
    assert make_source(config).class_names == ("cat", "brick")


def test_classes_select_folders(folder_config):
    folder_config.photo_classes = ("brick",)  # Has no effect on folders.
    assert make_source(folder_config).class_names == ("ant", "bee")
    folder_config.classes = ("bee,ant",)
    assert make_source(folder_config).class_names == ("bee", "ant")


def test_class_file_selects_folders(folder_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("classes") / "synsets.txt"
    path.write_text("bee a small one\n")
    folder_config.class_file = str(path)
    assert make_source(folder_config).class_names == ("bee",)


def test_eval_root_is_read_for_evaluation_only(folder_config, tmp_path_factory):
    other = tmp_path_factory.mktemp("held_out")
    (other / "wasp").mkdir()
    Image.new("RGB", (9, 9)).save(other / "wasp" / "1.png")
    folder_config.eval_root = str(other)
    assert make_source(folder_config, train=False).class_names == ("wasp",)
    assert make_source(folder_config).class_names == ("ant", "bee")


def test_invalid_configuration_is_refused(config):
    config.height = 0
    with pytest.raises(ValueError, match="data.height=0 must be an integer ≥ 1"):
        make_source(config)


def test_flip_can_be_turned_off(folder_config):
    folder_config.update(height=18, width=24, resize=18)  # The crop is the whole image.
    source = make_source(folder_config)
    whole = {source[i]["image"].tobytes() for i in range(10)}
    dataset: Any = datasets.train_dataset(folder_config, source, seed=0)
    mirrored = [image for image in (dataset[i]["image"] for i in range(10)) if image.tobytes() not in whole]
    assert mirrored and all(np.ascontiguousarray(image[:, ::-1]).tobytes() in whole for image in mirrored)
    folder_config.flip = False
    dataset = datasets.train_dataset(folder_config, source, seed=0)
    assert all(dataset[i]["image"].tobytes() in whole for i in range(10))


def test_crops_change_from_epoch_to_epoch(folder_config):
    dataset: Any = datasets.train_dataset(folder_config, make_source(folder_config), seed=0)
    epochs = [[dataset[i] for i in range(start, start + 10)] for start in (0, 10)]
    for epoch in epochs:
        assert sorted(record["label"] for record in epoch) == [0] * 5 + [1] * 5
    images = [{record["image"].tobytes() for record in epoch} for epoch in epochs]
    assert len(images[0]) == 10 and images[0] != images[1]


def test_evaluation_records_are_center_crops_in_order(folder_config):
    dataset: Any = datasets.eval_dataset(folder_config, make_source(folder_config, train=False))
    resized = Image.open(f"{folder_config.root}/bee/2.png").resize((13, 10), Image.Resampling.BILINEAR)  # 10 · 24 / 18
    np.testing.assert_array_equal(dataset[7]["image"], np.asarray(resized)[1:9, 2:10])
    assert len(dataset) == 10 and [dataset[i]["label"] for i in range(10)] == [0] * 5 + [1] * 5


def test_bound_on_pixels_reaches_the_source(folder_config):
    folder_config.update(max_pixels=24 * 18 - 1, max_corrupt_fraction=0.0)
    with pytest.raises(ValueError, match="1 of 10 images"):
        make_source(folder_config)[0]
    folder_config.max_pixels += 1
    assert make_source(folder_config)[0]["image"].shape == (10, 13, 3)
