"""Rules: what each accepts, what it returns, and the one message that names what it refuses."""

import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.rules import Array, Boolean, Choice, Either, Function, Instance, Integer, Items, Number, PathName, Text

ACCEPTED = [
    (Integer(least=1), 3, 3),
    (Integer(), np.int64(-2), -2),
    (Integer(), jnp.int32(7), 7),
    (Integer(optional=True), None, None),
    (Number(least=0), 0, 0.0),
    (Number(), np.float32(0.5), 0.5),
    (Number(), jnp.bfloat16(0.5), 0.5),
    (Number(above=0, most=1), np.array(1.0), 1.0),
    (Boolean(), np.True_, True),
    (Text(), "flower", "flower"),
    (Text(may_be_empty=True), "", ""),
    (PathName(), pathlib.Path("a") / "b", "a/b"),
    (Choice(("none", "full", False, 1)), 1, 1),
    (Items(Integer()), [1, 2], (1, 2)),
    (Items(Number()), np.array([1.0, 2.0]), (1.0, 2.0)),
    (Items(Integer()), range(3), (0, 1, 2)),
    (Items(Text()), (), ()),
    (Either((Number(), Items(Number()))), 2.0, 2.0),
    (Either((Number(), Items(Number()))), (2.0,), (2.0,)),
    (Instance(dict, "a dict"), {}, {}),
    (Function(), len, len),
]


@pytest.mark.parametrize(("rule", "value", "expected"), ACCEPTED)
def test_values_that_fit_become_plain_python(rule, value, expected):
    found = rule.check("x", value)
    assert found == expected and type(found) is type(expected)


REFUSED = [
    (Integer(least=1), 0, ValueError, "x=0 must be an integer ≥ 1."),
    (Integer(least=1, most=4), 5, ValueError, "x=5 must be an integer ≥ 1 and ≤ 4."),
    (Integer(), 3.0, TypeError, "x=3.0 must be an integer."),
    (Integer(), True, TypeError, "x=True must be an integer."),
    (Integer(), np.True_, TypeError, "must be an integer."),
    (Integer(), "8", TypeError, "x='8' must be an integer."),
    (Integer(), None, TypeError, "x=None must be an integer."),
    (Integer(), [1], TypeError, "x=[1] must be an integer."),
    (Integer(), np.zeros(3, int), TypeError, "x=<int64 array of shape (3,)> must be an integer."),
    (Integer(), 2**31, ValueError, "x=2147483648 must be an integer, at most 2147483647."),
    (Integer(), 1 << 10000, ValueError, "x=<an integer of 10001 bits> must be an integer, at most 2147483647."),
    (Integer(optional=True, none_means="no limit"), "", TypeError, "x='' must be an integer, or None (no limit)."),
    (Number(), float("nan"), ValueError, "x=nan must be a finite number."),
    (Number(), np.float32(np.inf), ValueError, "must be a finite number."),
    (Number(), 10**400, ValueError, "x=<an integer of 1329 bits> must be a finite number."),
    (Number(above=0), 0.0, ValueError, "x=0.0 must be a finite number > 0."),
    (Number(least=0, below=1), 1, ValueError, "x=1 must be a finite number ≥ 0 and < 1."),
    (Number(), False, TypeError, "x=False must be a finite number."),
    (Number(), "0.1", TypeError, "x='0.1' must be a finite number."),
    (Number(), 1j, TypeError, "x=1j must be a finite number."),
    (Number(), jax.random.key(0), TypeError, "must be a finite number."),
    (Boolean(), 1, TypeError, "x=1 must be True or False."),
    (Text(), "", ValueError, "x='' must be a string that is not empty."),
    (Text(), b"a", TypeError, "x=b'a' must be a string that is not empty."),
    (PathName(), None, TypeError, "x=None must be a path: a string that is not empty, or a pathlib.Path."),
    (PathName(), "", ValueError, "x='' must be a path: a string that is not empty, or a pathlib.Path."),
    (Choice(("euler", "heun")), "Heun", ValueError, "x='Heun' must be one of 'euler', 'heun'; did you mean 'heun'?"),
    (Choice(("euler", "heun")), "z", ValueError, "x='z' must be one of 'euler', 'heun'."),
    (Choice(("euler", "heun")), None, TypeError, "x=None must be one of 'euler', 'heun'."),
    (Choice((1, 2)), True, ValueError, "x=True must be one of 1, 2."),
    (Items(Integer(least=1)), [2, 0], ValueError, "x[1]=0 must be an integer ≥ 1."),
    (Items(Text()), "cat", TypeError, "x='cat' must be a sequence (each a string that is not empty)."),
    (Items(Integer(), least=1), [], ValueError, "x=[] must be a sequence (one or more, each an integer)."),
    (Items(Integer(), least=2, most=2), [1], ValueError, "x=[1] must be a sequence (2, each an integer)."),
    (Either((Number(least=0), Items(Number(least=0)))), -1, ValueError, "x=-1 must be a finite number ≥ 0."),
    (Either((Number(), Items(Number()))), ["a"], TypeError, "x[0]='a' must be a finite number."),
    (Either((Number(), Items(Text()))), 1j, TypeError, "number or a sequence (each a string that is not empty)."),
    (Instance(dict, "a dict"), 3, TypeError, "x=3 must be a dict."),
    (Function(), 3, TypeError, "x=3 must be a function."),
]


