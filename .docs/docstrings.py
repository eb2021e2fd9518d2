"""Prepares docstrings and signatures of eqjax for Sphinx."""

import ast
import functools
import inspect
import pathlib
import re
import sys
from typing import Any

from sphinx.application import Sphinx

# Longest default of an argument that a signature shows.
_LONGEST_DEFAULT = 40


def signature_as_written(
    _app: Sphinx, what: str, name: str, _thing: Any, _options: Any, signature: str | None, _result: str | None
) -> tuple[str, str | None] | None:
    """Returns a signature with its annotations as the source has them, such as Float[AnyArray, "B L D"].

    What Python makes of annotations of shapes is longer than the names that the source gives them.
    """
    node = _find(name) if signature is not None else None
    if isinstance(node, ast.ClassDef):
        return (fields, None) if (fields := _fields(node)) else None
    if isinstance(node, ast.FunctionDef):
        return _arguments(node, what == "method"), ast.unparse(node.returns) if node.returns else None
    return None


@functools.cache
def _tree(module: str) -> ast.Module:
    path = pathlib.Path(inspect.getsourcefile(sys.modules[module]))
    return ast.parse(path.read_text(encoding="utf-8"))


def _find(name: str) -> ast.AST | None:
    """Returns the definition of a function, method or class of this full name; None if the source has none."""
    parts = name.split(".")
    count = max(n for n in range(1, len(parts)) if ".".join(parts[:n]) in sys.modules)
    node = _tree(".".join(parts[:count]))
    for part in parts[count:]:
        found = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == part]
        if not found:
            return None
        node = found[-1]
    return node


def _arguments(node: ast.FunctionDef, is_method: bool) -> str:
    """Returns the arguments of a function as written, without self."""
    arguments = node.args
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    if is_method and not static and arguments.args:
        arguments = ast.arguments(**{**dict(ast.iter_fields(arguments)), "args": arguments.args[1:]})
        extra = len(arguments.defaults) - len(arguments.args) - len(arguments.posonlyargs)
        arguments.defaults = arguments.defaults[max(extra, 0) :]
    return f"({ast.unparse(arguments)})"


def _fields(node: ast.ClassDef) -> str:
    """Returns the fields of a dataclass, of a Flax module or of a named tuple as arguments; "" of another class."""
    init = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if init:
        return _arguments(init[0], True)
    bases = " ".join(ast.unparse(base) for base in node.bases)
    is_record = any("dataclass" in ast.unparse(d) for d in node.decorator_list) or re.search("Module|NamedTuple", bases)
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")]
    if not is_record or not fields:
        return ""
    return f"({', '.join(_field(field) for field in fields)})"


def _field(field: ast.AnnAssign) -> str:
    text = f"{field.target.id}: {ast.unparse(field.annotation)}"
    if field.value is None:
        return text
    value = ast.unparse(field.value)
    if found := re.fullmatch(r"(?:[\w.]+\.)?field\((.*)\)", value):
        default = re.search(r"default=([^,]+)", found[1])
        if default is None:
            return text if "default_factory" not in found[1] else f"{text} = ..."
        value = default[1]
    return f"{text} = {value if len(value) <= _LONGEST_DEFAULT else '...'}"


def prepare_docstring(_app: Sphinx, what: str, _name: str, _thing: Any, _options: Any, lines: list[str]) -> None:
    """Writes in reStructuredText what docstrings say in plain text: examples of modules are code, lone stars stars."""
    if what == "module":
        lines[:] = _with_code(lines)
    code = ("  ", ">>>") if what == "module" else ">>>"
    lines[:] = [line if line.startswith(code) else _escaped(line) for line in lines]


def _with_code(lines: list[str]) -> list[str]:
    """Marks indented blocks as code."""
    marked, previous = [], ""
    for line in lines:
        if line.startswith("  ") and not previous.strip():
            before = next((text for text in reversed(marked) if text.strip()), "")
            if not before.startswith("  "):
                marked += ["::", ""]
        marked.append(line)
        previous = line
    return marked


def _escaped(line: str) -> str:
    """Escapes the stars of *more and **options, which are no emphasis."""
    return re.sub(r"(?<![\\*\w`])(\*{1,2})(?=[\w.])(?![\w.][^*]*[\w.]\*)", lambda found: r"\*" * len(found[1]), line)
