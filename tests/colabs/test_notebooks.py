"""The notebooks: agreement with their sources, form, the first cell, and that all of them run."""

import importlib.util
import os
import re
from unittest import mock

import nbclient
import nbformat
import pytest

from colabs import build

ROOT = build.FOLDER.parent
BADGE = "https://colab.research.google.com/github/{}/blob/{}/colabs/{}.ipynb"
MOST_LINES = 25

every_notebook = pytest.mark.parametrize("name", build.NOTEBOOKS)


def source(name):
    return (build.FOLDER / f"{name}.py").read_text(encoding="utf-8")


def read(name):
    return nbformat.read(build.FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def first_code(name):
    return next(cell.source for cell in read(name).cells if cell.cell_type == "code")


def test_the_folder_holds_the_notebooks_their_sources_and_the_build_script():
    files = {path.name for path in build.FOLDER.iterdir() if path.suffix in (".py", ".ipynb", ".md")}
    assert files == {"README.md", "build.py"} | {n + end for n in build.NOTEBOOKS for end in (".py", ".ipynb")}


@every_notebook
def test_notebooks_agree_with_their_sources(name):
    written = (build.FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    expected = nbformat.writes(build.notebook(source(name))) + "\n"
    assert written == expected, "the notebook is not built from its source: python -m colabs.build"


@every_notebook
def test_no_outputs_are_stored(name):
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert cells and not [cell for cell in cells if cell.outputs or cell.execution_count is not None or cell.metadata]


@every_notebook
def test_the_kernel_is_python(name):
    assert read(name).metadata == {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


@every_notebook
def test_badge_and_first_cell_name_the_same_repository(name):
    assert f"({BADGE.format(build.REPOSITORY, build.BRANCH, name)})" in read(name).cells[0].source
    assert f'git+https://github.com/{build.REPOSITORY}"' in first_code(name)
    assert build.with_addresses(source(name)) == source(name)


def test_another_repository_reaches_badge_and_first_cell(monkeypatch):
    monkeypatch.setattr(build, "REPOSITORY", "someone/else")
    text = build.with_addresses(source("sampling"))
    assert text.count("someone/else") == 2 and "eqjax/eqjax" not in text


@every_notebook
def test_prose_precedes_every_code_cell(name):
    kinds = [cell.cell_type for cell in read(name).cells]
    assert kinds[0] == "markdown"
    alone = [i for i in range(1, len(kinds)) if kinds[i] == kinds[i - 1] == "code"]
    assert not alone, f"cells {alone} follow code without a word"


@every_notebook
def test_cells_are_short(name):
    long = [i for i, cell in enumerate(read(name).cells) if len(cell.source.splitlines()) > MOST_LINES]
    assert not long, f"cells {long} have more than {MOST_LINES} lines"


def test_first_cells_are_all_alike():
    assert len({first_code(name) for name in build.NOTEBOOKS}) == 1


@pytest.mark.parametrize("installed", [True, False])
def test_the_first_cell_installs_eqjax_only_if_it_is_missing(monkeypatch, installed):
    kernel = mock.Mock()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if installed else None)
    exec(first_code("sampling"), {"get_ipython": lambda: kernel})
    calls = [call.args for call in kernel.run_line_magic.mock_calls]
    assert calls == ([] if installed else [("pip", f"install --quiet git+https://github.com/{build.REPOSITORY}")])


@pytest.mark.slow
@every_notebook
def test_notebooks_run(name, tmp_path):
    """From top to bottom, in a folder of its own, without the tests' XLA flags: as a user runs it."""
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "NPROC")}
    environment["PYTHONPATH"] = str(ROOT)
    notebook = read(name)
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources)
    client.execute(env=environment)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    images = [output for output in outputs if re.search(r"image/(png|gif)", " ".join(output.get("data", {})))]
    assert len(images) >= 3, "a notebook shows images"
