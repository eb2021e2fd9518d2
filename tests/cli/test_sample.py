"""The sampling command: images, panoramas, outpainting, animations, and its errors."""

import logging
from typing import Any

import numpy as np
from PIL import Image, ImageSequence
import pytest

from eqjax import load_pretrained, panorama, pixels, pretrained
from eqjax.cli import command_line, sample
from eqjax.cli.main import COMMANDS
from tests.sampling.small_models import local_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    m = local_model()
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    modules = {"tokenizer": m.tokenizer, "generator": m.generator}
    params = {"tokenizer": m.tokenizer_params, "generator": m.generator_params}
    pretrained.save(path, pretrained.Weights(modules, params, m.latent_scale, m.class_names))
    return str(path)


@pytest.fixture(name="command")
def _command(weights, tmp_path):
    def command(*, written="out.png", **options):
        output = tmp_path / "out.png"
        defaults = dict(weights=weights, output=output, guidance_scale=2, guidance_schedule="constant")
        defaults |= dict(num_flow_steps=2, solver="adams_bashforth")
        arguments = [f"--{name}={value}" for name, value in {**defaults, **options}.items() if value is not None]
        args, _ = command_line.parse(COMMANDS["sample"], arguments)
        sample.run(args)
        return np.asarray(Image.open(tmp_path / written))

    return command


@pytest.mark.parametrize(
    ("classes", "columns", "expected"),
    [
        ("cat:20,dog:20", None, 40),
        ("cat:20,dog:20", 30, 30),
        ("cat:5,dog", None, 16),
        ("cat:20,dog", 21, 21),
        ("cat", None, 16),
        ("cat:20,dog", None, "--num_columns is missing: dog begins at column 20"),
        ("cat:20,dog:5,eel", 20, "ends before dog .from column 20., eel .from column 25. of --classes"),
    ],
)
def test_columns_of_a_panorama(classes, columns, expected):
    pairs = [sample.parse_class(text) for text in classes.split(",")]
    if isinstance(expected, int):
        assert sample.count_columns(pairs, columns) == expected
        return
    with pytest.raises(ValueError, match=expected):
        sample.count_columns(pairs, columns)


def test_the_command_and_the_model_sample_the_same_by_default(command, weights):
    given = dict(guidance_scale=None, guidance_schedule=None, num_flow_steps=None, solver=None)
    image = load_pretrained(weights).sample("cat", num_columns=4, seeds=[3])[0]
    np.testing.assert_array_equal(command(classes="cat", num_columns=4, seeds=3, **given), image)


def test_the_command_and_the_model_sample_the_same_with_options(command, weights):
    options: dict[str, Any] = dict(guidance_scale=3.0, guidance_schedule="linear", num_flow_steps=3, solver="heun")
    options |= dict(time_grid="cosine", temperature=0.8, max_position=2)
    images = load_pretrained(weights).sample(["cat", "cat"], num_columns=4, seeds=[3, 1], **options)
    expected = pixels.grid(images, columns=2)
    np.testing.assert_array_equal(command(classes="cat", num_columns=4, seeds="3,1", **options), expected)


def test_grid_of_classes_and_seeds(command):
    out = command(classes="cat,2", seeds="0,5", num_columns=4)
    assert out.shape == (2 * 16 + 2, 2 * 8 + 2, 3)
    np.testing.assert_array_equal(out, command(classes="cat,2", seeds="0,5", num_columns=4))


