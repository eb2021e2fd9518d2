"""Images and animations: formats by extension, pixels, memory, and what is refused."""

import os
import sys
import tracemalloc
from typing import Any
import weakref

import numpy as np
from PIL import Image, ImageSequence
import pytest

from eqjax import image_output

RAMP = np.zeros((16, 90, 3), np.uint8)
RAMP[:, :, 0] = 2 * np.arange(90)
RAMP[8:, :, 1] = 200


def frames_of(path):
    """The frames of an animation as arrays."""
    if path.suffix == ".mp4":
        import av

        container: Any = av.open(path)
        with container:
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


@pytest.mark.parametrize(
    ("extension", "name", "error"),
    [(".png", "PNG", 0), (".jpg", "JPEG", 12), (".JPEG", "JPEG", 12), (".webp", "WEBP", 40)],
)
def test_an_image_has_the_format_of_its_extension(tmp_path, extension, name, error):
    path = tmp_path / "new" / f"a{extension}"
    image_output.save_image(path, RAMP)
    with Image.open(path) as image:
        assert image.format == name
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - RAMP).max() <= error
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(("extension", "error"), [(".gif", 4), (".webp", 45), (".mp4", 40)])
def test_an_animation_moves_along_the_image(tmp_path, extension, error):
    path = tmp_path / f"a{extension}"
    size = image_output.save_animation(path, RAMP, frame_width=64, pixels_per_frame=5)
    frames = frames_of(path)
    assert size == image_output.AnimationSize(6, 16, 64) and len(frames) == 6
    for i, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - RAMP[:, 5 * i : 5 * i + 64]).max() <= error
    # The error of a frame with its neighbors' pixels would be larger on average.
    errors = [np.abs(frames[3].astype(int) - RAMP[:, 5 * i : 5 * i + 64]).mean() for i in range(6)]
    assert np.argmin(errors) == 3


@pytest.mark.parametrize("extension", [".gif", ".webp"])
def test_an_animation_repeats_at_25_frames_a_second(tmp_path, extension):
    image_output.save_animation(tmp_path / f"a{extension}", RAMP, frame_width=80)
    with Image.open(tmp_path / f"a{extension}") as image:
        image.load()
        assert (image.info["loop"], image.info["duration"]) == (0, 40)


@pytest.mark.parametrize("extension", [".gif", ".webp", ".mp4"])
def test_strips_give_the_same_file_as_the_whole_image(tmp_path, extension):
    strips = (RAMP[:, left : left + 7] for left in range(0, 90, 7))
    sizes = [
        image_output.save_animation(tmp_path / f"{name}{extension}", given, frame_width=20, pixels_per_frame=9)
        for name, given in (("whole", RAMP), ("strips", strips))
    ]
    assert sizes[0] == sizes[1] == image_output.AnimationSize(8, 16, 20)
    whole, pieces = (frames_of(tmp_path / f"{name}{extension}") for name in ("whole", "strips"))
    np.testing.assert_array_equal(whole, pieces)


@pytest.mark.parametrize("step", [1, 30, 50])
def test_frames_do_not_depend_on_the_pieces(step):
    for piece in (1, 13, 90):
        strips = iter([RAMP[:, left : left + piece] for left in range(0, 90, piece)])
        frames = list(image_output._Frames(strips, 20, step))
        np.testing.assert_array_equal(frames, [RAMP[:, left : left + 20] for left in range(0, 71, step)])


