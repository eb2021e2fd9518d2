"""Command lines: the flags of a command, fields of configurations by name, and help."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import importlib
import os
import re
import textwrap
import types
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from eqjax import config_files
from eqjax.messages import nearest

# Folder of compiled programs unless this variable names another.
CACHE_VARIABLE, CACHE = "JAX_COMPILATION_CACHE_DIR", os.path.join("~", ".cache", "eqjax", "xla")
# The flag whose values are "name=value" of fields, where --config may name several configurations.
FIELDS = "config.NAME"
_GROUP, _WIDTH, _INDENT = "group: ", 100, 29


@dataclasses.dataclass(frozen=True)
class Command:
    """An entry of `eqjax.cli.main.COMMANDS`.

    Attributes:
      module: name of the module in `eqjax.cli`.
      summary: one line for `eqjax --help`.
      words: the arguments besides flags, as --help shows them; "" if the command takes none.
      uses_jax: whether to set up JAX before the command runs.
      joins: whether to connect the processes that a starter started.
    """

    module: str
    summary: str
    words: str = ""
    uses_jax: bool = True
    joins: bool = True

    @property
    def name(self) -> str:
        """The name on the command line."""
        return self.module.replace("_", "-")

    def load(self) -> types.ModuleType:
        """Imports the module."""
        return importlib.import_module(f"eqjax.cli.{self.module}")


@contextlib.contextmanager
def flag_group(values: flags.FlagValues, title: str) -> Iterator[None]:
    """Puts the flags that are defined in the block under a title of `eqjax NAME --help`.

    Args:
      values: the flags.
      title: the title, such as "Output".
    """
    before = set(values)
    yield
    for name in values:
        if name not in before:
            values.register_flag_by_module(_GROUP + title, values[name])


def define_config(
    values: flags.FlagValues, text: str = "Configuration: a shipped name or a file, with :variant."
) -> None:
    """Defines a required --config: a shipped configuration or a file, whose fields are flags --config.name=value."""
    config_flags.DEFINE_config_file("config", None, text, flag_values=values)
    flags.mark_flag_as_required("config", flag_values=values)


def define_folder(values: flags.FlagValues, default: str | None, text: str, *, required: bool = False) -> None:
    """Defines --output of a command that writes a folder, which no file may be.

    Args:
      values: the flags to add to.
      default: the default.
      text: the help.
      required: whether the flag must be given.
    """
    flags.DEFINE_string("output", default, text, required=required, flag_values=values)
    flags.register_validator(
        "output",
        lambda path: path is None or not os.path.isfile(path),
        message="this is a file; give a folder, or a new name.",
        flag_values=values,
    )


def define_fields(values: flags.FlagValues) -> None:
    """Defines the fields of a --config that may name several configurations, as --config.NAME=VALUE; see `FIELDS`.

    Args:
      values: the flags to add to.
    """
    flags.DEFINE_multi_string(FIELDS, None, "", flag_values=values)
    values[FIELDS].help = "A field of every configuration."  # Not that the flag may be repeated.


def _collect_fields(argv: Sequence[str]) -> list[str]:
    """Returns a command line whose --config.x=1, or --config.x 1, is --config.NAME=x=1."""
    collected, rest = [], iter(argv)
    for argument in rest:
        field = re.match(r"--?config\.(.+)", argument)
        if field is None:
            collected.append(argument)
        else:
            text = (
                field[1] if "=" in field[1] else "=".join([field[1], *[value for value in [next(rest, None)] if value]])
            )
            collected.append(f"--{FIELDS}={text}")
    return collected


def parse(command: Command, arguments: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """Parses the flags of a command.

    Args:
      command: the command.
      arguments: the rest of the command line after its name.

    Returns:
      The flags, and the words between them.

    Raises:
      absl.flags.Error: an unknown flag, named with the nearest known one; a wrong or missing value.
      FileNotFoundError: there is no such configuration file.
      ValueError: an unknown field of the configuration, named with the nearest known one; an unknown variant; words
        for a command that takes none.
    """
    argv = [f"eqjax {command.name}", *arguments]
    if any(argument.startswith("--data.") for argument in argv):
        # Their definition reads the command line, and would end in a trace.
        with config_files.as_sys_argv(argv[:1]):
            plain = _define(command)
        if "data" in plain:
            _check_fields_of("data", plain["data"].value, argv, "the data's configuration")
    with config_files.as_sys_argv(argv):
        values = _define(command)
        config = values["config"].parser if "config" in values else None
        if FIELDS in values:
            argv[:] = _collect_fields(argv)
        if isinstance(config, ConfigFileFlagParser):
            argv[:] = find_config(argv)
            check_fields(argv)
        try:
            words = values(argv)[1:]
        except flags.UnrecognizedFlagError as error:
            known = nearest(error.flagname, list(values))
            raise flags.Error(f"unknown flag --{error.flagname}; the nearest is --{known}.") from error
        except flags.IllegalFlagValueError as error:
            missing = [name for name in values if f"Flag --{name} must have a value" in str(error)]
            message = f"--{missing[0]} is missing." if missing else config_files.explain(error)
            raise flags.Error(message) from error
    if words and not command.words:
        raise ValueError(f"unknown arguments {' '.join(words)}; flags are given as --name=value.")
    return values, words


def _define(command: Command) -> flags.FlagValues:
    """Returns the flags of a command, not parsed yet."""
    values = flags.FlagValues()
    command.load().define_flags(values)
    if command.uses_jax:
        with flag_group(values, "Output"):
            flags.DEFINE_string(
                "compilation_cache", None, f'Folder of compiled programs, {CACHE}; "" for none.', flag_values=values
            )
    return values


def _config_arguments(argv: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yields (index, value) of every --config=value; the value may be the next argument."""
    for i, argument in enumerate(argv):
        if found := re.fullmatch("--?config(?:=(.*))?", argument):
            if found[1] is not None:
                yield i, found[1]
            elif i + 1 < len(argv):
                yield i + 1, argv[i + 1]