def test_panorama_with_classes_and_animation(command, tmp_path):
    path = tmp_path / "pan" / "out.gif"
    out = command(classes="cat:20,dog", transition=4, num_columns=50, animation=path, pixels_per_frame=6)
    assert out.shape == (16, 100, 3)
    with Image.open(path) as gif:
        assert (gif.size, len(list(ImageSequence.Iterator(gif)))) == ((64, 16), (100 - 64) // 6 + 1)


def test_the_extension_of_the_output_names_its_format(command, tmp_path):
    command(classes="cat", num_columns=4, output=tmp_path / "a.JPG", written="a.JPG")
    with Image.open(tmp_path / "a.JPG") as image:
        assert image.format == "JPEG"


def test_a_folder_is_no_output(command, tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a file"):
        command(classes="cat", output=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "missing.png: there is no such file; give the path of the image"),
        ("notes.txt", "notes.txt cannot be read as an image .its format is none of BMP,"),
        (".", "cannot be read as an image .it is a folder, not a regular file.; give another"),
        ("notes.txt/a.png", "notes.txt/a.png cannot be read as an image .Not a directory.; give another"),
    ],
)
def test_an_image_that_cannot_be_read_is_refused_with_its_flag(tmp_path, name, message):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=f"^--image={tmp_path}.*{message}"):
        sample.read_image(str(tmp_path / name))


def test_a_folder_is_no_state(command, tmp_path):
    with pytest.raises(ValueError, match="^--state=.* is a folder; give the name of a file"):
        command(classes="cat", state=tmp_path)


def test_a_narrow_image_is_announced_as_a_still(command, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        command(classes="cat", num_columns=4, animation=tmp_path / "a.webp")
    assert "a.webp is a still: the image is 8 pixels wide, and a frame 64." in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(output="a.tif"), r"a\.tif: an image's extension is one of .png, .jpg, .jpeg, .webp; found '.tif'"),
        (dict(output="a.mp4"), r"found '.mp4' \(.mp4 files are for --animation"),
        (dict(animation="a.png"), r"an animation's extension is one of .gif, .webp, .mp4; found '.png' .*--output"),
        (dict(animation="a"), "found 'none'"),
        (dict(output="a.webp", num_columns=9000), "a.webp: .webp files hold at most 16383 pixels .* use .png"),
        (dict(output="a.webp", panorama=True, num_columns=9000), "at most 16383 pixels"),
    ],
)
def test_files_are_checked_before_anything_is_sampled(command, monkeypatch, options, message):
    monkeypatch.setattr(sample, "sampling_progress", None)  # What samples calls it first.
    with pytest.raises(ValueError, match=message):
        command(**{"classes": "cat", **options})


def test_a_saved_panorama_is_resumed(command, tmp_path):
    options = dict(classes="cat", num_columns=32, state=tmp_path / "state.npz")
    parts = [command(**options, written="out-000000.png"), command(**options, written="out-000032.png")]
    once = command(classes="cat", num_columns=64, state=tmp_path / "other.npz", written="out-000000.png")
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), once)
    assert not (tmp_path / "out.png").exists()
    # Nothing but the state is needed, and what is given must agree with it.
    state = tmp_path / "state.npz"
    before = state.read_bytes()
    for change, sides in (
        (dict(classes="dog"), "--classes: saved cat, given dog"),
        (dict(classes="cat:5,dog"), "--classes: saved cat, given cat:5,dog"),
        (dict(classes=9), "--classes: saved cat, given 9"),
        (dict(guidance_scale=3), "--guidance_scale: saved 2.0, given 3.0"),
        (dict(guidance_schedule="linear"), "--guidance_schedule: saved constant, given linear"),
        (dict(solver="heun"), "--solver: saved adams_bashforth, given heun"),
        (dict(num_flow_steps=3), "--num_flow_steps: saved 2, given 3"),
        (dict(seeds="0,1"), r"--seeds: saved \[0\], given \[0, 1\]"),
        (dict(temperature=0.5), "--temperature: saved 1.0, given 0.5"),
        (dict(transition=2), "--transition: saved 0, given 2"),
        (dict(max_position=2), "--max_position: saved None, given 2"),
        (dict(parallel_steps=2), "--parallel_steps: saved None, given 2"),
    ):
        with pytest.raises(ValueError, match=f"panorama of other options(.|\n)*{sides}"):
            command(state=state, **change)
    with pytest.raises(ValueError, match=r"classes \['cow'\] are not among"):
        command(classes="cow", state=state)
    # A failed image write loses nothing: the state stays, and the same command samples the image again.
    (tmp_path / "out-000064.png").mkdir()
    with pytest.raises(OSError, match="out-000064.png"):
        command(state=state)
    assert state.read_bytes() == before
    (tmp_path / "out-000064.png").rmdir()
    assert command(state=state, guidance_scale=2, written="out-000064.png").shape == (16, 32, 3)


