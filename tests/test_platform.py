"""The variable that runs the tests on an accelerator: what it sets, and that one process must hold it."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
PRINT = "import os; from tests import conftest; print([os.environ.get(n) for n in {names}])"
NAMES = ["JAX_PLATFORMS", "JAX_DEFAULT_MATMUL_PRECISION", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_FLAGS"]


def set_by_the_tests(**variables):
    kept = {name: value for name, value in os.environ.items() if name not in NAMES and "XDIST" not in name}
    command = [sys.executable, "-c", PRINT.format(names=NAMES)]
    return subprocess.run(command, cwd=ROOT, env=kept | variables, capture_output=True, text=True, check=False)


def test_an_accelerator_computes_in_float32_and_gives_memory_as_it_is_needed():
    done = set_by_the_tests(EQJAX_TEST_PLATFORM="cuda")
    assert done.stdout.strip() == "['cuda,cpu', 'highest', 'false', None]", done.stderr


def test_without_the_variable_tests_run_on_virtual_cpu_devices():
    variables = {name: value for name, value in os.environ.items() if name == "EQJAX_TEST_PLATFORM"}
    assert variables.get("EQJAX_TEST_PLATFORM", "cpu") == "cpu"
    done = set_by_the_tests()
    assert done.stdout.startswith("['cpu', None, None, ") and "device_count=4" in done.stdout, done.stderr


def test_several_processes_on_an_accelerator_are_refused():
    done = set_by_the_tests(EQJAX_TEST_PLATFORM="cuda", PYTEST_XDIST_WORKER_COUNT="2")
    assert done.returncode and "one process holds the accelerator; give -n0" in done.stderr
