"""The compiler's flags: which programs get which, and that the page has all of them."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from eqjax import xla_flags

ROOT = pathlib.Path(__file__).parent.parent
SCHEDULER, PROFILE = "xla_gpu_enable_latency_hiding_scheduler", "xla_enable_command_buffers_during_profiling"


@pytest.mark.parametrize(
    ("platform", "num_devices", "profiled", "flags", "expected"),
    [
        ("gpu", 1, False, "", []),
        ("gpu", 2, False, "", [SCHEDULER]),
        ("cuda", 1, True, "", [PROFILE]),
        ("gpu", 2, True, "", [SCHEDULER, PROFILE]),
        ("gpu", 2, True, f"--xla_other=1 --{SCHEDULER}=false", [PROFILE]),
        ("cpu", 2, True, "", []),
        ("tpu", 2, True, "", []),
    ],
)
def test_only_gpu_programs_get_options_and_users_come_first(platform, num_devices, profiled, flags, expected):
    environment = {"XLA_FLAGS": flags}
    found = xla_flags.options(platform, num_devices=num_devices, profiled=profiled, environment=environment)
    assert found == dict.fromkeys(expected, True)


def test_the_compiler_knows_all_flags():
    """All compilers know all flags, whatever they do with them; only XLA_FLAGS can add to a list."""
    values = {flag.name: flag.value for flag in xla_flags.GPU_FLAGS}
    options = {name: value.lstrip("+") if isinstance(value, str) else value for name, value in values.items()}
    assert float(jax.jit(lambda x: x + 1, compiler_options=options)(jnp.float32(1))) == 2


def test_the_page_on_gpus_has_every_flag_and_says_which_are_set():
    text = (ROOT / ".docs" / "how_to" / "gpu.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `--xla")]
    for flag in xla_flags.GPU_FLAGS:
        (row,) = [row for row in rows if flag.text in row]
        assert ("yes" in row.split("|")[2]) == (flag.set_for is not None), flag.name
    assert sum(row.split("|")[1].count("--xla") for row in rows) == len(xla_flags.GPU_FLAGS)
