"""The package: which module imports which, what is required, what importing costs."""

import ast
import graphlib
import importlib
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import eqjax
from eqjax.cli.main import main

ROOT = pathlib.Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "eqjax").rglob("*.py"))
PROGRAMS = sorted([*(ROOT / "configs").rglob("*.py"), *(ROOT / "launch").rglob("*.py")])

# Requirements with another import name, and one whose photographs are read without importing it.
IMPORT_NAMES = {"Pillow": "PIL", "absl-py": "absl", "orbax-checkpoint": "orbax", "scikit-learn": "sklearn"}
NOT_IMPORTED = {"scikit-image"}
# Extras that are not of packages which eqjax imports: hardware, development.
OTHER_EXTRAS = {"cuda12", "cuda13", "tpu", "docs", "dev"}
MODELS = {"eqjax.tokenizer", "eqjax.generator", "eqjax.nets", "eqjax.sampling", "eqjax.loading", "eqjax.pretrained"}


def imports(path):
    """Returns the full names of all modules and objects that a file imports, at any place."""
    return imports_of(ast.walk(ast.parse(path.read_text(encoding="utf-8"))), path)


def imports_of(nodes, path=""):
    """Returns the full names that import statements among the nodes import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write the full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unit(path):
    """Returns the part of the library to which a file belongs: eqjax.data, eqjax.flow, or eqjax itself."""
    first = path.relative_to(ROOT / "eqjax").parts[0].removesuffix(".py")
    return "eqjax" if first == "__init__" else f"eqjax.{first}"


def unit_imports():
    """Returns {part of the library: other parts that it imports}."""
    graph = {unit(path): set() for path in LIBRARY}
    for path in LIBRARY:
        used = {".".join(name.split(".")[:2]) for name in imports(path) if name.split(".")[0] == "eqjax"}
        # `from eqjax import Tokenizer` and `import eqjax` count as the whole.
        graph[unit(path)] |= {name if name in graph else "eqjax" for name in used} - {unit(path)}
    return graph


def module_imports():
    """Returns {module: modules of the library that it imports}; a package counts as its `__init__`."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in LIBRARY}
    graph = {}
    for name, path in names.items():
        used = {n if n in names else n.rpartition(".")[0] for n in imports(path) if n.split(".")[0] == "eqjax"}
        graph[name] = used - {name}
    return graph


def parse(text):
    """Returns {name: specifier} of requirement lines, without extras, markers and comments."""
    lines = (re.split("[#;]", line)[0].strip() for line in text.splitlines())
    matches = (re.fullmatch(r"([\w-]+)(.+)", line) for line in lines if line)
    return {match[1]: match[2] for match in matches if match}


def optional(project):
    """Returns {name: specifier} of the packages that extras add for users."""
    extras = project["project"]["optional-dependencies"]
    return parse("\n".join(line for name in extras.keys() - OTHER_EXTRAS for line in extras[name]))


def requirements():
    return parse((ROOT / "requirements.txt").read_text(encoding="utf-8"))


