"""Sphinx configuration: `make docs` builds the site into .cache/docs/html.

Tutorials are the notebooks of colabs/, copied here and not run. Reference pages are written from the code. Both go to
folders that git ignores.
"""

import pathlib
import sys

_HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

import docstrings  # noqa: E402 - beside this file
import pages  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

import eqjax  # noqa: E402

project = "eqjax"
author = "The eqjax authors"
project_copyright = "2026, The eqjax authors"
version = release = eqjax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "formulas", "sphinx_copybutton"]
exclude_patterns = ["generated/configurations.md"]  # A page includes it.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}

# Pages
smartquotes = False
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"

# Docstrings: `name` links to what has this name, and is code otherwise.
default_role = "py:obj"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Source", ("Attributes", "params_style")]
python_maximum_signature_line_length = 100
# Several modules have an alias of the same name, such as Batch; a signature links to any of them.
suppress_warnings = ["ref.python"]
toc_object_entries_show_parents = "hide"

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"eqjax {release}"
html_static_path = ["static"]
html_css_files = ["eqjax.css"]
html_copy_source = False
copybutton_prompt_text = ">>> "


def setup(app: Sphinx) -> None:
    """Writes the pages that are made from the code, and has docstrings prepared for Sphinx."""
    pages.write(_HERE)
    app.connect("autodoc-process-signature", docstrings.signature_as_written)
    app.connect("autodoc-process-docstring", docstrings.prepare_docstring)
