"""The table of `eqjax measure-quality` for the shipped model, at a tiny size."""

import json

import pytest

from eqjax.cli.main import main

FLAGS = ["measure-quality", "--num_images=3", "--num_columns=4", "--num_flow_steps=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    main([*FLAGS, f"--output={folder}"])
    return folder


@pytest.mark.slow
def test_every_set_is_measured_for_every_class(folder):
    document = json.loads((folder / "quality.json").read_text())
    sets = document["sets"]
    assert list(sets) == ["real", "held out", "reconstructed", "reconstructed, held out", "samples"]
    assert {name for name, found in sets.items() if found["psnr"]} == {"reconstructed", "reconstructed, held out"}
    assert len(sets["samples"]["classes"]) == len(sets["real"]["classes"]) == 9
    assert document["sampling"]["num_flow_steps"] == 2
    lines = (folder / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(sets)


@pytest.mark.slow
def test_reconstructions_lose_fine_detail_and_real_crops_do_not(folder):
    sets = json.loads((folder / "quality.json").read_text())["sets"]
    finest = {
        name: sorted(found["energy_kept"][-1] for found in sets[name]["classes"].values())[4]
        for name in ("real", "reconstructed")
    }
    assert finest["reconstructed"] < 0.3 < 0.5 < finest["real"]
    assert sets["reconstructed"]["psnr"] > 20


def test_one_image_per_class_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*FLAGS, "--num_images=1", f"--output={tmp_path}"])
    assert "num_images" in capsys.readouterr().err
