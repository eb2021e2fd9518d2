r"""Builds the notebooks from their sources: colabs/NAME.py (jupytext, py:percent) → colabs/NAME.ipynb, without outputs.

    python -m colabs.build

The same source always gives the same file. The address of the public repository, from the table [project.urls] of
pyproject.toml, is written into the badge and the first cell of every source. Without one there are no badges, and the
first cell says that eqjax has to be installed.
"""

import pathlib
import re
import tomllib

import jupytext
import nbformat

BRANCH = "main"
NOTEBOOKS = ("sampling", "token_meaning", "panorama", "own_images", "training", "equivariance", "orbits")
FOLDER = pathlib.Path(__file__).parent
# Colab opens notebooks of this host alone.
HOST = "https://github.com/"

_BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"
_INSTALL = """\
import importlib.util
import shutil

if importlib.util.find_spec("eqjax") is None:
    # A JAX that is there stays as it is; otherwise one for the GPU is installed, where there is a GPU.
    needs_jax = importlib.util.find_spec("jax") is None and shutil.which("nvidia-smi")
    extras = "analysis,photos,cuda12" if needs_jax else "analysis,photos"
    get_ipython().run_line_magic("pip", f"install --quiet 'eqjax[{{extras}}] @ git+{repository}'")
"""
_REFUSE = """\
import importlib.util

if importlib.util.find_spec("eqjax") is None:
    raise ModuleNotFoundError("eqjax is missing: in your copy of its code, pip install '.[analysis,photos]'")
"""


def repository() -> str | None:
    """Returns the address of the public repository, Repository in the table [project.urls]; None if there is none."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository")


def with_address(text: str, name: str, address: str | None) -> str:
    """Returns a source with the repository's address, or without one, in its badge and its first cell.

    Args:
      text: the source.
      name: its name, without extension.
      address: the repository, such as "https://github.com/owner/name".
    """
    text = re.sub(r"# \[!\[Open in Colab\].*\n#\n", "", text)
    if address is not None and address.startswith(HOST):
        owner_and_name = address.removeprefix(HOST).strip("/").removesuffix(".git")
        target = f"https://colab.research.google.com/github/{owner_and_name}/blob/{BRANCH}/colabs/{name}.ipynb"
        badge = f"# {_BADGE.format(address=target)}\n#\n"
        text = re.sub(r"(?m)^(# # .*\n#\n)", lambda title: title[1] + badge, text, count=1)
    cell = _REFUSE if address is None else _INSTALL.format(repository=address)
    return re.sub(r"# %%\nimport importlib\.util\n(?s:.*?)\n(?=\n# %%)", lambda _: f"# %%\n{cell}", text, count=1)


def notebook(text: str) -> nbformat.NotebookNode:
    """Returns the notebook of a source; its cells are numbered, not named at random."""
    built = jupytext.reads(text, fmt="py:percent")
    built.metadata = nbformat.from_dict({"kernelspec": dict(built.metadata["kernelspec"])})
    built.nbformat, built.nbformat_minor = 4, 5
    for number, cell in enumerate(built.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    nbformat.validate(built)
    return built


def main() -> None:
    """Writes all sources and notebooks."""
    address = repository()
    for name in NOTEBOOKS:
        source = FOLDER / f"{name}.py"
        text = with_address(source.read_text(encoding="utf-8"), name, address)
        source.write_text(text, encoding="utf-8")
        nbformat.write(notebook(text), FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
