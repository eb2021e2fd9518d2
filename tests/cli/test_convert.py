"""The conversion command: both published formats there and back, and its errors."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from eqjax import convert, convert_files, pretrained
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
