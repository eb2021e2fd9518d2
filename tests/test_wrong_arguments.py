"""Wrong values for every argument of every exported function: one error each, which names the argument."""

import json
import pathlib
import subprocess
import sys


def test_every_function_refuses_every_wrong_value_by_the_arguments_name():
    """In a program of its own, where annotations are not checked."""
    root = pathlib.Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "tests.wrong_arguments"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["problems"]
    assert found["functions"] > 30 and found["tried"] > 700
    assert found["untried"] == []
