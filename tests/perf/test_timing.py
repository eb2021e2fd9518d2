"""Timing: what is compiled, called and profiled, and the peak."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import xla_flags
from eqjax.perf import timing


@pytest.fixture(autouse=True)
def _fresh():
    """No peak is remembered between tests."""
    timing.matmul_peak.cache_clear()
    yield
    timing.matmul_peak.cache_clear()


def test_the_peak_is_that_of_random_numbers_and_measured_once(monkeypatch):
    given = []

    def measure(function, a, b, **_):
        given.extend([np.asarray(a), np.asarray(function(a[:8, :8], b[:8, :8]))])
        return timing.Timing(2.0, 0.0, 0)

    monkeypatch.setattr(timing, "measure", measure)
    assert timing.matmul_peak("float32") == timing.matmul_peak("float32") == 2 * 2048**3 / 2.0
    numbers, product = given
    assert len(np.unique(numbers)) > 0.9 * numbers.size
    np.testing.assert_allclose(product, numbers[:8, :8] @ numbers[:8, :8], rtol=1e-5)


def test_the_peak_is_of_the_precision(monkeypatch):
    texts = []

    def measure(function, *args, **_):
        texts.append(jax.jit(function).lower(*args).as_text())
        return timing.Timing(1.0, 0.0, 0)

    monkeypatch.setattr(timing, "measure", measure)
    for precision in ("highest", "tf32"):
        timing.matmul_peak("float32", precision)
    assert "precision = [HIGHEST, HIGHEST]" in texts[0] and "precision = [HIGH, HIGH]" in texts[1]


def test_calls_are_timed_after_a_first_one_and_a_profile_is_one_more(monkeypatch):
    asked = []
    monkeypatch.setattr(xla_flags, "options", lambda platform, **values: asked.append((platform, values)) or {})
    calls, name = [], "f"
    compiled = jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile()
    found = timing.time_calls(name, lambda: calls.append(compiled(jnp.ones(3))) or calls[-1], compiled, 1.5, 2, 0)
    assert len(calls) == 3 and found.kernels == () and found.compile_seconds == 1.5 and found.seconds > 0
    found = timing.measure(lambda x: jnp.sort(x @ x), jnp.ones((200, 200)), repeats=1, num_kernels=1)
    assert len(found.kernels) == 1 and asked == [("cpu", {"profiled": True})]
