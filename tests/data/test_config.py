"""Validation of the data configuration, and class lists from a command line."""

import pytest

from eqjax.data import check_config, config, default_config


def test_defaults_are_valid():
    check_config(default_config())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"source": "imagenet"},
            "data.source='imagenet' must be one of 'photos', 'folder', 'webdataset', 'tfds', 'latents'",
        ),
        ({"height": 0}, "data.height=0 must be an integer ≥ 1"),
        ({"width": -3}, "data.width=-3 must be an integer ≥ 1"),
        ({"num_workers": -1}, "data.num_workers=-1 must be an integer ≥ 0"),
        ({"num_threads": -1}, "data.num_threads=-1 must be an integer ≥ 0"),
        ({"min_scale": 0.9, "max_scale": 0.5}, "data.min_scale=0.9 must be at most data.max_scale=0.5"),
        ({"max_scale": 1.5}, "max_scale=1.5"),
        ({"holdout_fraction": 0.8}, "holdout_fraction=0.8"),
        ({"source": "folder"}, "needs data.root"),
        ({"source": "tfds"}, "needs data.root, .* a prepared data set"),
        ({"source": "latents"}, "needs data.root, .* eqjax cache-latents"),
        ({"source": "folder", "root": "x", "classes": ("a",), "class_file": "y"}, "not both"),
        ({"source": "folder", "root": "x", "resize": 4}, "data.resize=4 must be at least 64"),
        ({"source": "folder", "root": "x", "max_corrupt_fraction": 2.0}, "max_corrupt_fraction=2.0"),
        ({"source": "folder", "root": "x", "max_pixels": 0}, "data.max_pixels=0 must be an integer ≥ 1"),
    ],
)
def test_bad_field_is_named(fields, message):
    fields_of_run = default_config()
    fields_of_run.update(fields)
    with pytest.raises(ValueError, match=message):
        check_config(fields_of_run)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"classes": ("ant", "bee")}, ("ant", "bee")),
        ({"classes": ("ant,bee",)}, ("ant", "bee")),  # --config.data.classes=ant,bee
        ({"classes": (3, 12)}, ("3", "12")),  # --config.data.classes=3,12
        ({"photo_classes": ("cat,moon",)}, ("cat", "moon")),
        ({"photo_classes": ("cat",), "classes": ("moon",)}, ("moon",)),
        ({"photo_classes": ("cat",), "source": "folder"}, None),
    ],
)
def test_class_names(fields, expected):
    fields_of_run = default_config()
    fields_of_run.update(fields)
    assert config.class_names(fields_of_run) == expected
