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
    assert (chip.platform, chip.float32_slowdown) == (("tpu", 6) if is_tpu else ("gpu", 2))