@pytest.mark.parametrize(("rule", "value", "kind", "message"), REFUSED, ids=range(len(REFUSED)))
def test_values_that_do_not_fit_are_named(rule, value, kind, message):
    with pytest.raises(kind) as found:
        rule.check("x", value)
    assert str(found.value).endswith(message) and str(found.value).startswith("x")
    assert type(found.value) is kind


def test_arrays_are_compared_by_kind_and_shape_also_while_they_are_traced():
    rule = Array(("batch", "columns", 3))
    array = np.zeros((2, 5, 3), np.float32)
    assert rule.check("latents", array) is array
    assert rule.check("latents", [[[1.0, 2.0, 3.0]]]).dtype == np.float32
    assert jax.jit(lambda x: rule.check("latents", x))(array).shape == (2, 5, 3)
    cases: list[tuple[Any, type[Exception]]] = [
        (np.zeros((2, 5, 4), np.float32), ValueError),
        (np.zeros((0, 5, 3), np.float32), ValueError),
        (np.zeros((5, 3), np.float32), ValueError),
        (np.zeros((2, 5, 3), int), TypeError),
        (np.array([["a"]]), TypeError),
        ([[1.0], [1.0, 2.0]], ValueError),
        (None, TypeError),
        ("abc", TypeError),
        (3.0, TypeError),
        (jax.random.split(jax.random.key(0), (2, 5, 3)), TypeError),
    ]
    for value, kind in cases:
        with pytest.raises(kind, match=r"latents=.* must be a floating-point array of shape \[batch, columns, 3\]"):
            rule.check("latents", value)


def test_traced_numbers_are_refused_unless_the_rule_allows_them():
    @jax.jit
    def keep(x):
        return Number(traceable=True).check("scale", x)

    assert float(keep(2.0)) == 2.0
    with pytest.raises(TypeError, match=r"num_columns is traced by JAX, but it must be known .* an integer ≥ 1"):
        jax.jit(lambda x: Integer(least=1).check("num_columns", x))(3)


def test_values_are_checked_without_loading_jax():
    """The command line does so before it has loaded anything."""
    code = "import sys; from eqjax.rules import Integer; Integer().check('x', 1); assert 'jax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=pathlib.Path(__file__).parent.parent).returncode == 0


@pytest.mark.parametrize("dtype", [">f4", "<f8", np.longdouble, ">f2"])
def test_arrays_of_other_machines_become_native(dtype):
    found = Array(("n",)).check("x", np.arange(3).astype(dtype))
    assert found.dtype.isnative and found.dtype != np.longdouble and found.tolist() == [0, 1, 2]


def test_masked_values_are_no_data():
    array = np.ma.masked_array(np.zeros(3, np.float32), mask=[False, True, False])
    with pytest.raises(ValueError, match=r"x has masked values, which are no data; fill them first"):
        Array(("n",)).check("x", array)
    assert type(Array(("n",)).check("x", array[:1])) is np.ndarray
