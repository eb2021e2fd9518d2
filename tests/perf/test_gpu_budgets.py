"""Budgets of the programs that the GPU compiler makes: kernels, memory, time of compiling.

`make test-gpu-compile` installs the compiler and runs these; without it they fail. The suites of CI leave them out: it
has no such compiler. What reads the compiler's output is tested there on programs written by hand.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu_compiler

# Seconds of compiling on one core that does nothing else, and what several processes may make of it.
_COMPILE_SECONDS = 60


def compiled(tmp_path, *arguments):
    """Returns the report of the command, which runs without the flags of tests."""
    output = tmp_path / "report.json"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "eqjax", "gpu-compile", *arguments, f"--output={output}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())["program"]


@pytest.mark.parametrize(
    ("dtype", "batch_size", "gpu_kernels", "most_of_evaluation", "most_of_layer", "gigabytes"),
    [
        ("bfloat16", 64, "auto", 30, 7, 0.8), ("bfloat16", 64, "plain", 55, 37, 0.8),
        ("float32", 64, "auto", 55, 7, 1.2), ("float32", 64, "plain", 55, 37, 1.2),
        ("float32", 1, "auto", 30, 7, 0.1), ("bfloat16", 256, "auto", 55, 37, 2.2),
    ],
)  # fmt: skip
def test_sampling_of_the_large_size(
    dtype, batch_size, gpu_kernels, most_of_evaluation, most_of_layer, gigabytes, tmp_path
):
    """Seven kernels of a layer are six and the loop's counter: no copies."""
    options = f"--dtype={dtype}", f"--batch_size={batch_size}", f"--gpu_kernels={gpu_kernels}"
    program = compiled(tmp_path, "sampling", "--config=L", *options)
    # Evaluations of the flow head, at 100 steps of 16 columns, and visits of 32 layers.
    (evaluation,) = (loop for loop in program["loops"] if loop["turns"] * loop["visits"] == 1600)
    (layer,) = (loop for loop in program["loops"] if loop["turns"] * loop["visits"] == 512)
    assert evaluation["kernels"] <= most_of_evaluation
    assert layer["kernels"] <= most_of_layer
    assert max(loop["kernels"] for loop in program["loops"] if loop not in (evaluation, layer)) <= 30
    assert program["memory"]["temporary"] <= gigabytes * 1e9
    assert program["compile_seconds"] <= _COMPILE_SECONDS
    launches = program["launches"]
    assert launches["kernels_in_buffers"] + launches["single_kernels"] == program["kernels"]
    assert launches["single_kernels"] < 15_000


@pytest.mark.parametrize(
    ("chip", "config", "dtype", "batch_size", "most"),
    [("A100", "L", "bfloat16", 64, 30), ("L4", "H", "float32", 8, 30), ("L4", "H", "float32", 256, 55)],
)
def test_the_fused_kernels_fit_smaller_gpus(chip, config, dtype, batch_size, most, tmp_path):
    """Their shared memory above all, which is checked when they are compiled; size H has heads of 80 channels."""
    options = f"--chip={chip}", f"--dtype={dtype}", f"--batch_size={batch_size}", "--num_columns=2"
    program = compiled(tmp_path, "sampling", f"--config={config}", "--gpu_kernels=fused", *options)
    assert max(loop["kernels"] for loop in program["loops"]) <= most


@pytest.mark.parametrize("num_chips", [8, 16])
def test_sampling_on_a_mesh_is_the_program_of_one_device_and_sends_nothing(num_chips, tmp_path):
    """Of one process, and of two with eight devices each."""
    program = compiled(tmp_path, "sampling", "--config=L", f"--batch_size={64 * num_chips}", f"--num_chips={num_chips}")
    turns = {loop["turns"] * loop["visits"]: loop["kernels"] for loop in program["loops"]}
    assert turns[1600] <= 30 and turns[512] <= 7
    assert not program["traffic"] and program["memory"]["temporary"] <= 0.8e9


def test_decoding(tmp_path):
    program = compiled(tmp_path, "decoding", "--config=L", "--batch_size=16")
    assert program["kernels"] <= 600 and program["memory"]["temporary"] <= 2.5e9


def test_a_step_of_the_large_size_compiles_and_fits_a_card_of_80_gigabytes(tmp_path):
    program = compiled(tmp_path, "training", "--config=L", "--batch_size=256")
    assert sum(program["memory"].values()) < 60e9


def test_a_step_on_eight_devices_gathers_weights_and_scatters_gradients(tmp_path):
    program = compiled(
        tmp_path, "training", "--config=S", "--batch_size=256", "--num_chips=8", "--mesh=fsdp:8", "--chip=A100"
    )
    kinds = {item["kind"] for item in program["traffic"]}
    assert {"all-gather", "reduce-scatter"} <= kinds
