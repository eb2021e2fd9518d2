"""Rules that say what a value must be: type, range, choice, shape.

A rule says so in words too (`Rule.words`); `Rule.check` compares a value with it and returns the value as plain Python:

    num_columns = Integer(least=1).check("num_columns", num_columns)
    prefix = Array(("batch", "columns", 96)).check("prefix", prefix)

A value of another kind is a TypeError, one out of range a ValueError. What `jax.jit` traces has no value yet: rules of
numbers refuse it, unless they are told that it is `traceable`; an array's shape and dtype are checked all the same.

Where a function calls `Rule.check` itself, the annotation of that argument is loose (`Any`, say), or a type checker at
run time speaks first. Nothing here imports JAX, as the command line checks values before it has loaded it.
"""

import abc
import dataclasses
import math
import numbers
import operator
import os
import re
from typing import Any

from jaxtyping import Shaped
import numpy as np

from eqjax.messages import did_you_mean, show
from eqjax.tracing import is_traced

# Positions, sizes and counts are 32-bit integers in JAX.
MAX_INTEGER = 2**31 - 1

_FLOATS = ("float32", "bfloat16", "float16", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(abc.ABC):
    """What a value must be.

    Attributes:
      optional: whether it may also be None.
      none_means: what None stands for, for messages.
      traceable: whether `jax.jit` may trace it; it is then returned as it is.
    """

    optional: bool = False
    none_means: str = ""
    traceable: bool = False

    def check(self, name: str, value: Any) -> Any:
        """Returns the value as plain Python: an int for a numpy integer, a tuple for a list.

        Args:
          name: name of the argument or field, for the message.
          value: the value.

        Raises:
          TypeError: it is of another kind, or traced.
          ValueError: it is out of range.
        """
        if value is None and self.optional:
            return None
        if is_traced(value):
            if self.traceable:
                return value
            if not isinstance(self, Array | Either):
                raise TypeError(
                    f"{name} is traced by JAX, but it must be known while a function is traced: {self.words}. Mark it "
                    "as static (static_argnames) where you call jax.jit, or call this outside."
                )
        return self._check(name, value)

    @property
    def words(self) -> str:
        """The rule in words, such as "an integer ≥ 1, or None"."""
        if not self.optional:
            return self._words()
        return f"{self._words()}, or None{f' ({self.none_means})' if self.none_means else ''}"

    def error(self, kind: type[Exception], name: str, value: Any) -> Exception:
        """Returns the exception that names a value, what it is and what it must be."""
        return kind(f"{name}={show(value)} must be {self.words}.")

    @abc.abstractmethod
    def _check(self, name: str, value: Any) -> Any: ...

    @abc.abstractmethod
    def _words(self) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Integer(Rule):
    """An integer of any kind, numpy's included; no bool, and no float, whatever its value.

    Example:
      >>> Integer(least=1).check("num_columns", 3.5)
      Traceback (most recent call last):
      TypeError: num_columns=3.5 must be an integer ≥ 1.
    """

    least: int | None = None
    most: int = MAX_INTEGER

    def _check(self, name: str, value: Any) -> int:
        if isinstance(value, bool) or getattr(getattr(value, "dtype", None), "name", "") == "bool":
            raise self.error(TypeError, name, value)
        try:
            found = operator.index(value)
        except TypeError:
            raise self.error(TypeError, name, value) from None
        if abs(found) > MAX_INTEGER and self.most == MAX_INTEGER:
            raise ValueError(f"{name}={show(found)} must be {self.words}, at most {MAX_INTEGER}.")
        if (self.least is not None and found < self.least) or found > self.most:
            raise self.error(ValueError, name, found)
        return found

    def _words(self) -> str:
        return f"an integer{_range(('≥', self.least), ('≤', self.most))}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number(Rule):
    """A finite number of any kind, integers and numpy's included, but no bool; returned as a float.

    Example:
      >>> Number(least=0, below=1).check("dropout_rate", float("nan"))
      Traceback (most recent call last):
      ValueError: dropout_rate=nan must be a finite number ≥ 0 and < 1.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def _check(self, name: str, value: Any) -> float:
        dtype = getattr(value, "dtype", None)
        if dtype is None:
            fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
        else:
            fits = not value.shape and _has_kind(dtype, "number")
        if not fits:
            raise self.error(TypeError, name, value)
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        above = found >= self.least if self.least is not None else self.above is None or found > self.above
        below = found <= self.most if self.most is not None else self.below is None or found < self.below
        if not (math.isfinite(found) and above and below):
            raise self.error(ValueError, name, value)
        return found

    def _words(self) -> str:
        return f"a finite number{_range(('≥', self.least), ('>', self.above), ('≤', self.most), ('<', self.below))}"


def _range(*bounds: tuple[str, float | None]) -> str:
    """Returns " ≥ 0 and < 1" for bounds of which some are None, or that of all integers."""
    parts = [f"{sign} {bound}" for sign, bound in bounds if bound is not None and bound != MAX_INTEGER]
    return f" {' and '.join(parts)}" if parts else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boolean(Rule):
    """True or False."""

    def _check(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise self.error(TypeError, name, value)
        return bool(value)

    def _words(self) -> str:
        return "True or False"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Rule):
    """A string.

    Attributes:
      may_be_empty: whether it may be empty; without `pattern`.
      pattern: regular expression that the whole string must match.
      form: the pattern in words.
    """

    may_be_empty: bool = False
    pattern: str | None = None
    form: str = ""

    def _check(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.error(TypeError, name, value)
        fits = bool(value) or self.may_be_empty if self.pattern is None else re.fullmatch(self.pattern, value)
        if not fits:
            raise self.error(ValueError, name, value)
        return str(value)

    def _words(self) -> str:
        return self.form or ("a string" if self.may_be_empty else "a string that is not empty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathName(Rule):
    """The name of a file or folder: a string that is not empty, or a pathlib.Path; returned as a string."""

    def _check(self, name: str, value: Any) -> str:
        if not isinstance(value, str | os.PathLike):
            raise self.error(TypeError, name, value)
        found = os.fspath(value)
        if not isinstance(found, str) or not found or "\0" in found:
            raise self.error(ValueError, name, value)
        return found

    def _words(self) -> str:
        return "a path: a string that is not empty, or a pathlib.Path"


@dataclasses.dataclass(frozen=True)
class Choice(Rule):
    """One of several values.

    Example:
      >>> Choice(("euler", "heun")).check("solver", "eulr")
      Traceback (most recent call last):
      ValueError: solver='eulr' must be one of 'euler', 'heun'; did you mean 'euler'?
    """

    choices: tuple[Any, ...]

    def _check(self, name: str, value: Any) -> Any:
        kinds = tuple({type(choice) for choice in self.choices})
        if not isinstance(value, kinds):
            raise self.error(TypeError, name, value)
        # Not `in`: True equals 1.
        for choice in self.choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        names = [choice for choice in self.choices if isinstance(choice, str)]
        raise ValueError(f"{name}={show(value)} must be {self.words}{did_you_mean(value, names)}")

    def _words(self) -> str:
        return f"one of {', '.join(map(repr, self.choices))}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FloatDtype(Rule):
    """A floating-point dtype of computation, by its name or as an object of numpy or JAX; returned as it is."""

    def _check(self, name: str, value: Any) -> Any:
        # None is numpy's name for float64.
        try:
            found = value if isinstance(value, str) or value is None else np.dtype(value).name
        except TypeError:
            found = None
        if found not in _FLOATS:
            raise self.error(TypeError if found is None else ValueError, name, value)
        return value

    def _words(self) -> str:
        return f"a floating-point dtype: {', '.join(map(repr, _FLOATS))}"


@dataclasses.dataclass(frozen=True)
class Items(Rule):
    """A list, a tuple or a one-dimensional array, every item of which obeys a rule; returned as a tuple.

    Example:
      >>> Items(Integer(least=1), least=1).check("channel_multipliers", [1, 0])
      Traceback (most recent call last):
      ValueError: channel_multipliers[1]=0 must be an integer ≥ 1.
    """

    item: Rule
    least: int = 0
    most: int | None = None

    def _check(self, name: str, value: Any) -> tuple[Any, ...]:
        is_array = hasattr(value, "dtype") and len(getattr(value, "shape", ())) == 1
        if not is_array and not isinstance(value, list | tuple | range):
            raise self.error(TypeError, name, value)
        if len(value) < self.least or (self.most is not None and len(value) > self.most):
            raise self.error(ValueError, name, value)
        items = np.asarray(value) if is_array else value
        return tuple(self.item.check(f"{name}[{i}]", item) for i, item in enumerate(items))

    def _words(self) -> str:
        counts = {(0, None): "", (1, None): "one or more, ", (self.least, self.least): f"{self.least}, "}
        count = counts.get((self.least, self.most), f"{self.least} to {self.most or 'any number'}, ")
        return f"a sequence ({count}each {self.item.words})"


@dataclasses.dataclass(frozen=True)
class Either(Rule):
    """A value that obeys one of several rules; the first that it obeys converts it.

    Example:
      >>> rule = Either((Number(least=0), Items(Number(least=0), least=1)))
      >>> rule.check("guidance_scale", [1, 2.5])
      (1.0, 2.5)
    """

    rules: tuple[Rule, ...]

    def _check(self, name: str, value: Any) -> Any:
        errors: list[Exception] = []
        for rule in self.rules:
            try:
                return rule.check(name, value)
            except (TypeError, ValueError) as error:
                errors.append(error)
        # A value of the right kind deserves the message of its rule, which names the item or the bound.
        near = [error for error in errors if isinstance(error, ValueError) or f"{name}[" in str(error)]
        raise near[0] if near else self.error(TypeError, name, value)

    def _words(self) -> str:
        return " or ".join(rule.words for rule in self.rules)


@dataclasses.dataclass(frozen=True)
class Instance(Rule):
    """An object of a class, or of one of several.

    Attributes:
      kinds: the class, or several.
      what: the object in words, with its article, and where it comes from.
    """

    kinds: type | tuple[type, ...]
    what: str

    def _check(self, name: str, value: Any) -> Any:
        if not isinstance(value, self.kinds):
            raise self.error(TypeError, name, value)
        return value

    def _words(self) -> str:
        return self.what


@dataclasses.dataclass(frozen=True, kw_only=True)
class Function(Rule):
    """Anything that can be called."""

    def _check(self, name: str, value: Any) -> Any:
        if not callable(value):
            raise self.error(TypeError, name, value)
        return value

    def _words(self) -> str:
        return "a function"


@dataclasses.dataclass(frozen=True)
class Array(Rule):
    """An array on a device or on the host, or nested lists of numbers, of a shape and a kind; traced ones too.

    Attributes:
      shape: an integer for an axis of this size, a name for one of any size ≥ 1; None: any shape.
      kind: "floating", "integer", "uint8", "bool", or "number" for floats and integers.

    Example:
      >>> Array(("batch", 3)).check("latents", np.zeros((2, 4), np.float32))
      Traceback (most recent call last):
      ValueError: latents=<float32 array of shape (2, 4)> must be a floating-point array of shape [batch, 3].
    """

    shape: tuple[int | str, ...] | None
    kind: str = "floating"

    def _check(self, name: str, value: Any) -> Any:
        if not hasattr(value, "dtype") or not hasattr(value, "shape"):
            if not isinstance(value, list | tuple):
                raise self.error(TypeError, name, value)
            try:
                value = np.asarray(value)
            except (TypeError, ValueError):  # Rows of several lengths.
                raise self.error(ValueError, name, value) from None
            value = value.astype(np.float32) if value.dtype == np.float64 else value
        if isinstance(value, np.ndarray):
            if np.ma.is_masked(value):
                raise ValueError(f"{name} has masked values, which are no data; fill them first (numpy.ma.filled).")
            value = as_native(value)
        if not _has_kind(value.dtype, self.kind):
            raise self.error(TypeError, name, value)
        if self.shape is not None and (
            len(value.shape) != len(self.shape)
            or any(
                found < 1 if isinstance(axis, str) else found != axis
                for found, axis in zip(value.shape, self.shape, strict=True)
            )
        ):
            raise self.error(ValueError, name, value)
        return value

    def _words(self) -> str:
        kinds = {
            "floating": "a floating-point array",
            "integer": "an integer array",
            "uint8": "a uint8 array",
            "bool": "a boolean array",
            "number": "an array of numbers",
        }
        shape = "" if self.shape is None else f" of shape [{', '.join(map(str, self.shape))}]"
        return kinds[self.kind] + shape


def as_native(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Returns a plain array in the byte order of this machine and without long doubles, as JAX takes no others.

    Example:
      >>> as_native(np.arange(3, dtype=">i4")).dtype.isnative
      True
    """
    array = np.asarray(array)
    return array.astype(np.float64 if array.dtype == np.longdouble else array.dtype.newbyteorder("="), copy=False)


def _has_kind(dtype: Any, kind: str) -> bool:
    """Returns whether a dtype of numpy or JAX is of a kind of `Array`."""
    letter, name = getattr(dtype, "kind", None), getattr(dtype, "name", "")
    # bfloat16 and the 8-bit floats are of kind "V" in numpy's eyes.
    is_floating, is_integer = letter == "f" or name.startswith(("bfloat", "float")), letter in ("i", "u")
    kinds = {"floating": is_floating, "integer": is_integer, "number": is_floating or is_integer}
    return kinds.get(kind, name == kind)
