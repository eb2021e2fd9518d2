"""The recorded cases of the package: all are run, at the precision that is asked for, and errors are found."""

from typing import Any

import jax
import numpy as np
import pytest

from eqjax.generator import gpu_kernels
from eqjax.recorded import cases
from eqjax.sampling import fused_columns


@pytest.mark.slow
def test_all_outputs_are_met_in_float32():
    found = list(cases.compare("highest"))
    names = [item.case for item in found]
    assert len(names) == len(set(names)) == 17
    for part in ("mean", "images", "semantic", "context", "velocity", "loss", "sample/3"):
        assert any(part in name for name in names)
    assert all(item.is_close and item.bound == 1e-5 for item in found), found
    # A case that compared recorded arrays with themselves would have no rounding.
    assert sum(item.error > 0 for item in found) >= len(found) - 1


@pytest.mark.slow
def test_samples_of_the_fused_kernels_are_met_in_float32(monkeypatch):
    """Emulated; those of few rows, of many, and the arrangement that takes their place where there are none."""
    monkeypatch.setattr(fused_columns, "_INTERPRET", True)
    monkeypatch.setattr(gpu_kernels, "check", lambda choice, *_: choice)
    monkeypatch.setattr(gpu_kernels, "_MOST_FLOAT32_BLOCK_ROWS", 6)
    monkeypatch.setattr(cases, "MANY", 3)
    taken, real = [], gpu_kernels.velocity
    monkeypatch.setattr(gpu_kernels, "velocity", lambda kind, *rest: taken.append(kind) or real(kind, *rest))
    samples = [(name, run, recorded) for name, run, recorded in cases.outputs() if "fused" in name]
    assert [name[-1] for name, *_ in samples] == ["1", "3"] * 4
    errors = [cases.relative_error(run(), recorded) for _, run, recorded in samples]
    assert set(taken) == {"blocks", "rows"}
    jax.clear_caches()
    monkeypatch.setattr(gpu_kernels, "flow_kind", lambda *_: "sums")
    errors += [cases.relative_error(run(), recorded) for _, run, recorded in samples[::2]]
    assert taken[-1] == "sums"
    assert min(errors) > 0 and max(errors) <= cases.BOUNDS["highest"], errors


@pytest.mark.parametrize(("precision", "expected"), [("tf32", "tensorfloat32"), ("bfloat16", "bfloat16")])
def test_outputs_are_computed_at_the_precision(precision, expected, monkeypatch):
    seen = []

    def run():
        config: Any = jax.config
        seen.append(config.jax_default_matmul_precision)
        return np.ones(2)

    monkeypatch.setattr(cases, "outputs", lambda _: [("one", run, np.full(2, 2.0))])
    (found,) = cases.compare(precision)
    assert seen == [expected] and (found.precision, found.error) == (precision, 0.5)
    assert not found.is_close and found.bound == cases.BOUNDS[precision]


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision"):
        next(cases.compare("sharp"))


def test_errors_that_are_no_numbers_are_not_close():
    assert not cases.Comparison("x", "highest", float("nan"), 1e-5).is_close


def test_outputs_of_another_shape_are_errors():
    with pytest.raises(ValueError, match=r"the output has shape \(2,\), the recorded one \(3,\)"):
        cases.relative_error(np.zeros(2), np.zeros(3))
