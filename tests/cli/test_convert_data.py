"""The conversion command: from a data set of the Hub to a training source."""

import json

import pyarrow
from pyarrow import parquet
import pytest

from eqjax.cli import command_line, convert_data
from eqjax.cli.main import COMMANDS
from eqjax.data import WebDatasetSource
from tests.data import tar_files


def test_the_command_converts_and_says_how_to_train(tmp_path, caplog):
    table = pyarrow.table({"image": [tar_files.png(10), tar_files.png(20)], "label": ["dog", "cat"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    arguments = [f"--input={tmp_path}/a.parquet", f"--output={tmp_path}/out"]
    args, _ = command_line.parse(COMMANDS["convert-data"], arguments)
    with caplog.at_level("INFO", logger="absl"):
        convert_data.run(args)
    assert "Wrote 2 images (column image, 2 classes of column label) to 1 archives" in caplog.text
    assert f"--config.data.source=webdataset --config.data.root={tmp_path}/out" in caplog.text
    assert json.loads((tmp_path / "out" / "class_names.json").read_text()) == ["cat", "dog"]
    assert [WebDatasetSource(tmp_path / "out")[i]["label"] for i in range(2)] == [1, 0]


def test_a_missing_input_is_named():
    with pytest.raises(command_line.flags.Error, match="--output is missing|--input is missing"):
        command_line.parse(COMMANDS["convert-data"], ["--output=x"])
