"""Functions whose arguments are checked before they run."""

import jax
import pytest

from eqjax.arguments import check_arguments
from eqjax.rules import Array, Integer


@check_arguments(columns=Integer(least=1), latents=Array(("columns", 3)))
def describe(columns: int, latents=None, **options) -> tuple[type, dict]:
    """Returns the kind of a checked argument, and the others."""
    return type(columns), {**options, "latents": latents}


@check_arguments(columns=Integer(least=1))
def width(columns: int) -> int:
    """Returns a width in pixels."""
    return 16 * columns


def test_arguments_become_plain_python_by_position_and_by_name():
    assert describe(jax.numpy.int32(2), other=1) == (int, {"other": 1, "latents": None})
    assert width(2) == width(columns=2) == 32 and width.__name__ == "width"


def test_the_argument_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"columns=0 must be an integer ≥ 1"):
        width(0)
    with pytest.raises(ValueError, match=r"latents=<float32 array of shape \(2, 4\)> must be .* \[columns, 3\]"):
        describe(2, jax.numpy.zeros((2, 4)))


def test_an_unknown_keyword_gets_the_nearest_name():
    with pytest.raises(TypeError, match=r"unknown argument of width\(\) 'colums'; did you mean 'columns'\?"):
        width(colums=2)  # pyright: ignore[reportCallIssue]  # That is what is tested.


def test_a_missing_argument_is_pythons_own_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'columns'"):
        width()  # pyright: ignore[reportCallIssue]  # That is what is tested.
