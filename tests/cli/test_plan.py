"""The command `eqjax plan`: its devices, its output, and rejected arguments."""

import json
import subprocess
import sys

from absl import flags
import pytest

from eqjax.cli import plan


def run_python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=200, check=False)


def test_unknown_chips_are_refused_before_anything_is_compiled():
    done = run_python("-m", "eqjax", "plan", "--config=imagenet_generator:size=H", "--chips=H100,abacus")
    assert done.returncode == 1 and "unknown chip 'abacus'" in done.stderr, done.stderr


def test_virtual_devices_replace_those_of_the_environment():
    done = run_python("-c", "from eqjax.cli import plan; plan.use_virtual_devices(3); import jax; print(jax.devices())")
    assert done.stdout.count("CpuDevice") == 3, done.stderr


@pytest.mark.slow
def test_plan_of_a_tiny_generator_is_printed_and_written(tmp_path):
    output = tmp_path / "plan.json"
    done = run_python(
        "-m", "eqjax", "plan", "--config=imagenet_generator:tiny", "--num_chips=8", "--mesh=data:4,fsdp:2",
        "--num_columns=4", "--chips=v5e", f"--output={output}",
    )  # fmt: skip
    assert done.returncode == 0 and "| v5e " in done.stdout, done.stderr
    written = json.loads(output.read_text())
    assert (written["num_chips"], written["mesh"]) == (8, "data:4,fsdp:2")
    assert [estimate["chip"] for estimate in written["estimates"]] == ["v5e"]


def test_the_help_of_chips_names_the_whole_table():
    from eqjax.perf.chips import CHIPS

    values = flags.FlagValues()
    plan.define_flags(values)
    assert values["chips"].help.endswith(": " + ", ".join(CHIPS) + ".")
