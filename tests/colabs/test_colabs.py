"""The notebooks: agreement with their sources, form, the first cell on Colab, and that all of them run."""

import importlib.util
import os
import re
import subprocess
import sys

import jax
import nbclient
import nbformat
import pytest

from colabs import generate

ROOT = generate.FOLDER.parent
BADGE = "https://colab.research.google.com/github/{}/blob/{}/colabs/{}.ipynb"
MOST_LINES = 25

every_notebook = pytest.mark.parametrize("name", generate.NOTEBOOKS)


def source(name):
    return (generate.FOLDER / f"{name}.py").read_text(encoding="utf-8")


def read(name):
    return nbformat.read(generate.FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def first_code(name):
    return next(cell.source for cell in read(name).cells if cell.cell_type == "code")


def test_the_folder_holds_the_notebooks_and_what_makes_them():
    files = {path.name for path in generate.FOLDER.iterdir() if path.suffix in (".py", ".ipynb", ".md")}
    assert files == {"README.md", "generate.py"} | {n + end for n in generate.NOTEBOOKS for end in (".py", ".ipynb")}


@every_notebook
def test_pairs_agree(name):
    written = (generate.FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    expected = nbformat.writes(generate.notebook(source(name))) + "\n"
    assert written == expected, "the notebook is not made from its source: python -m colabs.generate"


@every_notebook
def test_no_outputs_are_stored(name):
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert cells and not [cell for cell in cells if cell.outputs or cell.execution_count is not None or cell.metadata]


@every_notebook
def test_kernel_is_python(name):
    assert read(name).metadata == {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


@every_notebook
def test_badge_and_first_cell_lead_to_the_same_repository(name):
    assert f"({BADGE.format(generate.REPOSITORY, generate.BRANCH, name)})" in read(name).cells[0].source
    assert f'address = "https://github.com/{generate.REPOSITORY}"' in first_code(name)
    assert generate.with_addresses(source(name)) == source(name)


def test_another_repository_reaches_badge_and_first_cell(monkeypatch):
    monkeypatch.setattr(generate, "REPOSITORY", "someone/else")
    text = generate.with_addresses(source("sampling"))
    assert text.count("someone/else") == 2 and "eqjax/eqjax" not in text


@every_notebook
def test_prose_stands_before_every_code_cell(name):
    kinds = [cell.cell_type for cell in read(name).cells]
    assert kinds[0] == "markdown"
    alone = [i for i in range(1, len(kinds)) if kinds[i] == kinds[i - 1] == "code"]
    assert not alone, f"cells {alone} follow code without a word"


@every_notebook
def test_cells_are_short(name):
    long = [i for i, cell in enumerate(read(name).cells) if len(cell.source.splitlines()) > MOST_LINES]
    assert not long, f"cells {long} have more than {MOST_LINES} lines"


def test_first_cells_are_all_alike():
    assert len({first_code(name) for name in generate.NOTEBOOKS}) == 1


def test_first_cell_does_nothing_where_eqjax_is_installed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail(f"ran {a}"))
    before = list(sys.path)
    exec(first_code("sampling"), {})
    assert sys.path == before and not list(tmp_path.iterdir())


def test_first_cell_fetches_eqjax_and_holds_jax_where_it_is(monkeypatch, tmp_path):
    commands = []

    def run(command, check):
        commands.append(command)
        if command[0] == "git":
            (tmp_path / command[-1]).mkdir()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(first_code("sampling"), {})
    exec(first_code("sampling"), {})  # Again, as after a restart: what was fetched is there.
    assert [command[0] for command in commands] == ["git", sys.executable, sys.executable]
    pins = commands[1][commands[1].index("--constraint") + 1]
    assert f"jax=={jax.__version__}" in (tmp_path / pins).read_text().split()
    assert "--upgrade" not in commands[1] and "-U" not in commands[1]
    assert sys.path[0] == str(tmp_path / "eqjax-source")


@pytest.mark.slow
@every_notebook
def test_notebook_runs(name, tmp_path):
    """From top to bottom, in a folder of its own, without the tests' XLA flags: as a user runs it."""
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "NPROC")}
    environment["PYTHONPATH"] = str(ROOT)
    notebook = read(name)
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources)
    client.execute(env=environment)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    images = [output for output in outputs if re.search(r"image/(png|gif)", " ".join(output.get("data", {})))]
    assert len(images) >= 3, "a notebook is there to show something"
