"""The table of chips: lookups by short name and by JAX's device kind."""

import pytest

from eqjax.perf import chips


def test_peak_flops_takes_the_longest_matching_device_kind():
    assert chips.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert chips.peak_flops("TPU v5 lite") == 197e12
    assert chips.peak_flops("TPU v5") == 459e12


def test_chips_whose_names_only_begin_alike_are_not_taken():
    assert chips.peak_flops("NVIDIA L4") == 121e12 and chips.peak_flops("NVIDIA L40S") is None
    assert chips.peak_flops("NVIDIA GeForce RTX 4090") == 165.2e12
    assert (
        chips.peak_flops("NVIDIA GeForce RTX 4090 Laptop GPU") is chips.peak_flops("NVIDIA GeForce RTX 4090 D") is None
    )
    assert chips.peak_flops("NVIDIA A100-SXM4-80GB") == 312e12


def test_peak_flops_of_an_unknown_device_is_none():
    assert chips.peak_flops("cpu") is None


def test_unknown_chip_names_are_errors_that_list_the_table():
    with pytest.raises(ValueError, match="unknown chip 'abacus'; eqjax/perf/chips.py has H100, H200"):
        chips.find_chip("abacus")


@pytest.mark.parametrize("chip", chips.CHIPS.values(), ids=lambda chip: chip.name)
def test_float32_products_are_slower_by_the_platform_not_the_name(chip):
    is_tpu = all(kind.startswith("TPU") for kind in chip.device_kinds)
    assert chip.platform == ("tpu" if is_tpu else "gpu")
    times = [chip.float32_slowdown(name) for name in ("highest", "tf32", "bfloat16")]
    assert times[1:] == ([3, 1] if is_tpu else [2, 2]) and times == sorted(times, reverse=True)


@pytest.mark.parametrize(
    ("name", "highest", "tf32"), [("H100", 14.8, 2), ("A100", 16, 2), ("RTX4090", 2, 2), ("L4", 4, 2), ("v4", 6, 3)]
)
def test_float32_products_take_their_time_by_precision(name, highest, tf32):
    """By data sheets: 67 TFLOP/s outside of the tensor cores of an H100, 19.5 of an A100, 82.6 of an RTX 4090."""
    chip = chips.CHIPS[name]
    assert chip.float32_slowdown("highest") == pytest.approx(highest, rel=0.05)
    assert chip.float32_slowdown("tf32") == tf32