def find_config(argv: Sequence[str]) -> list[str]:
    """Returns a command line with the paths of its configurations, shipped ones looked up by name.

    Raises:
      FileNotFoundError: there is no such configuration file.
    """
    found = list(argv)
    for i, value in _config_arguments(argv):
        try:
            path = config_files.find(value)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"--config={value}: {error}") from error
        found[i] = path if argv[i] == value else f"--config={path}"
    return found


def check_fields(argv: Sequence[str]) -> None:
    """Compares the fields that a command line sets by name with those of its configuration.

    Raises:
      FileNotFoundError: there is no such configuration file.
      ValueError: an unknown field, named with the nearest known one; an unknown variant.
    """
    values = [value for _, value in _config_arguments(argv)]
    if not values:
        return
    _check_fields_of("config", config_files.load(values[-1]), argv, values[-1])


def _check_fields_of(flag: str, config: Any, argv: Sequence[str], source: str) -> None:
    for field in (found[1] for argument in argv if (found := re.match(rf"--?(?:no)?{flag}\.([^=]+)", argument))):
        config_files.check_field(config, field, source, flag)


# ── Help ──────────────────────────────────────────────────────────────────────────────────────


def help_text(command: Command) -> str:
    """Returns the help of a command: the head of its module's docstring, and its flags in groups."""
    with config_files.as_sys_argv([f"eqjax {command.name}"]):
        values = _define(command)
    lines = [f"usage: eqjax {command.name} {f'{command.words} ' if command.words else ''}[--flag=value …]", ""]
    lines += _head(command.load().__doc__ or "")
    groups = {
        title.removeprefix(_GROUP): members
        for title, members in values.flags_by_module_dict().items()
        if title.startswith(_GROUP)
    }
    grouped = {flag.name for members in groups.values() for flag in members}
    if others := [values[name] for name in values if name not in grouped]:
        groups = {"Flags": others, **groups}
    for title, members in groups.items():
        lines += ["", f"{title}:"]
        for flag in members:
            lines += _flag_lines(flag)
    return "\n".join(lines)


def _head(text: str) -> list[str]:
    """Returns the lines of a docstring up to its first example, which is indented."""
    kept: list[str] = []
    for paragraph in text.split("\n\n"):
        kept.append(paragraph)
        if paragraph.startswith("    "):
            break
    return list("\n\n".join(kept).rstrip().split("\n"))


def _flag_lines(flag: flags.Flag) -> list[str]:
    """Returns the description of a flag: its name, default (… for none) and text."""
    if flag.boolean:
        name = f"  --{'no' if flag.value else ''}{flag.name}"
    elif isinstance(flag.default, ml_collections.ConfigDict):
        name = f"  --{flag.name}.NAME=…"
    else:
        default = "…" if flag.default is None or not isinstance(flag.default_as_str, str) else flag.default_as_str
        name = f"  --{flag.name}={default.strip(chr(39))}"
    name = name.ljust(_INDENT - 2) + "  "
    return textwrap.wrap(
        flag.help or "", _WIDTH, initial_indent=name, subsequent_indent=" " * _INDENT, break_on_hyphens=False
    )
