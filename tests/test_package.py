"""The shape of the package: what imports what, what is required, what importing it costs."""

import ast
import graphlib
import pathlib
import re
import runpy
import subprocess
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "eqjax").rglob("*.py"))
PROGRAMS = sorted([*(ROOT / "configs").rglob("*.py"), *(ROOT / "launch").rglob("*.py")])

# Requirements whose import name is another, and those that are read (photographs), not imported.
IMPORT_NAMES = {"Pillow": "PIL", "absl-py": "absl", "orbax-checkpoint": "orbax"}
NOT_IMPORTED = {"scikit-image", "scikit-learn"}
# What an extra brings, imported only where a user asks for it.
OPTIONAL = {"matplotlib", "wandb"}
MODELS = {"eqjax.tokenizer", "eqjax.generator", "eqjax.nets", "eqjax.sampling", "eqjax.pretrained"}


def imports(path):
    """Full names of what a file imports, anywhere in it: modules, and what is taken from them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write the full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unit(path):
    """The part of the library that a file belongs to: eqjax.data, eqjax.flow, or eqjax itself."""
    first = path.relative_to(ROOT / "eqjax").parts[0].removesuffix(".py")
    return "eqjax" if first == "__init__" else f"eqjax.{first}"


def unit_imports():
    """{part of the library: the other parts that it imports}."""
    graph = {unit(path): set() for path in LIBRARY}
    for path in LIBRARY:
        used = {".".join(name.split(".")[:2]) for name in imports(path) if name.split(".")[0] == "eqjax"}
        # `from eqjax import Tokenizer` and `import eqjax` count as the whole.
        graph[unit(path)] |= {name if name in graph else "eqjax" for name in used} - {unit(path)}
    return graph


def module_imports():
    """{module: the modules of the library that it imports}; a package counts as its `__init__`."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in LIBRARY}
    graph = {}
    for name, path in names.items():
        used = {n if n in names else n.rpartition(".")[0] for n in imports(path) if n.split(".")[0] == "eqjax"}
        graph[name] = used - {name}
    return graph


def parse(text):
    """{name: specifier} of requirement lines, without extras and comments."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return dict(re.fullmatch(r"([\w-]+)(.+)", line).groups() for line in lines if line)


def requirements():
    return parse((ROOT / "requirements.txt").read_text(encoding="utf-8"))


@pytest.fixture(name="setup_arguments")
def _setup_arguments(monkeypatch):
    """What setup.py hands to setuptools (which an environment need not have)."""
    arguments = {}
    fake, sdist = types.ModuleType("setuptools"), types.ModuleType("setuptools.command.sdist")
    fake.setup, fake.find_packages, sdist.sdist = arguments.update, lambda include: include, object
    monkeypatch.setitem(sys.modules, "setuptools", fake)
    monkeypatch.setitem(sys.modules, "setuptools.command", types.ModuleType("setuptools.command"))
    monkeypatch.setitem(sys.modules, "setuptools.command.sdist", sdist)
    runpy.run_path(str(ROOT / "setup.py"))
    return arguments


def test_every_module_says_what_it_is():
    silent = [str(path) for path in LIBRARY if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert LIBRARY and not silent


def test_every_folder_is_a_package():
    """Otherwise it would be missing from what is installed."""
    folders = {path.parent for path in LIBRARY}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_no_drawers():
    drawers = {"utils", "util", "helpers", "misc"}
    assert not [str(path) for path in [*LIBRARY, *PROGRAMS] if drawers & {path.stem, path.parent.name}]


def test_library_needs_no_other_framework_and_no_program():
    for path in LIBRARY:
        # The configurations are installed with the commands.
        forbidden = {"torch", "tensorflow", "launch", "tests"} | ({"configs"} if unit(path) != "eqjax.cli" else set())
        assert not {name.split(".")[0] for name in imports(path)} & forbidden, path


def test_modules_import_only_what_is_below_them():
    """Modules, not folders: the sampler is below the model, the panorama above it, and both are sampling."""
    graph = module_imports()
    assert list(graphlib.TopologicalSorter(graph).static_order())  # Raises CycleError, naming the cycle.


def test_parts_that_do_not_know_each_other():
    graph = unit_imports()
    assert "eqjax.generator" not in graph["eqjax.tokenizer"] and "eqjax.tokenizer" not in graph["eqjax.generator"]
    assert not graph["eqjax.data"] & MODELS
    # Only what is above the public interface uses it.
    assert not {name for name, used in graph.items() if "eqjax" in used} - {"eqjax.cli", "eqjax.perf"}
    users_of_training = {name for name, used in graph.items() if "eqjax.training" in used}
    assert not users_of_training - {"eqjax.cli", "eqjax.perf"}
    assert not {name for name, used in graph.items() if "eqjax.cli" in used}


def test_requirements_are_what_is_imported():
    names = {name.split(".")[0] for path in [*LIBRARY, *PROGRAMS] for name in imports(path)}
    third_party = names - set(sys.stdlib_module_names) - {"eqjax", "configs", "launch"} - OPTIONAL
    assert third_party == {IMPORT_NAMES.get(name, name) for name in requirements().keys() - NOT_IMPORTED}


def test_every_range_has_both_ends_and_the_oldest_is_tested():
    oldest = parse((ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8"))
    ranges = {name: re.fullmatch(r">=([\d.]+),<[\d.]+", bounds) for name, bounds in requirements().items()}
    assert {name: match and f"=={match[1]}" for name, match in ranges.items()} == oldest


def test_setup_takes_its_requirements_and_version_from_one_place(setup_arguments):
    import eqjax

    assert parse("\n".join(setup_arguments["install_requires"])) == requirements()
    assert setup_arguments["version"] == eqjax.__version__
    assert set(setup_arguments["extras_require"]) == {"cuda12", "cuda13", "tpu", "wandb", "analysis", "dev"}


def test_importing_is_light():
    """It neither starts a JAX backend nor loads other frameworks, so a program may still choose its devices."""
    code = """
import sys
import eqjax
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "importing eqjax starts a JAX backend"
heavy = {"torch", "tensorflow", "sklearn", "skimage"} & set(sys.modules)
assert not heavy, f"importing eqjax loads {heavy}"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_weights_have_model_cards_and_are_small():
    files = list((ROOT / "eqjax" / "weights").glob("*"))
    stems = {suffix: {file.stem for file in files if file.suffix == suffix} for suffix in (".safetensors", ".md")}
    assert stems[".safetensors"] == stems[".md"]
    assert sum(file.stat().st_size for file in files) <= 10e6
