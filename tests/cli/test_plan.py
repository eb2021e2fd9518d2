"""The command `eqjax plan`: its devices, its output, and rejected arguments."""

import json
import subprocess
import sys

from absl import flags
import pytest

from eqjax.cli import command_line, main, plan


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
    (written,) = written["plans"]
    assert (written["num_chips"], written["mesh"]) == (8, "data:4,fsdp:2")
    assert [estimate["chip"] for estimate in written["estimates"]] == ["v5e"]
    assert written["compiler"].startswith("CPU compiler") and "upper estimates" in done.stdout


def test_the_gpu_compiler_serves_gpus_where_it_is_installed(monkeypatch, capsys):
    """A program for every GPU, and one of the CPU compiler for all other chips."""
    from eqjax.perf import gpu_compiler, step_plan

    asked = []
    memory = {"parameters": 1, "EMA weights": 1, "optimizer state": 2, "activations and gradients": 1}

    def plan_step(config, num_chips, num_columns, chip_name):
        del config, num_chips, num_columns
        asked.append(chip_name)
        return step_plan.StepPlan(
            f"compiler for {chip_name}", "m", 8, "data:8", 8, 1, memory, 1.0, False, "highest", []
        )

    monkeypatch.setattr(step_plan, "plan_step", plan_step)
    monkeypatch.setattr(plan, "use_virtual_devices", lambda _: None)
    for installed, choice, expected in (
        (True, "auto", ["A100", None, "L4"]), (True, "cpu", [None]), (False, "auto", [None]),
    ):  # fmt: skip
        monkeypatch.setattr(gpu_compiler, "is_installed", lambda installed=installed: installed)
        asked.clear()
        arguments = ["--config=imagenet_generator:tiny", "--chips=A100,v5e,L4,v5p", f"--compiler={choice}"]
        plan.run(command_line.parse(main.COMMANDS["plan"], arguments)[0])
        assert asked == expected
        printed = capsys.readouterr().out
        assert all(f"compiler for {name}." in printed for name in expected) and printed.count("| v5p") == 1
    with pytest.raises(ModuleNotFoundError, match="the GPU compiler is missing"):
        plan.run(command_line.parse(main.COMMANDS["plan"], [*arguments[:-1], "--compiler=gpu"])[0])


def test_the_help_of_chips_names_the_whole_table():
    from eqjax.perf.chips import CHIPS

    values = flags.FlagValues()
    plan.define_flags(values)
    assert values["chips"].help.endswith(": " + ", ".join(CHIPS) + ".")
