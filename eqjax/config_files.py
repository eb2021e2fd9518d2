"""Finds and loads configuration files: the shipped ones by name, others by path.

A configuration file is a Python file with a function `get_config(variant)` that returns a `ConfigDict`. The shipped
ones are the files of the repository's folder configs/, which the wheel holds as eqjax/configs/.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import os
import pathlib
import re
import runpy
import sys
import traceback
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from eqjax.messages import nearest

_PACKAGE = pathlib.Path(__file__).parent


def folder() -> pathlib.Path:
    """Returns the folder of the shipped configuration files."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """Returns the names of the shipped configuration files, without `.py`."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__")


def find(name: str) -> str:
    """Returns the path of a configuration file, followed by its variant.

    Args:
      name: path of a file, or name of a shipped one (with or without "configs/" and ".py"); a variant may follow
        after a colon.

    Raises:
      FileNotFoundError: there is no such file, and no shipped one of this name.

    Example:
      >>> os.path.basename(find("photos_tokenizer:tiny"))
      'photos_tokenizer.py:tiny'
    """
    path, colon, variant = name.partition(":")
    if not os.path.isfile(path):
        shipped = path.removeprefix("configs/").removesuffix(".py")
        if shipped not in names():
            raise FileNotFoundError(
                f"there is no file {path}, and no shipped configuration of this name; the nearest of "
                f"{', '.join(names())} is {nearest(shipped, names())}."
            )
        path = str(folder() / f"{shipped}.py")
    return path + colon + variant


def load(name: str) -> Any:  # A ConfigDict, whose fields no type checker knows.
    """Returns the configuration of a file, found as by `find`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the variant is unknown, or the file cannot be run, or defines no `get_config` that returns a
        ConfigDict.

    Example:
      >>> load("photos_tokenizer:tiny").tokenizer.resolution
      16
    """
    path, _, variant = find(name).partition(":")
    with _explained(path):
        make = runpy.run_path(path).get("get_config")
    if not callable(make):
        raise ValueError(f"{path} defines no function get_config; it returns the configuration, a ConfigDict.")
    with _explained(path):
        config = make(*filter(None, [variant]))
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"get_config() of {path} returns {type(config).__name__}; return an ml_collections.ConfigDict, such as one "
            "of eqjax.training.config."
        )
    return config


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turns an error in the code of a configuration file into one message with the line."""
    try:
        yield
    except SyntaxError as error:
        raise ValueError(_message(path, error.lineno if error.filename == path else None, error, error.msg)) from error
    except ValueError:  # Of `parse_variant`, for one.
        raise
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        raise ValueError(_message(path, frames[-1].lineno if frames else None, error, error)) from error


def _message(path: str, line: int | None, error: Exception, text: object) -> str:
    where = path if line is None else f"{path}, line {line}"
    return (
        f"{where}: {type(error).__name__}: {text}. A configuration is a Python file with a function get_config, which "
        "returns an ml_collections.ConfigDict."
    )


@contextlib.contextmanager
def as_sys_argv(argv: list[str]) -> Iterator[None]:
    """Sets sys.argv, in which ml_collections looks for the fields of a configuration, for the block.

    Args:
      argv: the command line, with the name of the program.
    """
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


def check_field(config: Any, field: str, source: str, flag: str = "config") -> None:
    """Checks that a configuration has a field.

    Args:
      config: a ConfigDict.
      field: full name of the field, such as "optimizer.learning_rate".
      source: name of the configuration, for the message.
      flag: the flag below which its fields are flags.

    Raises:
      ValueError: it has none of that name; the nearest is named.
    """
    try:
        config_path.get_value(field, config)
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"--{flag}.{field}: {os.path.basename(source).partition(':')[0]} has no such field; the nearest is "
            f"--{flag}.{nearest(field, _field_names(config))}."
        ) from error


def _field_names(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _field_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def override(config: Any, fields: Sequence[str], source: str) -> None:
    """Sets fields of a configuration by text, as a command line sets them with --config.NAME=VALUE.

    Args:
      config: a ConfigDict, which is changed.
      fields: "NAME=VALUE" texts.
      source: name of the configuration, for messages.

    Raises:
      ValueError: there is no such field, or the value has another type.

    Example:
      >>> config = load("photos_generator:tiny")
      >>> override(config, ["generator.remat=full", "optimizer.learning_rate=2e-3"], "photos_generator")
      >>> config.generator.remat, config.optimizer.learning_rate
      ('full', 0.002)
    """
    for field, equals, _ in (text.partition("=") for text in fields):
        if not equals:
            raise ValueError(f"--config.{field} has no value; fields are given as --config.NAME=VALUE.")
        check_field(config, field, source)
    argv, values = ["eqjax", *(f"--config.{text}" for text in fields)], flags.FlagValues()
    with as_sys_argv(argv):
        config_flags.DEFINE_config_dict("config", config, flag_values=values)
        try:
            values(argv)
        except flags.IllegalFlagValueError as error:
            raise ValueError(f"{explain(error)} (in the configuration {source}).") from error


def explain(error: flags.IllegalFlagValueError) -> str:
    """Returns the message of a flag's wrong value, without Python's words for text that is no number.

    Example:
      >>> explain(flags.IllegalFlagValueError("flag --seed=x: invalid literal for int() with base 10: 'x'"))
      'flag --seed=x: expected an integer'
    """
    text = re.sub(r"invalid literal for int\(\) with base 10: .*", "expected an integer", str(error))
    return re.sub(r"could not convert string to float: .*", "expected a number", text)


def parse_variant(text: str | None, **defaults: bool | int | float | str | tuple[str, ...]) -> dict[str, Any]:
    """Parses a variant: "name", "name=value" or several of them, joined by commas.

    Args:
      text: the part after the colon in `--config=name:variant`, or None.
      **defaults: the known names. A boolean may stand alone ("tiny"); others need a value, which is converted to the
        type of the default. A tuple lists the possible values, the default first.

    Returns:
      A dict of all names.

    Raises:
      ValueError: an unknown name, a value of another type, or a value that is not listed.

    Example:
      >>> parse_variant("tiny,size=B", tiny=False, size=("L", "B"))
      {'tiny': True, 'size': 'B'}
    """
    values = {name: default[0] if isinstance(default, tuple) else default for name, default in defaults.items()}
    for item in filter(None, (text or "").split(",")):
        name, _, value = item.partition("=")
        if name not in defaults:
            raise ValueError(f"unknown variant {name!r} in ':{text}'; known: {', '.join(_variants(defaults))}.")
        choices, kind = defaults[name], type(values[name])
        if isinstance(choices, tuple) and value not in choices:
            raise ValueError(f"{name}={value!r} in ':{text}' is not one of {choices}.")
        try:
            values[name] = {"": True, "true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError) as error:
            raise ValueError(f"variant {item!r} in ':{text}' needs a value of type {kind.__name__}.") from error
    return values


def _variants(defaults: Mapping[str, Any]) -> Iterator[str]:
    """Yields the variants as they are given: tiny, width=1, size=L|B; defaults first."""
    for name, default in defaults.items():
        values = "|".join(default) if isinstance(default, tuple) else default
        yield name if isinstance(default, bool) else f"{name}={values}"
