"""The command for the Hub: its three actions, and what it refuses."""

import json

import pytest

from eqjax import pretrained
from eqjax.cli import command_line, hub
from eqjax.cli.main import COMMANDS


def run(*arguments):
    args, words = command_line.parse(COMMANDS["hub"], arguments)
    hub.run(args, words)


def test_download_prints_the_path_of_each_model(capsys):
    run("download", "photos", "photos")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and pretrained.load(lines[0]).modules["generator"].num_classes == 9


def test_card_writes_what_would_be_pushed(tmp_path):
    run("card", "photos", "owner/name", f"--output={tmp_path / 'card'}", "--samples=none", "--license=mit")
    assert {path.name for path in (tmp_path / "card").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert json.loads((tmp_path / "card" / "config.json").read_text())["format"] == "eqjax-1"
    assert "license: mit" in (tmp_path / "card" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected download MODEL …, upload MODEL owner/name, or card MODEL owner/name; got nothing"),
        (("downlaod", "photos"), "got downlaod photos"),
        (("download",), "got download"),
        (("upload", "photos"), "got upload photos"),
        (("card", "photos", "owner/name", "more"), "got card photos owner/name more"),
        (("download", "photos", "--private"), "--private has no effect with download"),
        (("card", "photos", "owner/name", "--message=x"), "--message has no effect with card"),
        (("upload", "photos", "owner/name", "--output=x"), "--output has no effect with upload"),
        (("upload", "photos", "photos"), "photos names no model of the Hugging Face Hub"),
        (("card", "photos", "owner/name", "--output=gs://a/b"), "--output is gs://a/b; expected a path"),
    ],
)
def test_wrong_words_and_flags_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(*arguments)
