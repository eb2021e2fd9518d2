r"""Makes the notebooks from their sources: colabs/NAME.py (jupytext, py:percent) → colabs/NAME.ipynb, without outputs.

    python -m colabs.generate

The same source always gives the same file. Badges and the first cells of all notebooks name REPOSITORY, which is
written into the sources, too.
"""

import pathlib
import re

import jupytext
import nbformat

REPOSITORY = "eqjax/eqjax"  # Owner and name on GitHub: where the badges lead, and what the first cells clone.
BRANCH = "main"
NOTEBOOKS = ("sampling", "token_meaning", "panorama", "training", "equivariance")
FOLDER = pathlib.Path(__file__).parent


def with_addresses(text):
    """A source with the repository's address in its badge and its first cell."""
    text = re.sub(
        r"(colab\.research\.google\.com/github)/.+?/(colabs/\w+\.ipynb)", rf"\1/{REPOSITORY}/blob/{BRANCH}/\2", text
    )
    return re.sub(r'(address = "https://github\.com)/[^"]+', rf"\1/{REPOSITORY}", text)


def notebook(text):
    """A source's text → the notebook, with cells numbered instead of named at random."""
    made = jupytext.reads(text, fmt="py:percent")
    made.metadata = nbformat.from_dict({"kernelspec": dict(made.metadata["kernelspec"])})
    made.nbformat, made.nbformat_minor = 4, 5
    for number, cell in enumerate(made.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    nbformat.validate(made)
    return made


def main():
    """Writes all sources and notebooks."""
    for name in NOTEBOOKS:
        source = FOLDER / f"{name}.py"
        text = with_addresses(source.read_text(encoding="utf-8"))
        source.write_text(text, encoding="utf-8")
        nbformat.write(notebook(text), FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
