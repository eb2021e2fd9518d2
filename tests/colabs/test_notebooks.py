"""The notebooks: agreement with their sources, form, the first cell, and that all of them run."""

import importlib.util
import os
import re
import shutil
from unittest import mock

import nbclient
import nbformat
import pytest

from colabs import build

ROOT = build.FOLDER.parent
BADGE = "https://colab.research.google.com/github/{}/blob/{}/colabs/{}.ipynb"
MOST_LINES = 25
ADDRESS = "https://github.com/someone/else"

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
def test_badge_and_first_cell_are_those_of_the_repository(name):
    assert build.with_address(source(name), name, build.repository()) == source(name)
    assert (build.repository() is None) == ("colab-badge" not in source(name))


@every_notebook
def test_a_repository_reaches_badge_and_first_cell(name):
    with_one = build.with_address(source(name), name, ADDRESS)
    assert with_one.count("someone/else") == 2
    assert f"({BADGE.format('someone/else', build.BRANCH, name)})" in build.notebook(with_one).cells[0].source
    assert build.with_address(with_one, name, ADDRESS) == with_one
    assert build.with_address(with_one, name, build.repository()) == source(name)


def test_a_repository_of_another_host_has_no_badge():
    text = build.with_address(source("sampling"), "sampling", "https://git.example.org/a/b")
    assert "colab-badge" not in text and "git+https://git.example.org/a/b" in text


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


@pytest.mark.parametrize(
    ("installed", "has_gpu", "extras"),
    [
        (("eqjax", "jax"), True, None),
        (("jax",), True, "analysis,photos"),  # As on Colab: its JAX stays.
        ((), True, "analysis,photos,cuda12"),
        ((), False, "analysis,photos"),
    ],
)
def test_the_first_cell_installs_what_is_missing(monkeypatch, installed, has_gpu, extras):
    kernel = mock.Mock()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in installed else None)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi" if has_gpu else None)
    text = build.notebook(build.with_address(source("sampling"), "sampling", ADDRESS))
    exec(next(cell.source for cell in text.cells if cell.cell_type == "code"), {"get_ipython": lambda: kernel})
    calls = [call.args for call in kernel.run_line_magic.mock_calls]
    assert calls == ([] if extras is None else [("pip", f"install --quiet 'eqjax[{extras}] @ git+{ADDRESS}'")])


def test_without_a_repository_the_first_cell_says_what_to_do(monkeypatch):
    text = build.with_address(source("sampling"), "sampling", None)
    cell = next(cell.source for cell in build.notebook(text).cells if cell.cell_type == "code")
    exec(cell, {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"in your copy of its code, pip install '\.\[analysis,photos\]'"):
        exec(cell, {})


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
