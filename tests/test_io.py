"""Files are written whole or not at all."""

import os
import pathlib

import pytest

from eqjax.io import atomic_write, read_json, write_json


def test_a_file_appears_with_its_folders_and_readable_by_all(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_write(path) as temporary:
        assert os.path.dirname(temporary) == str(path.parent)
        pathlib.Path(temporary).write_text("content")
        assert not path.exists()
    assert path.read_text() == "content"
    assert os.stat(path).st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half():
        with atomic_write(path) as temporary:
            pathlib.Path(temporary).write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_name_without_a_folder_is_written_to_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json("a.json", [1])
    assert read_json(tmp_path / "a.json") == [1]


def test_json_is_read_back_and_ends_in_a_newline(tmp_path):
    values = {"b": [1, 2.5, None, True], "a": {"é": "text"}}
    write_json(tmp_path / "a.json", values)
    assert read_json(tmp_path / "a.json") == values
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.endswith("}\n") and text.index('"b"') < text.index('"a"')
    write_json(tmp_path / "a.json", values, sort_keys=True)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.index('"a"') < text.index('"b"')


@pytest.mark.parametrize(("value", "error"), [(float("nan"), ValueError), (float("inf"), ValueError), ({1}, TypeError)])
def test_values_without_a_json_form_leave_the_old_file(tmp_path, value, error):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(error):
        write_json(tmp_path / "a.json", {"x": value})
    assert read_json(tmp_path / "a.json") == 1
    assert os.listdir(tmp_path) == ["a.json"]


def test_reading_a_bad_file_names_the_problem(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(ValueError, match="line 1 column"):
        read_json(tmp_path / "cut.json")
