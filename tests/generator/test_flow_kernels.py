"""Which kernels evaluate the flow head: where there are fused ones, where "auto" takes them, what is said where not."""

import types

import jax
import numpy as np
import pytest

from eqjax.generator import flow_kernels, fused_flow
from eqjax.precision import computing_in

LARGE = (1280, 256, "bfloat16")


@pytest.fixture
def cuda(monkeypatch):
    """As with JAX's CUDA plugin and the last version that supports the kernels, in a process that sees one device."""
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    monkeypatch.setattr(flow_kernels, "cuda_is_installed", lambda: True)
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def traced(choice):
    """Returns what is chosen while JAX traces."""
    found = []
    jax.eval_shape(lambda x: found.append(flow_kernels.check(choice, *LARGE, arrays=x)), np.zeros(3))
    return found[0]


def test_without_a_gpu_auto_is_plain_and_fused_is_refused(monkeypatch):
    monkeypatch.setattr(flow_kernels, "cuda_is_installed", lambda: False)
    assert flow_kernels.check("auto", *LARGE) == flow_kernels.check("plain", *LARGE) == "plain"
    with pytest.raises(ValueError, match="flow_kernels='fused' needs an NVIDIA GPU and JAX's CUDA plugin: choose"):
        flow_kernels.check("fused", *LARGE)


@pytest.mark.usefixtures("cuda")
def test_arrays_on_a_cpu_are_not_for_a_gpu():
    arrays = {"a": jax.device_put(np.zeros(3), jax.devices("cpu")[0])}
    assert flow_kernels.check("auto", *LARGE, arrays=arrays) == "plain"
    with pytest.raises(ValueError, match="needs an NVIDIA GPU, and this computation runs on a cpu"):
        flow_kernels.check("fused", *LARGE, arrays=arrays)


@pytest.mark.usefixtures("cuda")
def test_what_is_traced_is_decided_when_it_is_lowered():
    assert traced("auto") == "auto" and traced("fused") == "fused" and traced("plain") == "plain"


@pytest.mark.usefixtures("cuda")
def test_several_devices_have_the_plain_path(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert traced("auto") == "plain"
    with pytest.raises(ValueError, match="needs one device, and this computation may have 8"):
        traced("fused")


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("head", [(1000, 256, "float32"), (1280, 8, "float32"), (1280, 256, "float64")])
def test_sizes_without_kernels_have_the_plain_path(head):
    assert flow_kernels.check("auto", *head) == "plain"
    with pytest.raises(ValueError, match=f"multiples of 16 for flow_width={head[0]} and latent_dim={head[1]}"):
        flow_kernels.check("fused", *head)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("rows", "dtype", "precision", "expected"),
    [
        (128, "bfloat16", "highest", True), (130, "bfloat16", "highest", False), (16, "float32", "highest", True),
        (128, "float32", "highest", False), (128, "float32", "tf32", True),
    ],
)  # fmt: skip
def test_auto_takes_them_for_few_rows(rows, dtype, precision, expected):
    with computing_in(precision):
        assert flow_kernels.is_worthwhile(rows, 1280, 256, dtype) == expected


@pytest.mark.usefixtures("cuda")
def test_auto_does_not_take_them_where_jax_calls_their_compiler_deprecated(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 0))
    assert not flow_kernels.is_worthwhile(2, *LARGE)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(("error", "expected"), [(1e-3, True), (0.1, False), (float("inf"), False)])
def test_on_a_gpu_auto_takes_them_if_they_are_right_there(monkeypatch, error, expected):
    asked = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(flow_kernels, "error_here", lambda *case: asked.append(case) or error)
    assert flow_kernels.is_worthwhile(2, *LARGE) == expected
    assert asked == [(2, *LARGE)]


@pytest.mark.parametrize("rows", [5, 6])
def test_the_kernels_are_right_here_also_while_jax_traces(rows):
    found = []
    jax.eval_shape(lambda: found.append(flow_kernels.error_here(rows, 48, 16, "float32", interpret=True)))
    assert found[0] < 1e-5


def test_wrong_kernels_are_found_and_old_gpus_have_none(monkeypatch):
    def error_on(capability, result):
        monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
        monkeypatch.setattr(fused_flow, "velocity", result)
        return flow_kernels.error_here.__wrapped__(6, 48, 16, "float32")

    def constant(value):
        return lambda *_, **__: jax.numpy.full((6, 16), value, jax.numpy.float32)

    def refuse(*_, **__):
        raise NotImplementedError

    assert 0.5 < error_on("8.9", constant(0)) < float("inf")
    assert error_on("8.9", constant(np.nan)) == float("inf")
    assert error_on("9.0", refuse) == float("inf")
    for capability in (None, "7.5"):  # A CPU, and a GPU before Ampere.
        assert error_on(capability, constant(0)) == float("inf")