@pytest.fixture(name="project", scope="module")
def _project():
    """The tables of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_module_has_a_docstring():
    silent = [str(path) for path in LIBRARY if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert LIBRARY and not silent


def test_every_folder_is_a_package():
    """Otherwise it would be missing from the wheel."""
    folders = {path.parent for path in LIBRARY}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_no_module_is_called_utils():
    drawers = {"utils", "util", "helpers", "misc"}
    assert not [str(path) for path in [*LIBRARY, *PROGRAMS] if drawers & {path.stem, path.parent.name}]


def test_the_library_imports_neither_other_frameworks_nor_programs():
    forbidden = {"torch", "tensorflow", "configs", "launch", "tests"}
    found = {str(path): {name.split(".")[0] for name in imports(path)} & forbidden for path in LIBRARY}
    assert not {path: names for path, names in found.items() if names}


def test_modules_import_only_what_is_below_them():
    """By modules, not folders: in sampling, the sampler is below the model and the panorama above it."""
    graph = module_imports()
    assert list(graphlib.TopologicalSorter(graph).static_order())  # Raises CycleError, naming the cycle.


def test_parts_of_the_library_are_independent():
    graph = unit_imports()
    assert "eqjax.generator" not in graph["eqjax.tokenizer"] and "eqjax.tokenizer" not in graph["eqjax.generator"]
    assert not graph["eqjax.data"] & MODELS
    # Only what is above the public interface uses it.
    assert not {name for name, used in graph.items() if "eqjax" in used} - {"eqjax.cli", "eqjax.perf"}
    users_of_training = {name for name, used in graph.items() if "eqjax.training" in used}
    assert not users_of_training - {"eqjax.cli", "eqjax.perf"}
    assert {name for name, used in graph.items() if "eqjax.cli" in used} == {"eqjax.__main__"}


def test_requirements_and_extras_are_the_imported_packages(project):
    names = {name.split(".")[0] for path in [*LIBRARY, *PROGRAMS] for name in imports(path)}
    third_party = names - set(sys.stdlib_module_names) - {"eqjax", "configs", "launch"}
    declared = (requirements().keys() | optional(project).keys()) - NOT_IMPORTED
    assert third_party == {IMPORT_NAMES.get(name, name) for name in declared}
    assert not requirements().keys() & optional(project).keys()


def test_packages_of_extras_are_imported_only_where_they_are_used(project):
    """At a module's top level they would be needed by everybody who imports it."""
    packages = {IMPORT_NAMES.get(name, name) for name in optional(project)}
    found = {}
    for path in LIBRARY:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        found[str(path)] = {name.split(".")[0] for name in imports_of(top)} & packages
    assert not {path: names for path, names in found.items() if names}


def test_every_lower_bound_is_tested(project):
    oldest = parse((ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8"))
    bounds = {name: re.match(r">=([\d.]+)", text) for name, text in (requirements() | optional(project)).items()}
    tested = bounds.keys() - {"wandb"}  # Its tests replace it.
    assert {name: match and f"=={match[1]}" for name, match in bounds.items() if name in tested} == oldest


def test_upper_bounds_have_a_reason():
    """pip would take away a newer JAX that a user has installed."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    bounded = [line for line in lines if "<" in line.split("#")[0]]
    assert bounded and not [line for line in bounded if "  # " not in line]
    assert {re.split("[>=<]", line)[0] for line in bounded} == {"grain", "orbax-checkpoint"}


def test_windows_is_refused_with_a_sentence():
    code = "import sys; sys.platform = 'win32'; import eqjax"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: eqjax runs on Linux and macOS;")
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert 'array_record>=0.8.1; sys_platform != "win32"' in lines  # Else pip would stop before the sentence.


def test_version_and_requirements_have_one_place_each(project):
    dynamic = project["tool"]["setuptools"]["dynamic"]
    assert dynamic == {"version": {"attr": "eqjax.__version__"}, "dependencies": {"file": ["requirements.txt"]}}
    assert set(dynamic) == set(project["project"]["dynamic"])
    # Tools that read this file without importing the package need a literal.
    tree = ast.parse((ROOT / "eqjax" / "__init__.py").read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    values = [node.value for node in assigned if ast.unparse(node.targets[0]) == "__version__"]
    assert [ast.literal_eval(value) for value in values] == [eqjax.__version__]


def test_the_console_script_is_the_main_function_of_the_commands(project):
    module, _, name = project["project"]["scripts"]["eqjax"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


def test_public_names_are_imported_at_first_use():
    code = """
import sys
import eqjax
assert "jax" not in sys.modules, "importing eqjax imports JAX"
assert all(getattr(eqjax, name) is not None for name in eqjax.__all__)
assert set(eqjax.__all__) <= set(dir(eqjax))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        eqjax.sampel  # noqa: B018 — the access itself is tested


def test_importing_starts_no_backend_and_loads_no_framework():
    """A program may choose its devices after the import."""
    code = """
import sys
import eqjax
for name in eqjax.__all__:
    getattr(eqjax, name)
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
    assert sum(file.stat().st_size for file in files) <= 25e6


def test_random_draws_name_their_dtype():
    """With JAX_ENABLE_X64 the default is another one, and so are the numbers."""
    least = {"normal": 3, "uniform": 3, "randint": 5}
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("jax.random."):
                continue
            count = least.get(ast.unparse(node.func).rpartition(".")[2], 0)
            named = any(keyword.arg == "dtype" for keyword in node.keywords)
            assert named or len(node.args) >= count, f"{path}:{node.lineno}: {ast.unparse(node)}"
