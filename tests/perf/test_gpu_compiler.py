"""What the GPU compiler is told of chips, and what is said where it is missing; it compiles in test_gpu_budgets.py."""

import re

import pytest

from eqjax.perf import chips, gpu_compiler

GPUS = [chip for chip in chips.CHIPS.values() if chip.cuda is not None]


@pytest.mark.parametrize("chip", GPUS, ids=lambda chip: chip.name)
def test_targets_have_the_figures_of_the_chip(chip):
    text = gpu_compiler.target(chip)
    assert text.count("{") == text.count("}") and f'"{chip.cuda.device_name}"' in text
    values = {name: float(value) for name, value in re.findall(r"(\w+): ([\d.]+)", text)}
    assert values["device_memory_size"] == chip.memory and values["memory_bandwidth"] == chip.memory_bandwidth
    assert (values["core_count"], values["clock_rate_ghz"]) == (chip.cuda.cores, chip.cuda.clock_ghz)
    assert values["shared_memory_per_core"] - values["shared_memory_per_block_optin"] == 1024
    # Float32 arithmetic of all units, two operations a turn of the clock, is below the rate of bfloat16 products.
    assert 2e9 * chip.cuda.cores * chip.cuda.float32_units * chip.cuda.clock_ghz < chip.peak_flops


def test_the_table_has_the_gpus_that_people_have():
    assert {chip.name: chip.memory / 1e9 for chip in GPUS} == {
        "H100": 80, "H200": 141, "A100": 80, "RTX4090": 24, "L4": 24,
    }  # fmt: skip


def test_tpus_have_no_target():
    with pytest.raises(ValueError, match="v5e is no CUDA GPU"):
        gpu_compiler.target(chips.find_chip("v5e"))


@pytest.mark.parametrize(("count", "expected"), [(1, "1x1x1"), (8, "1x1x8"), (64, "1x8x8")])
def test_devices_fill_nodes(count, expected):
    assert gpu_compiler.topology(chips.find_chip("H100"), count) == expected


def test_nodes_that_are_not_full_are_refused():
    with pytest.raises(ValueError, match="12 devices do not fill nodes of 8 A100; make it a multiple"):
        gpu_compiler.devices(chips.find_chip("A100"), 12)


def test_a_missing_compiler_is_named_with_the_lines_that_install_it(monkeypatch):
    monkeypatch.setattr(gpu_compiler, "is_installed", lambda: False)
    with pytest.raises(
        ModuleNotFoundError, match=r"`make gpu-compile` installs it; .* pip install --no-deps jax-cuda12"
    ):
        gpu_compiler.devices(chips.find_chip("H100"))
