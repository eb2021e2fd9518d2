"""Configuration of all tests: four virtual CPU devices, and a cache of compiled programs.

With EQJAX_TEST_PLATFORM=cuda (or tpu) tests run on the accelerator: in float32 throughout, in one process, which takes
no more memory than it needs. Tests that need four devices fail there on a machine with fewer.
"""

from importlib import metadata
import os
import pathlib

import pytest

from tests import type_checking

_TESTS = pathlib.Path(__file__).parent
_CACHE = _TESTS.parent / ".cache" / "xla"

# In the environment, before anything imports jax: programs that tests start inherit it too.
_PLATFORM = os.environ.get("EQJAX_TEST_PLATFORM", "cpu")
if _PLATFORM == "cpu":
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Test models are tiny: compiling them takes longer than running them, and three times as long when optimized.
    _FLAGS = ["--xla_force_host_platform_device_count=4", "--xla_backend_optimization_level=0"]
    # The older of two code generators, which jaxlib 0.11 no longer has, takes two thirds of the newer one's time.
    if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
        _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
else:
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        raise pytest.UsageError(f"EQJAX_TEST_PLATFORM={_PLATFORM}: one process holds the accelerator; give -n0.")
    os.environ["JAX_PLATFORMS"] = f"{_PLATFORM},cpu"
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
# XLA's thread pool: with fewer threads than virtual devices have work for, steps that are not awaited deadlock.
os.environ["NPROC"] = "16"
# Where there are no more cores than workers, each has its own: else their many threads keep displacing each other.
if hasattr(os, "sched_setaffinity") and "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    _CORES, _WORKERS = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    if len(_CORES) == _WORKERS:
        os.sched_setaffinity(0, {_CORES[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % _WORKERS]})
# Mixed dtypes and implicit broadcasting over ranks are errors, except where the code asks for them.
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
type_checking.install()

# Test files from the slowest on.
_LONGEST = [
    "test_notebooks",
    "test_blocks",
    "test_page",
    "test_hostile_files",
    "test_train",
    "test_sharding",
    "test_runs",
    "test_fault_tolerance",
    "test_panorama",
    "test_build",
    "test_objective",
    "test_tasks",
    "test_report",
    "test_sample_metrics",
]


@pytest.fixture(scope="session")
def golden():
    """The folder of arrays recorded from the reference."""
    return _TESTS / "golden"


def pytest_collection_modifyitems(items):
    """Orders tests from the longest to the shortest, so that no worker ends with a long one."""
    items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))