@pytest.mark.parametrize("extension", [".gif", ".webp", ".mp4"])
def test_a_narrow_image_is_one_frame(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    size = image_output.save_animation(path, RAMP[:, :30])
    assert size == image_output.AnimationSize(1, 16, 30) and len(frames_of(path)) == 1


def test_mp4_of_odd_sizes_repeats_the_border(tmp_path):
    assert image_output.save_animation(tmp_path / "a.mp4", RAMP[:15, :31], frame_width=31).width == 31
    assert frames_of(tmp_path / "a.mp4")[0].shape == (16, 32, 3)


@pytest.mark.parametrize("extension", [".gif", ".webp"])
def test_few_frames_exist_at_a_time(tmp_path, monkeypatch, extension):
    frames, made, most = [], Image.fromarray, []

    def counted(*args):
        frame = made(*args)
        frames.append(weakref.ref(frame))
        most.append(sum(ref() is not None for ref in frames))
        return frame

    monkeypatch.setattr(image_output.Image, "fromarray", counted)
    image_output.save_animation(tmp_path / f"a{extension}", RAMP, frame_width=40, pixels_per_frame=2)
    assert len(most) == 26 and max(most) <= 3


def test_memory_of_a_streamed_mp4_does_not_grow_with_its_length(tmp_path):
    def peak(num_strips):
        strips = (RAMP for _ in range(num_strips))
        tracemalloc.start()
        image_output.save_animation(tmp_path / "a.mp4", strips, frame_width=64, pixels_per_frame=64)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)
    assert peak(200) < peak(20) + 100_000  # 180 strips have 778 KB.


def test_a_failed_write_keeps_the_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.webp"
    path.write_bytes(b"before")

    def strips():
        yield RAMP
        raise OSError("the sampler failed")

    for write in (".webp", ".gif", ".mp4"):
        target = path.with_suffix(write)
        target.write_bytes(b"before")
        with pytest.raises(OSError, match="the sampler failed"):
            image_output.save_animation(target, strips(), frame_width=8)
        assert target.read_bytes() == b"before"
    assert len(os.listdir(tmp_path)) == 3


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a.tiff", r"a\.tiff: an image's extension is one of .png, .jpg, .jpeg, .webp; found '.tiff'\.$"),
        ("a.gif", r"found '.gif' \(.gif files are for --animation or eqjax.save_animation\)"),
        ("a", "found 'none'"),
        ("a.b/png", "found 'none'"),
    ],
)
def test_an_unknown_extension_of_an_image_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        image_output.save_image(path, RAMP)
    assert not os.path.exists("a.b")


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a\.png is a folder"):
        image_output.check_image_path(tmp_path / "a.png")


@pytest.mark.parametrize(("extension", "side"), [(".jpg", 65500), (".webp", 16383)])
def test_largest_sides_are_those_of_the_formats(tmp_path, extension, side):
    image = np.zeros((1, side + 1, 3), np.uint8)
    image_output.save_image(tmp_path / f"a{extension}", image[:, 1:])
    with pytest.raises(ValueError, match=f"hold at most {side} pixels a side, and the image has {side + 1} × 1; use"):
        image_output.save_image(tmp_path / f"a{extension}", image)


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (RAMP[None], ValueError, r"image=<uint8 array of shape \(1, 16, 90, 3\)> must be a uint8 array of shape"),
        (RAMP.astype(np.float32), TypeError, "image=<float32 array"),
        (RAMP[:0], ValueError, "image="),
        ("a.png", TypeError, "image='a.png' must be a uint8 array"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, image, kind, message):
    with pytest.raises(kind, match=message):
        image_output.save_image(tmp_path / "a.png", image)


@pytest.mark.parametrize(
    ("strips", "options", "message"),
    [
        ([], {}, "strips: there are none"),
        ([RAMP, RAMP[:8]], {}, r"strips\[1\]=.* must be a uint8 array of shape \[16, width, 3\]"),
        (RAMP, dict(frame_width=0), "frame_width=0 must be an integer ≥ 1"),
        (RAMP, dict(pixels_per_frame=0), "pixels_per_frame=0 must be an integer ≥ 1"),
    ],
)
def test_bad_arguments_of_an_animation_are_named(tmp_path, strips, options, message):
    with pytest.raises(ValueError, match=message):
        image_output.save_animation(tmp_path / "a.gif", strips, **options)
    assert not os.listdir(tmp_path)


def test_mp4_without_pyav_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"a\.mp4: mp4 files need PyAV .* pip install 'eqjax\[video\]'"):
        image_output.save_animation(tmp_path / "a.mp4", RAMP)
