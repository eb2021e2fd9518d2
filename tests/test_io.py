"""Files are written whole or not at all."""

import errno
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from eqjax.io import atomic_write, check_writable, parse_json, read_json, remove_leftovers, write_json

# Begins to write the file of the command line, says under which name, and waits to be killed.
_WRITER = """
import sys, time
from eqjax.io import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    print(temporary, flush=True)
    time.sleep(600)
"""


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


def test_places_that_cannot_be_written_to_are_known_before(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("", "file", "link", "new", "new/folder/file"):
        check_writable(tmp_path / name, "--output")
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
    message = rf"--output={tmp_path}/file/a.png: nothing can be written in {tmp_path}/file: Not a directory"
    with pytest.raises(OSError, match=message):
        check_writable(tmp_path / "file" / "a.png", "--output")
    with pytest.raises(OSError, match="nothing can be written in /proc: "):
        check_writable("/proc/new/a.png", "--output")


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


def test_leftovers_are_old_files_of_atomic_write_for_the_named_files(tmp_path):
    with atomic_write(tmp_path / "a.txt") as temporary:
        name = os.path.basename(temporary)
    assert re.fullmatch(r"a\.txt\.[a-z0-9_]{8}\.tmp", name)
    kept = ["a.txt.tmp", "a.txt.abc.tmp", "a.txt.ABCDEFGH.tmp", "b.txt.abcdefgh.tmp", "xa.txt.abcdefgh.tmp", "a.txt"]
    for file in (*kept, name):
        (tmp_path / file).write_text("half")
        os.utime(tmp_path / file, (0, 0))
    (tmp_path / "a.txt.aaaaaaaa.tmp").write_text("being written")
    (tmp_path / "a.txt.ffffffff.tmp").mkdir()
    os.utime(tmp_path / "a.txt.ffffffff.tmp", (0, 0))
    assert remove_leftovers(tmp_path, r"a\.txt|c\.txt") == [name]
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "a.txt.aaaaaaaa.tmp", "a.txt.ffffffff.tmp"])
    assert remove_leftovers(tmp_path / "absent", ".*") == []


def test_a_file_that_a_living_process_writes_is_no_leftover(tmp_path):
    root = pathlib.Path(__file__).parent.parent
    command = [sys.executable, "-c", _WRITER, str(tmp_path / "a.txt")]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            temporary = process.stdout.readline().strip()
            os.utime(temporary, (0, 0))
            assert remove_leftovers(tmp_path, r"a\.txt") == [] and os.path.exists(temporary)
        finally:
            process.kill()
    assert remove_leftovers(tmp_path, r"a\.txt") == [os.path.basename(temporary)] and os.listdir(tmp_path) == []


def test_the_file_is_named_when_the_disk_is_full(tmp_path):
    with (
        pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/a.json'"),
        atomic_write(tmp_path / "a.json"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_vanishes_does_not_hide_the_error(tmp_path):
    def write():
        with atomic_write(tmp_path / "folder" / "a.json"):
            shutil.rmtree(tmp_path / "folder")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "it has NaN, which is no number of JSON"),
        ("[-Infinity]", "it has -Infinity"),
        ('{"a": {"b": 1, "b": 2}}', "it names 'b' twice"),
    ],
)
def test_json_that_readers_understand_differently_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)
