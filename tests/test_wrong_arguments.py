"""Wrong values for every argument of every exported function: one error each, which names the argument."""

import json
import pathlib
import subprocess
import sys

import pytest


# The samplers compile, which takes a minute.
@pytest.mark.parametrize(
    ("group", "functions", "tried"),
    [("others", 30, 700), pytest.param("sampling", 3, 500, marks=pytest.mark.slow)],
)
def test_every_function_refuses_every_wrong_value_by_the_arguments_name(group, functions, tried):
    """In a program of its own, where annotations are not checked."""
    root = pathlib.Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "tests.wrong_arguments", group], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["problems"]
    assert found["functions"] > functions and found["tried"] > tried
    assert found["untried"] == []
