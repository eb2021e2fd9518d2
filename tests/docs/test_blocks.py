"""The code blocks of README and the how-to pages: commands have flags that exist, and everything runs, at tiny size."""

import os
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from eqjax import Generator, Tokenizer, config_files, convert_files, pretrained
from eqjax.cli import command_line, main
from eqjax.evaluation import Extractor, networks, statistics
from tests import published_checkpoints, subprocesses
from tests.data import test_parquet
from tests.docs import blocks
from tests.evaluation import tiny_models
from tests.random_params import random_params

every_page = pytest.mark.parametrize("page", blocks.PAGES)
CLASSES = ("cat", "dog")


def shell_commands(page):
    return [
        command for language, body in blocks.blocks(page) if language == "bash" for command in blocks.commands(body)
    ]


def reason_not_to_run(command):
    return next((reason for begin, reason in blocks.NOT_RUN.items() if command.strip().startswith(begin)), None)


@every_page
def test_documented_commands_have_flags_and_fields_that_exist(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in shell_commands(page):
        variables, words = blocks.words(command)
        if "--" in words:  # A starter and the command that it starts.
            words = words[words.index("--") + 1 :]
        elif "eqjax" in words:
            words = words[words.index("eqjax") :]
        if words[:1] == ["eqjax"] and words[1:] and not variables.get("DRY_RUN"):
            command_line.parse(main.COMMANDS[words[1]], words[2:])


@every_page
def test_blocks_that_do_not_run_are_listed(page):
    for command in shell_commands(page):
        _, words = blocks.words(command)
        known = words[0] in ("eqjax", "python") or re.match(r"launch/\w+\.sh$", words[0])
        assert known or reason_not_to_run(command), f"{page}: no test runs {command!r}"


def test_every_reason_not_to_run_is_used():
    every_command = [command for page in blocks.PAGES for command in shell_commands(page)]
    every_command += [body for page in blocks.PAGES for language, body in blocks.blocks(page) if language == "python"]
    for begin in blocks.NOT_RUN:
        assert any(command.strip().startswith(begin) for command in every_command), begin


# ── Running ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(name="folders", scope="module")
def _folders(tmp_path_factory):
    """A folder with the weights and reference statistics that pages name, and a folder of images."""
    files, images = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (images / name).mkdir()
        for i in range(4):
            Image.fromarray(rng.integers(0, 255, (32, 40, 3), np.uint8)).save(images / name / f"{i}.png")
    for name in ("runs/tokenizer/model", "runs/generator/model", "stand_in"):
        write_model(files / f"{name}.safetensors")
    for name, config in (("tokenizer", "imagenet_tokenizer:tiny"), ("photos_tiny", "photos_tokenizer:tiny")):
        module = pretrained.build_module("tokenizer", dict(config_files.load(config).tokenizer))
        weights = pretrained.Weights({"tokenizer": module}, {"tokenizer": random_params(module)}, 1.0)
        pretrained.save(files / f"{name}.safetensors", weights)
    noise = iter([rng.integers(0, 256, (20, 32, 32, 3), np.uint8)])
    reference = Extractor(tiny_models.network(), per_device_batch_size=8).collect(noise, 20).statistics
    statistics.save(files / "reference.npz", reference)
    write_published(files)
    os.mkdir(files / "parquet")
    test_parquet.write(files / "parquet" / "train.parquet", [0, 1, 0, 1])
    return files, images


def write_model(path):
    """Writes a tokenizer and a generator of two classes."""
    model = tiny_models.model(classes=len(CLASSES))
    parts = {"tokenizer": model.tokenizer, "generator": model.generator}
    params = {"tokenizer": model.tokenizer_params, "generator": model.generator_params}
    path.parent.mkdir(parents=True, exist_ok=True)
    pretrained.save(path, pretrained.Weights(parts, params, 1.0, CLASSES))


def write_published(folder):
    """Writes a tokenizer and a generator that fit together in the published format."""
    tokenizer = Tokenizer(**{**published_checkpoints.TOKENIZER_FIELDS, "semantic": None})
    generator = Generator(
        **{**published_checkpoints.GENERATOR_FIELDS, "latent_dim": tokenizer.embed_dim, "num_heads": 2}
    )
    for name, part, module in (("tokenizer", "tokenizer", tokenizer), ("places_large", "generator", generator)):
        path = folder / f"{name}.published.safetensors"
        pretrained.save(path, pretrained.Weights({part: module}, {part: random_params(module)}))
        convert_files.to_torch(path, folder / f"{name}.ckpt")
        path.unlink()


@pytest.fixture(name="images")
def _images(folders, tmp_path, monkeypatch):
    """The folder of images; the test runs in a folder of its own with the other files, and with tiny networks."""
    files, images = folders
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(networks, "inception", lambda _: tiny_models.network())
    distance = networks.PerceptualDistance(lambda _, x, y: jnp.mean(jnp.abs(x - y), (1, 2, 3)), {})
    monkeypatch.setattr(networks, "lpips", lambda _: distance)
    return images


def run_python(code, names, root):
    """Runs a Python block with the names of those before it."""
    code = blocks.smaller(code).replace("/path/to/root", str(root))
    # An endless iterator is ended, as a reader would.
    code = re.sub(r"(?m)^    \.\.\..*$", "    break", code)
    exec(compile(code, "block", "exec"), names)


def run_command(command, root, monkeypatch):
    """Runs a command of a shell block."""
    variables, words = blocks.smaller_command(command, root)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if words[:2] == ["eqjax", "plan"]:  # It makes as many virtual devices as it needs, in a process of its own.
        words = [sys.executable, "-m", *words]
    if words[0] == "eqjax":
        main.main(words[1:])
    elif words[:2] == ["python", "-c"]:
        exec(compile(words[2], "block", "exec"), {})
    else:
        paths = [os.path.dirname(sys.executable), os.environ["PATH"]]
        environment = {**subprocesses.environment(), "PYTHONPATH": str(blocks.ROOT), "PATH": os.pathsep.join(paths)}
        is_script = words[0].startswith("launch/")
        done = subprocess.run(
            ["bash", *words] if is_script else words,
            env=environment,
            cwd=blocks.ROOT if is_script else None,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for name in variables:
        monkeypatch.delenv(name)


@pytest.mark.slow
def test_python_of_the_readme_runs_as_pasted(tmp_path, monkeypatch):
    names = {}
    write_model(tmp_path / "stand_in.safetensors")
    monkeypatch.chdir(tmp_path)
    for language, body in blocks.blocks("README.md"):
        if language == "python":
            run_python(body, names, tmp_path)
    assert names["images"].shape == (1, 16, 256, 3) and names["wide"].shape == (128, (24 + 128 + 24) * 16, 3)


@every_page
def test_starters_print_what_they_would_do(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in shell_commands(page):
        if "DRY_RUN" in command or "--dry_run" in command:
            run_command(command, tmp_path, monkeypatch)


@pytest.mark.slow
@every_page
def test_blocks_run_one_after_another(page, images, monkeypatch):
    names = {}
    for language, body in blocks.blocks(page):
        if language == "python":
            if reason_not_to_run(body) is None:
                run_python(body, names, images)
            continue
        for command in blocks.commands(body):
            if reason_not_to_run(command) is None:
                run_command(command, images, monkeypatch)
