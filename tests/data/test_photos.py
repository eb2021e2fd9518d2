"""The built-in photographs: their files, and their held-out parts, which training never reads."""

import importlib.util
import sys

import numpy as np
import pytest

from eqjax.data import default_config, eval_batches, make_iterator, photos


@pytest.fixture(name="striped")
def _striped(monkeypatch):
    """Replaces the photographs by images that are 10 left of the boundary at 80 % of the width, and 200 right."""

    def load(name):
        image = np.full((90, 200 if name == "brick" else 155, 3), 10, np.uint8)
        image[:, 160 if name == "brick" else 124 :] = 200
        return image

    monkeypatch.setattr(photos, "load_photo", load)


@pytest.mark.parametrize("name", photos.PHOTOS)
def test_photograph_is_installed_in_color(name):
    image = photos.load_photo(name)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and min(image.shape[:2]) >= 300
    assert image.std() > 5
    assert photos.load_photo(name) is image  # Decoded once.


def test_retina_has_no_black_border():
    image = photos.load_photo("retina")
    assert image[..., 0].min() > 20 and image.shape == (960, 960, 3)


@pytest.mark.parametrize("fraction", [0.2, 0.13])
def test_parts_make_up_the_image(fraction):
    left = photos.PhotoSource(train=True, holdout_fraction=fraction)[9]
    right = photos.PhotoSource(train=False, holdout_fraction=fraction)[9]
    assert left["label"] == right["label"] == 9
    np.testing.assert_array_equal(np.concatenate([left["image"], right["image"]], axis=1), photos.load_photo("cat"))


@pytest.mark.usefixtures("striped")
def test_train_and_held_out_crops_share_no_pixel():
    config = default_config()
    config.update(classes=("brick", "cat"), height=16, width=24, num_threads=0)
    with make_iterator(config, batch_size=64, seed=0, process_index=0, process_count=1) as batches:
        assert np.unique([next(batches)["image"] for _ in range(3)]).tolist() == [10]
    held_out = eval_batches(config, batch_size=64, process_index=0, process_count=1)
    assert np.unique([batch["image"] for batch in held_out]).tolist() == [200]


@pytest.mark.usefixtures("striped")
def test_held_out_part_is_the_right_fifth():
    assert photos.PhotoSource(train=True)[0]["image"].shape == (90, 160, 3)
    assert photos.PhotoSource(train=False)[0]["image"].shape == (90, 40, 3)


def test_labels_follow_the_class_list():
    source = photos.PhotoSource(classes=("cat", "brick"), epoch_length=6)
    assert source.class_names == ("cat", "brick") and len(source) == 6
    assert [source[i]["label"] for i in range(6)] == [0, 1, 0, 1, 0, 1]
    assert source[0]["image"].shape[0] == 300 and source[1]["image"].shape[0] == 512


def test_grid_is_fixed_and_has_every_class():
    grid = photos.PhotoGrid(photos.PhotoSource(train=False), 64, 64, 0.25, 1.0)
    assert {grid[i]["label"] for i in range(len(grid))} == set(range(13))
    assert grid[len(grid) - 1]["image"].shape == (64, 64, 3)
    again = photos.PhotoGrid(photos.PhotoSource(train=False), 64, 64, 0.25, 1.0)
    np.testing.assert_array_equal(grid[17]["image"], again[17]["image"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ("cat", "dog")}, "dog.*built-in photographs: brick"),
        ({"classes": ("cat", "cat")}, "different names"),
        ({"classes": ()}, "one or more"),
        ({"holdout_fraction": 0.7}, r"holdout_fraction=0.7 must be in \[0, 0.5\]"),
        ({"holdout_fraction": 0, "train": False}, "nothing to evaluate on"),
        ({"epoch_length": 0}, "epoch_length=0"),
    ],
)
def test_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        photos.PhotoSource(**arguments)


def test_missing_package_names_the_command(monkeypatch):
    for package in ("skimage", "sklearn"):  # Other tests of this process may have imported them.
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"scikit-learn is missing; .*: pip install 'eqjax\[photos\]'"):
        photos.load_photo.__wrapped__("flower")
    with pytest.raises(ModuleNotFoundError, match=r"eqjax\[photos\]"):
        photos.PhotoSource()


def test_missing_image_is_named(monkeypatch):
    monkeypatch.setitem(photos.PHOTOS, "cat", photos.Photo("skimage", "data/no_such_cat.png"))
    with pytest.raises(FileNotFoundError, match=r"no_such_cat\.png is missing"):
        photos.load_photo.__wrapped__("cat")