def test_a_panorama_of_several_seeds_with_linear_guidance_is_resumed(command, tmp_path):
    options = dict(classes="cat:20,dog", seeds="0,5", state=tmp_path / "state.npz", guidance_schedule="linear")
    assert command(**options, num_columns=32, written="out-000000.png").shape == (2 * 16 + 2, 64, 3)
    assert command(**options, written="out-000032.png").shape == (2 * 16 + 2, 32, 3)


def test_a_panorama_with_an_end_ends(weights, command, tmp_path):
    given: dict[str, Any] = dict(num_flow_steps=2, guidance_scale=2.0, guidance_schedule="constant")
    strips = panorama(load_pretrained(weights), "cat", num_columns=20, **given)
    strips.save(tmp_path / "state.npz")
    options = dict(state=tmp_path / "state.npz", solver="euler", num_columns=30)
    assert command(**options, written="out-000000.png").shape == (16, 40, 3)
    with pytest.raises(ValueError, match="ends after 20 columns"):
        command(**options)


def test_an_image_is_outpainted(command, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((32, 50, 3), 90, np.uint8)).save(path)
    out = command(classes="cat", image=path, left=2, right=3, resize=True)
    assert out.shape == (16, 24 + 10, 3) and (out[:, 6:26] == 90).all()
    # Seeds, classes and guidance along the way: one continuation below another.
    both = command(classes="cat:1,dog", image=path, right=3, resize=True, seeds="0,3", guidance_scale="2,3,4")
    assert both.shape == (2 * 16 + 2, 24 + 6, 3) and (both[:16, :22] == 90).all()
    assert (both[:16] != both[18:]).any() and (both[:16] != out[:, 4:]).any()
    with pytest.raises(ValueError, match=r"image height 32 does not fit .*\(--resize\)"):
        command(classes="cat", image=path, right=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(classes="cat:x"), "'cat:x' is neither name nor name:columns"),
        (dict(classes="cow"), r"classes \['cow'\] are not among"),
        (dict(classes="cat:3", num_columns=5), "covers columns 0 … 2, and the image has 5 columns"),
        (dict(classes="cat:3,dog:0"), r"class_columns\[1\]=0 must be an integer ≥ 1"),
        (dict(classes="cat", num_flow_steps=0), "num_flow_steps=0 must be an integer ≥ 1"),
        ({}, "--classes is missing"),
        (dict(classes=""), "--classes is missing"),
        (dict(state="none.npz"), "--classes is missing"),
        (dict(classes="cat", seeds=""), "--seeds is empty"),
        (dict(classes="cat", seeds="0,a"), "--seeds=0,a: each must be an integer"),
        (dict(classes="cat", seeds=2**40), "--seeds=1099511627776: each must be an integer of 32 bits"),
        (dict(classes="cat", guidance_scale="x"), "--guidance_scale=x: each must be a number"),
        (dict(classes="cat", guidance_scale=""), "--guidance_scale is empty"),
        (dict(classes="cat", left=2), "--left cannot be used here: without --image"),
        (dict(classes="cat", transition=2), "--transition cannot be used here: it needs --classes one after another"),
        (
            dict(classes="cat", image="a.png", state="s.npz"),
            "--state cannot be used here: an image is continued by",
        ),
        (dict(classes="cat", image="a.png", panorama=True, num_columns=3), "--num_columns, --panorama cannot be used"),
    ],
)
def test_flags_that_do_not_fit_are_refused(command, options, message):
    with pytest.raises(ValueError, match=message):
        command(**options)


def test_classes_beyond_the_end_of_outpainting_are_refused(command, tmp_path):
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"--left=2 --right=3 ends before dog \(from column 3\)"):
        command(classes="cat:3,dog", image=tmp_path / "photo.png", left=2, right=3)
