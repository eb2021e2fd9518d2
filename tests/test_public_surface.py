"""What a reader and a type checker see of the package: annotations everywhere in public."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "eqjax"
MODULES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def _public_functions(tree):
    """Functions of a module and methods of its classes whose names say that others may call them."""
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        for member in members:
            if isinstance(member, ast.FunctionDef) and (not member.name.startswith("_") or member.name.endswith("__")):
                yield member, member is not node


def _missing(function, is_method):
    """Names of the arguments without annotation, and "return"."""
    arguments = function.args
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
    named = (arguments.posonlyargs + arguments.args)[1 if is_method and not static else 0 :] + arguments.kwonlyargs
    named += [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    missing = [argument.arg for argument in named if argument.annotation is None]
    return missing + (["return"] if function.returns is None else [])


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_are_annotated(module):
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    missing = {
        f"{module}:{function.lineno} {function.name}": names
        for function, is_method in _public_functions(tree)
        if (names := _missing(function, is_method))
    }
    assert not missing


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()
