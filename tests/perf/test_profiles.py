"""Kernels of a profile: own times, the longest first, read from a real trace."""

import types

import jax
import jax.numpy as jnp
import pytest

from eqjax.perf import profiles


def event(name, start, duration, **stats):
    return types.SimpleNamespace(name=name, start_ns=start, duration_ns=duration, stats=list(stats.items()))


def trace(**planes):
    """A trace of planes by name, each a dict of lines."""
    return types.SimpleNamespace(
        planes=[
            types.SimpleNamespace(
                name=name, lines=[types.SimpleNamespace(name=line, events=events) for line, events in lines.items()]
            )
            for name, lines in planes.items()
        ]
    )


def test_a_loop_counts_without_its_body_and_neighbors_apart():
    events = [("loop", 0, 100), ("gemm", 10, 30), ("norm", 40, 20), ("inner", 45, 5), ("last", 100, 7)]
    found = {name: round(seconds * 1e9) for name, seconds in profiles.exclusive(events)}
    assert found == {"loop": 50, "gemm": 30, "norm": 15, "inner": 5, "last": 7}


def test_the_longest_are_sums_over_calls_and_fractions_of_all():
    events = [("a", 1.0), ("b", 2.5), ("a", 3.0), ("c", 3.5)]
    first, second = profiles.longest(events, 2)
    assert (first.name, first.calls, first.seconds, first.fraction) == ("a", 2, 4.0, 0.4)
    assert (second.name, second.calls) == ("c", 1)
    assert profiles.longest([], 3) == ()


def test_a_gpu_has_the_kernels_of_its_streams_alone():
    host = {"python": [event("jit", 0, 99, hlo_op="gemm")]}
    lines = {
        "Stream #1(Compute)": [event("gemm", 0, 5)],
        "Stream #2(MemcpyD2H)": [event("copy", 3, 4)],
        "Modules": [event("all", 0, 9)],
    }
    found = list(profiles._kernels(trace(**{"/host:CPU": host, "/device:GPU:0": lines})))
    assert [(name, round(seconds * 1e9)) for name, seconds in found] == [("gemm", 5), ("copy", 4)]


def test_a_cpu_has_the_operations_of_its_programs():
    lines = {"python": [event("call", 0, 50)], "pool": [event("wait", 0, 9), event("dot", 1, 4, hlo_op="dot")]}
    found = list(profiles._kernels(trace(**{"/host:CPU": lines})))
    assert [(name, round(seconds * 1e9)) for name, seconds in found] == [("dot", 4)]


def test_a_real_call_has_its_operations():
    double = jax.jit(lambda x: jnp.sort(x @ x, axis=0))
    x = jax.block_until_ready(double(jnp.ones((300, 300))))
    kernels = profiles.profile_kernels(lambda: double(x), 2)
    assert 1 <= len(kernels) <= 2 and all(kernel.calls >= 1 for kernel in kernels)
    assert kernels[0].seconds > 0 and sum(kernel.fraction for kernel in kernels) == pytest.approx(1, abs=0.5)
    assert kernels[0].seconds == max(kernel.seconds for kernel in kernels)
