"""Writes the pages of the site that are made from the code: API, commands, configurations; and copies the notebooks."""

import ast
from collections.abc import Iterator
import importlib
import inspect
import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
GENERATED = "generated"
TUTORIALS = "tutorials/notebooks"


def write(folder: pathlib.Path) -> None:
    """Writes all pages below a folder; files that would not change keep their times, so that Sphinx skips them."""
    made = {f"{GENERATED}/{name}": text for name, text in {**api(), **commands(), **configurations()}.items()}
    made |= {f"{TUTORIALS}/{path.name}": path.read_text(encoding="utf-8") for path in (ROOT / "colabs").glob("*.ipynb")}
    for name in (GENERATED, TUTORIALS):
        for path in (folder / name).rglob("*.*"):
            if path.is_file() and str(path.relative_to(folder)) not in made:
                path.unlink()
    for name, text in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# ── API ───────────────────────────────────────────────────────────────────────────────────────

# Packages in the order of the reference, with the title of their part.
PARTS = {
    "": "Models, weights and files",
    "data": "Data",
    "tokenizer": "Tokenizer",
    "generator": "Generator",
    "sampling": "Sampling",
    "serving": "The page",
    "latent_cache": "Latent caches",
    "training": "Training",
    "evaluation": "Evaluation",
    "equivariance": "Equivariance",
    "nets": "Frozen networks",
    "convert": "Conversion",
    "recorded": "Recorded outputs",
    "perf": "Cost and benchmarks",
    "cli": "Commands",
}


