"""Tables of configuration fields: the default of each, the values it may have, and what it means, in one place.

A table is a dict {name: `Field`, or a table of fields for a section}. Configurations are made from tables and checked
against them, and a command line prints them. Nothing here imports JAX, as the command line reads tables before it has
loaded it.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any, TypeAlias

import ml_collections
from ml_collections import config_dict

from eqjax.messages import did_you_mean, show
from eqjax.rules import Instance, Items, Rule, Text
from eqjax.typing import Config


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a configuration.

    Attributes:
      default: its default value.
      rule: the values it may have; `rule.words` says so.
      meaning: what it is, with its unit: one line.
    """

    default: Any
    rule: Rule
    meaning: str


Table: TypeAlias = Mapping[str, "Field | Mapping[str, Any]"]


# A configuration as an argument.
CONFIG = Instance(ml_collections.ConfigDict, "a ConfigDict, such as eqjax.data.default_config() returns")


def with_defaults(table: Table, **defaults: Any) -> dict[str, Any]:
    """Returns a table with other defaults.

    Raises:
      KeyError: there is no such field.

    Example:
      >>> from eqjax.rules import Integer
      >>> with_defaults({"steps": Field(1, Integer(), "Steps.")}, steps=5)["steps"].default
      5
    """
    changed = dict(table)
    for name, default in defaults.items():
        field: Any = table[name]
        changed[name] = dataclasses.replace(field, default=default)
    return changed


def flatten(table: Table, prefix: str = "") -> dict[str, Field]:
    """Returns {full name: field}, such as "optimizer.learning_rate", in the order of the table.

    Args:
      table: the table.
      prefix: prefix of all names, such as "data.".
    """
    fields: dict[str, Field] = {}
    for name, entry in table.items():
        fields |= {prefix + name: entry} if isinstance(entry, Field) else flatten(entry, f"{prefix}{name}.")
    return fields


def make(table: Table) -> Config:
    """Returns a configuration of the defaults. A command line can set optional fields to None.

    Example:
      >>> from eqjax.rules import Integer
      >>> make({"log": {"every": Field(5, Integer(optional=True), "Steps.")}}).log.every
      5
    """
    config: Config = ml_collections.ConfigDict(convert_dict=False)  # A field may hold a dict.
    for name, entry in table.items():
        config[name] = _reference(entry) if isinstance(entry, Field) else make(entry)
    return config


def _reference(field: Field) -> Any:
    """Returns a default, or for an optional field a reference that holds None too, also from a command line."""
    if not field.rule.optional:
        return field.default
    kind = str if isinstance(field.rule, Text) else tuple if isinstance(field.rule, Items) else object
    return config_dict.FieldReference(field.default, field_type=kind)


def check(config: Config, table: Table, name: str, prefix: str = "") -> None:
    """Checks that a configuration has the fields of a table, with values that they may have.

    Args:
      config: the configuration.
      table: its fields.
      name: the configuration in words, such as "a generator's configuration".
      prefix: prefix of the names in messages, such as "data.".

    Raises:
      ValueError: fields are unknown, missing or have wrong values; the message names all of them.

    Example:
      >>> from eqjax.rules import Integer
      >>> config = make(table := {"steps": Field(1, Integer(least=1), "Steps.")})
      >>> config.steps = 0
      >>> check(config, table, "a run's configuration")
      Traceback (most recent call last):
      ValueError: steps=0 must be an integer ≥ 1.
    """
    refuse(list(_problems(config, table, name, prefix)), name)


def _problems(config: Any, table: Table, name: str, prefix: str) -> Iterator[str]:
    """Yields a sentence about every field that is unknown, missing, or has a wrong value."""
    for field in config:
        if field not in table:
            yield f"{name} has no field {prefix}{field}{did_you_mean(field, table)}"
    for field, entry in table.items():
        full_name = prefix + field
        if field not in config:
            yield f"{name} lacks {full_name}{f': {entry.meaning}' if isinstance(entry, Field) else '.'}"
        elif isinstance(entry, Field):
            try:
                entry.rule.check(full_name, config[field])
            except (TypeError, ValueError) as error:
                yield str(error)
        elif isinstance(config[field], Mapping | ml_collections.ConfigDict):
            yield from _problems(config[field], entry, name, f"{full_name}.")
        else:
            yield f"{full_name}={show(config[field])} must be a section with the fields {', '.join(entry)}."


def checked(values: Mapping[str, Any], table: Table, prefix: str = "") -> dict[str, Any]:
    """Returns the values of those names that a table has, checked, as plain Python: the fields of an object, say.

    Args:
      values: values by name; some may be missing, and others are left out.
      table: the table.
      prefix: prefix of the names in messages, such as "generator.".

    Raises:
      TypeError: a value is of another kind.
      ValueError: a value is out of range.

    Example:
      >>> from eqjax.rules import Integer
      >>> checked({"steps": 2, "parent": None}, {"steps": Field(1, Integer(least=1), "Steps.")})
      {'steps': 2}
    """
    return {
        name: entry.rule.check(prefix + name, values[name])
        for name, entry in table.items()
        if isinstance(entry, Field) and name in values
    }


def refuse(problems: Sequence[str], name: str) -> None:
    """Raises one error for all problems, if there are any.

    Args:
      problems: sentences that name a field each.
      name: the configuration in words.

    Raises:
      ValueError: there are problems.
    """
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        raise ValueError("\n  ".join([f"{len(problems)} fields of {name} are wrong:", *problems]))


@dataclasses.dataclass(frozen=True)
class Fields(Rule):
    """A dict of fields, each of which obeys a table: a section that may be missing as a whole."""

    table: Mapping[str, Field]

    def _check(self, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping | ml_collections.ConfigDict):
            raise self.error(TypeError, name, value)
        refuse(list(_problems(value, self.table, name, f"{name}.")), name)
        return {key: self.table[key].rule.check(f"{name}.{key}", item) for key, item in value.items()}

    def _words(self) -> str:
        return f"a dict with the fields {', '.join(self.table)}"
