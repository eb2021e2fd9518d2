"""Data configurations and class folders."""

import numpy as np
from PIL import Image
import pytest

from eqjax.data import default_config
from tests.data import image_files


@pytest.fixture(name="config")
def _config():
    """Three photographs in crops of 8 × 12 pixels."""
    config = default_config()
    config.update(height=8, width=12, num_threads=0, classes=("brick", "coffee", "cat"))
    return config


@pytest.fixture(name="folder_config")
def _folder_config(tmp_path):
    """Two classes of five noise images each, 24 × 18 pixels."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (18, 24, 3), np.uint8)).save(tmp_path / name / f"{i}.png")
    config = default_config()
    config.update(source="folder", root=str(tmp_path), height=8, width=8, resize=10, num_threads=0)
    return config


@pytest.fixture(name="class_folders")
def _class_folders(tmp_path):
    """Classes ant (10, 20, 30), bee (110, 120, 130), cow (210), images of one gray value; and other files."""
    for name, values in {"bee": (110, 120, 130), "ant": (10, 20, 30), "cow": (210,)}.items():
        for value in values:
            image_files.write(tmp_path / name / f"{value:03d}.jpg", value)
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    return tmp_path
