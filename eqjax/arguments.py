"""Checks all arguments of a function by rules before it runs, in one message each."""

from collections.abc import Callable
import functools
import inspect
from typing import Any, ParamSpec, TypeVar

from eqjax.messages import check_names
from eqjax.rules import Rule

P = ParamSpec("P")
R = TypeVar("R")


def check_arguments(**rules: Rule) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns a decorator that checks the arguments of a function by rules before it is called.

    The function gets the values as plain Python, see `Rule.check`; unknown keywords are named with the nearest known
    one. As the checks come before annotations are compared at run time, these may be exact.

    Args:
      **rules: rules by the names of arguments.

    Example:
      >>> from eqjax.rules import Integer
      >>> @check_arguments(columns=Integer(least=1))
      ... def width(columns: int) -> int:
      ...     return 16 * columns
      >>> width("8")
      Traceback (most recent call last):
      TypeError: columns='8' must be an integer ≥ 1.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        known = list(signature.parameters)
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if not takes_any:
                check_names(f"argument of {function.__qualname__}()", kwargs, known)
            bound: Any = signature.bind_partial(*args, **kwargs)
            for name in (name for name in rules if name in bound.arguments):
                bound.arguments[name] = rules[name].check(name, bound.arguments[name])
            call: Callable[..., R] = function
            return call(*bound.args, **bound.kwargs)

        return checked

    return decorate
