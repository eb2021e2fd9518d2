"""The conversion command: both published formats there and back, and its errors."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from eqjax import convert, convert_files, load_pretrained, pretrained
from eqjax.cli import command_line
from eqjax.cli.main import COMMANDS
from eqjax.convert import torch_archive
from tests import published_checkpoints, reference_weights

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    return published_checkpoints.write_lightning(tmp_path_factory.mktemp("published") / "tokenizer.ckpt")


def command(*arguments):
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    full = [sys.executable, "-m", "eqjax", "convert", *arguments]
    return subprocess.run(full, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("variant", ["ema", "raw"])
def test_tokenizer_there_and_back(tmp_path, tokenizer_file, variant):
    there, back = tmp_path / "tokenizer.safetensors", tmp_path / "back.ckpt"
    convert_files.from_torch(tokenizer_file, there, variant, latent_scale=0.25)
    weights = pretrained.load(there)
    assert weights.latent_scale == 0.25
    assert weights.modules["tokenizer"].square_downsamples == 1
    convert_files.to_torch(there, back)
    state = torch_archive.load(back)["state_dict"]
    assert set(state) == {name for name in published_checkpoints.lightning_shapes() if not name.startswith("loss.")}
    salt = "" if variant == "ema" else published_checkpoints.RAW
    for pick in (convert.raw_tokenizer_state_dict, convert.ema_tokenizer_state_dict):
        for name, array in pick(state).items():
            ran = ".block.1." not in name or not name.startswith("semantic_decoder.")
            expected = reference_weights.weight(name, array.shape, salt) if ran else np.zeros(array.shape)
            np.testing.assert_array_equal(array, expected, err_msg=name)


@pytest.mark.parametrize("variant", ["ema", "raw"])
def test_generator_there_and_back(tmp_path, variant):
    there, back = tmp_path / "generator.safetensors", tmp_path / "back.ckpt"
    convert_files.from_torch(
        published_checkpoints.GENERATOR, there, variant, num_heads=4, window_size=6, max_rope_shift=2
    )
    module = pretrained.load(there).modules["generator"]
    assert (module.num_heads, module.window_size, module.max_rope_shift) == (4, 6, 2)
    convert_files.to_torch(there, back)
    checkpoint = torch_archive.load(back)
    for key in ("model", "model_ema"):
        assert len(checkpoint[key]) == 133
        for name, array in checkpoint[key].items():
            expected = reference_weights.weight(
                name, array.shape, "" if variant == "ema" else published_checkpoints.RAW
            )
            np.testing.assert_array_equal(array, expected, err_msg=name)


def test_a_reference_state_dict_in_safetensors_is_read(tmp_path):
    state = dict(torch_archive.load(published_checkpoints.GENERATOR)["model_ema"])
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, tmp_path / "g.safetensors")
    weights = convert_files.from_torch(tmp_path / "g.safetensors", tmp_path / "out.safetensors", num_heads=4)
    np.testing.assert_array_equal(weights.params["generator"]["null_embedding"], state["fake_latent"])
    content = (tmp_path / "g.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(torch_archive.CheckpointFileError, match="cut.safetensors cannot be read"):
        convert_files.from_torch(tmp_path / "cut.safetensors", tmp_path / "x.safetensors")


def test_a_file_with_both_parts_needs_a_name(tmp_path, tokenizer_file):
    tokenizer = convert_files.from_torch(tokenizer_file, tmp_path / "t.safetensors")
    generator = convert_files.from_torch(published_checkpoints.GENERATOR, tmp_path / "g.safetensors", num_heads=4)
    both = pretrained.Weights({**tokenizer.modules, **generator.modules}, {**tokenizer.params, **generator.params})
    pretrained.save(tmp_path / "both.safetensors", both)
    with pytest.raises(convert.ConversionError, match=r"\['generator', 'tokenizer'\]: name one with --part"):
        convert_files.to_torch(tmp_path / "both.safetensors", tmp_path / "x.ckpt")
    convert_files.to_torch(tmp_path / "both.safetensors", tmp_path / "x.ckpt", "generator")
    assert "model_ema" in torch_archive.load(tmp_path / "x.ckpt")
    with pytest.raises(convert.ConversionError, match="holds no generator"):
        convert_files.to_torch(tmp_path / "t.safetensors", tmp_path / "y.ckpt", "generator")


def test_the_command_converts_and_summarizes(tmp_path):
    target = tmp_path / "g.safetensors"
    options = ["--num_heads=4", "--variant=raw", "--latent_scale=0.5"]
    done = command(f"--input={published_checkpoints.GENERATOR}", f"--output={target}", *options)
    assert done.returncode == 0, done.stderr
    assert f"generator with 0.3 M parameters written to {target}" in done.stderr
    weights = pretrained.load(target)
    assert weights.latent_scale == 0.5
    expected = reference_weights.weight("fake_latent", (1, 64), published_checkpoints.RAW)
    np.testing.assert_array_equal(weights.params["generator"]["null_embedding"], expected)


def test_the_command_ends_with_one_clear_line(tmp_path):
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(published_checkpoints.GENERATOR.read_bytes()[:100000])
    done = command(f"--input={cut}", f"--output={tmp_path / 'out.safetensors'}")
    assert done.returncode == 1
    assert (
        f"{cut} begins as a PyTorch file, but its directory cannot be read (File is not a zip file): truncated."
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["cut.ckpt"]


# --- Names of classes --------------------------------------------------------------------------------

NAMES = ("tench, Tinca tinca", "golden retriever", "c", "d", "e", "f", "g")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "\n".join(NAMES) + "\n"),
        ("crlf.txt", "\ufeff" + "\r\n".join(f" {name}\t" for name in NAMES) + "\r\n\r\n"),
        ("list.json", json.dumps(NAMES)),
        ("labels.json", json.dumps({str(i): name for i, name in reversed(list(enumerate(NAMES)))})),
    ],
)
def test_class_names_are_read_from_text_and_json(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert convert_files.read_class_names(tmp_path / name) == NAMES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"crane\nb\ncrane\n", r"the name 'crane' for the classes 0 and 2: make both unique"),
        ("a.txt", b"a\n\nc\n", "no name for class 1"),
        ("a.txt", b"", "no name for class 0"),
        ("a.txt", b"\xff\xfe", "no text in UTF-8"),
        ("a.json", b'{"0": "a", "2": "b"}', "no name for class 1; expected the labels 0 … 1"),
        ("a.json", b'["a", 3]', r"expected a list of names, or an object \{label: name\}"),
        ("a.json", b"[]", "expected a list of names"),
        ("a.json", b"3", "expected a list of names"),
        ("a.json", b"{", "a.json is no JSON"),
    ],
)
def test_other_class_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        convert_files.read_class_names(tmp_path / name)


def test_a_class_file_that_is_missing_or_enormous_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no class names at .*none\.txt"):
        convert_files.read_class_names(tmp_path / "none.txt")
    monkeypatch.setattr(convert_files, "MAX_CLASS_FILE_BYTES", 3)
    (tmp_path / "a.txt").write_text("abcd")
    with pytest.raises(ValueError, match="a.txt has more than 3 bytes"):
        convert_files.read_class_names(tmp_path / "a.txt")


def test_class_names_travel_with_converted_weights(tmp_path, tokenizer_file):
    target = tmp_path / "g.safetensors"
    source = published_checkpoints.GENERATOR
    convert_files.from_torch(source, target, num_heads=4, class_names=NAMES)
    assert load_pretrained(target).labels("golden retriever").tolist() == [1]
    for names in (NAMES[:-1], (*NAMES, "h")):
        message = f"{len(names)} class names for the 7 classes of"
        with pytest.raises(convert.ConversionError, match=message):
            convert_files.from_torch(source, target, num_heads=4, class_names=names)
    with pytest.raises(convert.ConversionError, match="is a tokenizer, which has no classes"):
        convert_files.from_torch(tokenizer_file, target, class_names=NAMES)


def test_the_command_reads_a_class_file(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    flags = [f"--input={published_checkpoints.GENERATOR}", f"--output={tmp_path / 'g.safetensors'}"]
    flags += [f"--class_file={tmp_path / 'names.txt'}"]
    args, _ = command_line.parse(COMMANDS["convert"], [*flags, "--num_heads=4"])
    COMMANDS["convert"].load().run(args)
    assert pretrained.load(tmp_path / "g.safetensors").class_names == NAMES
    args, _ = command_line.parse(COMMANDS["convert"], [*flags, "--to_torch"])
    with pytest.raises(ValueError, match="--class_file has no effect with --to_torch"):
        COMMANDS["convert"].load().run(args)
