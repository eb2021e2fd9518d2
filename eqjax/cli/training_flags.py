"""Flags of the commands that train, and --print_config: a configuration as a file that explains every field."""

from collections.abc import Sequence
import pprint
import sys
import textwrap
from typing import Any

from absl import flags

from eqjax.cli.command_line import define_config, flag_group
from eqjax.config_fields import Field, Table, flatten
from eqjax.training.config import TABLES, check_config
from eqjax.typing import Config

_WIDTH = 100
_UNBROKEN: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False}


def define_training_flags(values: flags.FlagValues) -> None:
    """Defines --config, --print_config and --workdir, which is required unless the configuration is printed."""
    with flag_group(values, "What"):
        define_config(values)
        flags.DEFINE_bool(
            "print_config",
            False,
            "Print every field with its value, meaning and range, and train nothing. The text is a configuration file: "
            "--print_config > mine.py, then --config=mine.py.",
            flag_values=values,
        )
    with flag_group(values, "Output"):
        flags.DEFINE_string(
            "workdir", None, "Folder of the run: checkpoints, logs, images, weights.", flag_values=values
        )
    flags.register_multi_flags_validator(
        ["workdir", "print_config"],
        lambda given: bool(given["workdir"]) or given["print_config"],
        "Flag --workdir must have a value other than None.",
        values,
    )


def answer_print_config(trainer: str, args: flags.FlagValues, arguments: Sequence[str]) -> str | None:
    """Returns the configuration of --config as `format_config` prints it, or None without --print_config.

    Args:
      trainer: "tokenizer" or "generator".
      args: the flags.
      arguments: the command line after the command's name.

    Raises:
      ValueError: the configuration is another trainer's, or lacks fields.
    """
    if not args.print_config:
        return None
    try:
        check_config(args.config, trainer)
        problem = None
    except ValueError as error:
        problem = error
    command = [f"eqjax train-{trainer}", *arguments]
    try:
        text = format_config(args.config, TABLES[args.config.trainer], command)
    except (AttributeError, KeyError, TypeError):
        text = None
    if problem is not None and (text is None or args.config.trainer != trainer):
        raise problem
    if problem is not None:  # Fields that are still to be set, such as the folder of the data.
        print(f"This configuration cannot be trained as it is: {problem}", file=sys.stderr)
    return text


def format_config(config: Config, table: Table, command: Sequence[str]) -> str:
    """Returns a configuration as the text of a file that makes it, with the meaning and range of every field.

    Args:
      config: the configuration, with the fields of the table.
      table: the fields.
      command: the command line that gives the configuration, for the head of the file.

    Returns:
      Lines of at most 100 characters, except values that are longer.
    """
    trainer, section = config.trainer, None
    lines = [
        'r"""A configuration with all of its fields, as printed by',
        "",
        *textwrap.wrap(" ".join(command), _WIDTH, initial_indent="    ", subsequent_indent="        ", **_UNBROKEN),
        "",
        "Below each value: what it means, and what it may be.",
        '"""',
        "",
        f"from eqjax.training.config import {trainer}_config",
        "",
        "",
        "def get_config():",
        f"    config = {trainer}_config()",
    ]
    for name, field in flatten(table).items():
        if name.rpartition(".")[0] != section:
            section = name.rpartition(".")[0]
            title = section or "the run"
            lines += ["", f"    # ── {title} {'─' * (_WIDTH - 10 - len(title))}"]
        lines += _field_lines(name, _value(config, name), field)
    return "\n".join([*lines, "    return config"])


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config.to_dict() if hasattr(config, "to_dict") else config


def _field_lines(name: str, value: Any, field: Field) -> list[str]:
    """Returns the assignment of a field, with its explanation below."""
    assignment = f"    config.{name} = {value!r}"
    if len(assignment) > _WIDTH:
        lines = pprint.pformat(value, width=_WIDTH - 8, compact=True)
        assignment = f"    config.{name} = (\n{textwrap.indent(lines, ' ' * 8)}\n    )"
    text = f"{field.meaning} {field.rule.words[:1].upper()}{field.rule.words[1:]}."
    if value != field.default:
        comment = f"  # default: {field.default!r}"
        if len(assignment.splitlines()[-1] + comment) <= _WIDTH:
            assignment += comment
        else:
            text += f" Default: {field.default!r}."
    explanation = textwrap.wrap(text, _WIDTH, initial_indent="    #   ", subsequent_indent="    #   ", **_UNBROKEN)
    return [assignment, *explanation]