def modules() -> list[str]:
    """Returns the names of all public modules of eqjax, "eqjax" first."""
    names = []
    for path in sorted((ROOT / "eqjax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts) and "configs" not in parts:
            names.append(".".join(parts))
    return sorted(names)


def part_of(module: str) -> str:
    """Returns the package below eqjax that a module belongs to, "" for those in eqjax itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in PARTS else ""


def public_names(module: str) -> dict[str, ast.stmt]:
    """Returns the public names that a module defines itself, {name: its node in the syntax tree}, in their order."""
    tree, _ = _source(module)
    names = {}
    for node in _statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
        elif isinstance(node, ast.Assign):
            names |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    return {name: node for name, node in names.items() if not name.startswith("_")}


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yields the statements of a module, also those under a condition such as TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _statements([*node.body, *node.orelse])
        else:
            yield node


def exported_names(module: str) -> dict[str, str]:
    """Returns the names that a module takes from others and offers itself: {name: full name where it is defined}."""
    offered = getattr(importlib.import_module(module), "__all__", ())
    found = {}
    for name in offered:
        if name not in public_names(module):
            thing = getattr(importlib.import_module(module), name)
            found[name] = thing.__name__ if inspect.ismodule(thing) else _home(module, name, thing)
    return found


def _home(module: str, name: str, thing: Any) -> str:
    """Returns the full name of an exported name, in the module that defines it."""
    home = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__name__', name)}"
    if home.startswith("eqjax") and home.rpartition(".")[2] in public_names(home.rpartition(".")[0]):
        return home
    for node in ast.walk(_source(module)[0]):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return f"{node.module}.{alias.name}"
    raise LookupError(f"{module}.{name}: no module of eqjax defines it.")


def _source(module: str) -> tuple[ast.Module, list[str]]:
    """Returns the syntax tree and the lines of a module."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    return ast.parse(text), text.splitlines()


def api() -> dict[str, str]:
    """Returns the pages of the API: one per module, one per part, and one that lists the parts."""
    made = {f"api/{module}.rst": _module_page(module) for module in modules()}
    index = ["# API", "", "Every public module and name, from the docstrings. Most programs need the names of"]
    index += ['[eqjax](eqjax.rst) alone. Shapes are written as in jaxtyping: `Float[Array, "B L D"]`.', ""]
    for part, title in PARTS.items():
        members = [module for module in modules() if part_of(module) == part]
        name = f"part_{part or 'eqjax'}"
        table = ["| module | |", "| --- | --- |"]
        table += [f"| [{module}]({module}.rst) | {_first_line(module)} |" for module in members]
        toctree = ["", "```{toctree}", ":hidden:", "", *members, "```", ""]
        made[f"api/{name}.md"] = "\n".join([f"# {title}", "", *table, *toctree])
        index += [f"- [{title}]({name}.md)"]
    parts = [f"part_{part or 'eqjax'}" for part in PARTS]
    index += ["", "```{toctree}", ":hidden:", "", *parts, "```", ""]
    return {**made, "api/index.md": "\n".join(index)}


def _first_line(module: str) -> str:
    text = (ast.get_docstring(_source(module)[0]) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def _module_page(module: str) -> str:
    _, source = _source(module)
    lines = [module, "=" * len(module), "", f".. automodule:: {module}", "", f".. py:currentmodule:: {module}", ""]
    if exported := exported_names(module):
        lines += ["Names to import from here:", ""]
        lines += [f"- :py:obj:`{name} <{home}>`" for name, home in exported.items()] + [""]
    for name, node in public_names(module).items():
        if isinstance(node, ast.FunctionDef):
            lines += [f".. autofunction:: {name}", ""]
        elif isinstance(node, ast.ClassDef):
            lines += [f".. autoclass:: {name}", "   :members:", "   :special-members: __call__", ""]
        else:
            lines += _constant(name, node, source)
    return "\n".join(lines)


def _constant(name: str, node: Any, source: list[str]) -> list[str]:
    """Returns the entry of a constant or a type alias: its value, if it is short, and the comment before it."""
    lines = [f".. py:data:: {name}"]
    value = ast.unparse(node.value) if node.value is not None else ""
    if 0 < len(value) <= 100:
        lines += [f"   :value: {value}"]
    comment = []
    for line in reversed(source[: node.lineno - 1]):
        if not line.startswith("#") or line.startswith("# ──"):
            break
        comment.insert(0, line.lstrip("# "))
    behind = re.search(r"  # (.+)", source[node.end_lineno - 1])
    return [*lines, "", "   " + " ".join(comment or ([behind[1]] if behind else [])), ""]


# ── Commands ──────────────────────────────────────────────────────────────────────────────────


def commands() -> dict[str, str]:
    """Returns the pages of the commands, from their flags, and one that lists them."""
    from eqjax.cli.main import COMMANDS

    lines = ["# Commands", "", "`eqjax NAME --help` prints the same.", "", "| command | |", "| --- | --- |"]
    lines += [f"| [`eqjax {name}`]({name}.md) | {command.summary} |" for name, command in COMMANDS.items()]
    lines += ["", "```{toctree}", ":hidden:", "", *COMMANDS, "```", ""]
    made = {"commands/index.md": "\n".join(lines)}
    for name, command in COMMANDS.items():
        made[f"commands/{name}.md"] = _command_page(command)
    return made


def _command_page(command: Any) -> str:
    from eqjax.cli import command_line

    head, *groups = re.split(r"\n\n(?=[A-Z][\w ]*:\n  --)", command_line.help_text(command))
    usage, _, text = head.partition("\n\n")
    lines = [f"# eqjax {command.name}", "", "```text", usage.removeprefix("usage: "), "```", "", *_text(text)]
    for group in groups:
        title, _, body = group.partition(":\n")
        lines += ["", f"## {title}", "", "| flag | meaning |", "| --- | --- |"]
        for flag in re.split(r"\n(?=  --)", body):
            name, _, meaning = flag.strip().partition("  ")
            lines += [f"| `{name}` | {_prose(' '.join(meaning.split()))} |"]
    # What --help leaves out: the rest of the module's docstring.
    rest = inspect.getdoc(command.load()).removeprefix(text.strip())
    return "\n".join([*lines, "", "## Notes", "", *_text(rest.strip()), ""] if rest.strip() else [*lines, ""])


def _text(text: str) -> list[str]:
    """Returns a docstring as Markdown lines: commands, indented by four spaces, and tables in fences."""
    lines = []
    for paragraph in text.split("\n\n"):
        language = "bash" if paragraph.startswith("    ") else "text" if paragraph.startswith("  ") else None
        lines += [f"```{language}", inspect.cleandoc(paragraph), "```", ""] if language else [_prose(paragraph), ""]
    return lines


def _prose(text: str) -> str:
    """Returns plain text as Markdown: flags as code, and nothing else that Markdown would read as a mark."""
    text = re.sub(r"(?<!`)(--\w[\w.]*(?:=[^\s;,:]+)?)", r"`\1`", text)
    return re.sub(r"([<$*|])(?=[^`]*(?:`[^`]*`[^`]*)*$)", r"\\\1", text)


# ── Configurations ────────────────────────────────────────────────────────────────────────────


def configurations() -> dict[str, str]:
    """Returns the tables of all fields of configurations, and the heads of the shipped ones."""
    lines = []
    for name, table in field_tables().items():
        lines += [f"## {name}", "", "| field | default | values | meaning |", "| --- | --- | --- | --- |"]
        for field, (default, values, meaning) in table.items():
            lines += [f"| `{field}` | `{default!r}` | {_prose(values)} | {_prose(meaning)} |"]
        lines += [""]
    lines += ["## Shipped configurations", ""]
    for path in sorted((ROOT / "configs").glob("*.py")):
        head, *rest = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n", 1)
        # Verbatim: commands and lists of variants keep their columns.
        lines += [f"### {path.stem}", "", _prose(head), "", "```text", inspect.cleandoc("".join(rest)), "```", ""]
    return {"configurations.md": "\n".join(lines)}


def field_tables() -> dict[str, dict[str, tuple[Any, str, str]]]:
    """Returns {title: {field: (default, values in words, meaning)}} of every section of a configuration."""
    from eqjax.cli.comparison_config import COMPARISON
    from eqjax.config_fields import Field, flatten
    from eqjax.training.config import TABLES

    both = TABLES["tokenizer"].keys() & TABLES["generator"].keys()
    tables: dict[str, dict[str, tuple[Any, str, str]]] = {"Both trainers": {}}
    for trainer, table in TABLES.items():
        for name, entry in table.items():
            others = [other[name] for other in TABLES.values() if name in other]
            shared = name in both and all(other == entry for other in others)
            title = "Both trainers" if shared else f"{trainer.capitalize()} training"
            if not isinstance(entry, Field):
                title += f": {name}"
            fields = {name: entry} if isinstance(entry, Field) else flatten(entry, f"{name}.")
            section = tables.setdefault(title, {})
            section |= {key: (field.default, field.rule.words, field.meaning) for key, field in fields.items()}
    fields = flatten(COMPARISON)
    tables["Comparison"] = {
        # Sections of fields are dicts to the reader.
        key: (
            dict(field.default) if hasattr(field.default, "items") else field.default,
            field.rule.words,
            field.meaning,
        )
        for key, field in fields.items()
    }
    return tables
