"""The command that fetches the weights of the frozen networks."""

import pathlib
import subprocess
import sys

import pytest

from eqjax.cli import fetch_weights
from tests import frozen_network_files

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_all_files_of_the_named_networks_are_fetched_from_a_mirror(tmp_path, monkeypatch):
    frozen_network_files.narrow(monkeypatch)
    mirror, folder = tmp_path / "mirror", tmp_path / "folder"
    written = [*frozen_network_files.write("lpips", mirror), *frozen_network_files.write("dino", mirror)]
    assert fetch_weights.fetch_all(["lpips", "dino"], folder, mirror.as_uri() + "/") == []
    for path in written:
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_one_missing_file_does_not_keep_the_others_away(tmp_path, monkeypatch):
    frozen_network_files.narrow(monkeypatch)
    vgg, _ = frozen_network_files.write("lpips", tmp_path / "mirror")
    vgg.unlink()
    (error,) = fetch_weights.fetch_all(["lpips"], tmp_path / "folder", (tmp_path / "mirror").as_uri())
    assert f"put it here as {tmp_path / 'folder' / vgg.name}" in str(error)
    assert (tmp_path / "folder" / "lpips_vgg.pth").exists()


def test_an_unknown_network_is_refused_before_anything_is_fetched(tmp_path):
    with pytest.raises(ValueError, match="called 'dino3'"):
        fetch_weights.fetch_all(["dino", "dino3"], tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_the_command_fails_and_names_the_files_and_their_folder(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "eqjax",
            "fetch-weights",
            "inception",
            f"--folder={tmp_path}",
            "--mirror=file:///nowhere",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    name = "pt_inception-2015-12-05-6726825d.pth"
    assert f"file:///nowhere/{name} cannot be fetched" in done.stderr
    assert f"put it here as {tmp_path / name}" in done.stderr
    assert "471 arrays, " in done.stderr and "SHA-256 6726825d…" in done.stderr
