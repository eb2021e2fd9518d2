"""Optional packages: every extra that messages name exists and holds the package."""

import pathlib
import tomllib

import pytest

from eqjax import extras

PROJECT = tomllib.loads((pathlib.Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
PIP_NAMES = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


@pytest.mark.parametrize("package", extras.EXTRAS)
def test_the_named_extra_installs_the_package(package):
    requirements = PROJECT["optional-dependencies"][extras.EXTRAS[package]]
    name = PIP_NAMES.get(str(package), str(package))
    assert [line for line in requirements if line.startswith(f"{name}>=")]


def test_an_installed_package_is_accepted_and_a_missing_one_is_named(monkeypatch):
    extras.require("matplotlib", "plots")
    monkeypatch.setitem(extras.EXTRAS, "no_such_package", "video")
    message = r"mp4 files: the package no_such_package is missing; install it with: pip install 'eqjax\[video\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        extras.require("no_such_package", "mp4 files")
