"""Images and animations in notebooks."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
import pytest

from eqjax import notebook

IMAGE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


@pytest.mark.parametrize("image", [IMAGE, Image.fromarray(IMAGE)], ids=["array", "PIL"])
def test_show_enlarges_both_sides(image):
    assert notebook.show(image, scale=3).size == (18, 12)


def test_show_reads_files(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    np.testing.assert_array_equal(np.asarray(notebook.show(tmp_path / "image.png", scale=1)), IMAGE)


def test_show_at_scale_1_keeps_the_pixels():
    np.testing.assert_array_equal(np.asarray(notebook.show(IMAGE, scale=1)), IMAGE)


def test_an_animation_displays_all_frames_as_a_gif():
    frames = [Image.fromarray(np.full((4, 6, 3), value, np.uint8)) for value in (0, 100, 200)]
    bundle = notebook.animate(frames, milliseconds=[100, 200, 300])._repr_mimebundle_()
    gif: Any = Image.open(io.BytesIO(base64.b64decode(bundle["image/gif"])))
    assert (gif.format, gif.n_frames, gif.size) == ("GIF", 3, (6, 4))
    assert gif.info["loop"] == 0


def test_an_animation_without_frames_is_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        notebook.animate([])
