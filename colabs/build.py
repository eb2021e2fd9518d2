r"""Builds the notebooks from their sources: colabs/NAME.py (jupytext, py:percent) → colabs/NAME.ipynb, without outputs.

    python -m colabs.build

The same source always gives the same file. REPOSITORY is written into the badge and the first cell of every source.
"""

import pathlib
import re

import jupytext
import nbformat

REPOSITORY = "eqjax/eqjax"  # Owner and name on GitHub: badges link to it, first cells install from it.
BRANCH = "main"
NOTEBOOKS = ("sampling", "token_meaning", "panorama", "training", "equivariance")
FOLDER = pathlib.Path(__file__).parent


def with_addresses(text: str) -> str:
    """Returns a source with the repository's address in its badge and its first cell."""
    text = re.sub(
        r"(colab\.research\.google\.com/github)/.+?/(colabs/\w+\.ipynb)", rf"\1/{REPOSITORY}/blob/{BRANCH}/\2", text
    )
    return re.sub(r'(git\+https://github\.com)/[^"]+', rf"\1/{REPOSITORY}", text)


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
    for name in NOTEBOOKS:
        source = FOLDER / f"{name}.py"
        text = with_addresses(source.read_text(encoding="utf-8"))
        source.write_text(text, encoding="utf-8")
        nbformat.write(notebook(text), FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
