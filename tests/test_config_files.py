"""Configuration files: found by name and by path, and their variants."""

import os
import pathlib
import shutil

import pytest

from eqjax import config_files
from eqjax.config_files import parse_variant

FOLDER = pathlib.Path(__file__).parent.parent / "configs"


def test_the_shipped_files_are_those_of_the_repository():
    assert config_files.folder() == FOLDER
    assert config_files.names() == sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", ["photos_tokenizer", "photos_tokenizer.py", "configs/photos_tokenizer.py"])
@pytest.mark.parametrize("variant", ["", ":tiny", ":tiny,style=published"])
def test_shipped_files_are_found_by_name_from_everywhere(name, variant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_files.find(name + variant) == str(FOLDER / "photos_tokenizer.py") + variant


def test_an_existing_file_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(FOLDER / "photos_tokenizer.py", tmp_path / "photos_tokenizer.py")
    assert config_files.find("photos_tokenizer.py:tiny") == "photos_tokenizer.py:tiny"
    path = tmp_path / "mine.py"
    os.rename(tmp_path / "photos_tokenizer.py", path)
    assert config_files.find(f"{path}:tiny") == f"{path}:tiny"
    assert config_files.load(f"{path}:tiny") == config_files.load("photos_tokenizer:tiny")


def test_an_unknown_file_is_named_with_the_nearest():
    message = "there is no file photo_tokenizer.py, .* the nearest of comparison, .* is photos_tokenizer"
    with pytest.raises(FileNotFoundError, match=message):
        config_files.load("photo_tokenizer.py:tiny")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("get_config = None", "mine.py defines no function get_config"),
        ("def get_config(): return {'a': 1}", r"get_config\(\) of .*mine.py returns dict; return an ml_collections"),
        ("def get_config(): pass", r"get_config\(\) of .*mine.py returns NoneType; return"),
    ],
)
def test_a_file_that_returns_no_configuration_is_refused(text, message, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        config_files.load(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", r"mine.py, line 1: SyntaxError: invalid syntax. A configuration is a Python file"),
        ("import no_such_module", "mine.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config():\n    return typo", "mine.py, line 2: NameError: name 'typo' is not defined"),
        ("import json\njson.loads('{')", "Expecting property name"),
        ("class Mine: pass\nprint(Mine().a)", "mine.py, line 2: AttributeError: 'Mine' object has no attribute 'a'"),
    ],
)
def test_an_error_in_a_file_is_named_with_its_line(text, message, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        config_files.load(str(tmp_path / "mine.py"))


def test_variants_take_the_types_of_their_defaults():
    assert parse_variant("tiny,width=3", tiny=False, width=1, scale=0.5) == {"tiny": True, "width": 3, "scale": 0.5}
    assert parse_variant("tiny=false,scale=2", tiny=True, scale=0.5) == {"tiny": False, "scale": 2.0}
    assert parse_variant("size=B", size=("L", "B")) == {"size": "B"}
    assert parse_variant(None, tiny=False, size=("L", "B")) == {"tiny": False, "size": "L"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tinny", "unknown variant 'tinny' in ':tinny'; known: tiny, width=1, size=L.B[.]$"),
        ("width=x", "'width=x'.*type int"),
        ("tiny=3", "'tiny=3'.*type bool"),
        ("size=XL", r"size='XL' in ':size=XL' is not one of \('L', 'B'\)"),
        ("size", "size='' in ':size' is not one of"),
    ],
)
def test_wrong_variants_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_variant(text, tiny=False, width=1, size=("L", "B"))
