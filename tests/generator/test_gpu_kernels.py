"""Which kernels compute a column: where there are fused ones, where "auto" takes them, what is said where not."""

import dataclasses
import functools
import re
import types
from typing import Any

import jax
from jax.experimental import pallas as pl
import numpy as np
import pytest

from eqjax import sharding
from eqjax.generator import Generator, KVCache, fused_flow, fused_layers, fused_rows, fused_tiles, gpu_kernels
from eqjax.precision import computing_in

LARGE = Generator(dtype="bfloat16")
SMALL: Any = Generator(
    width=32, depth=2, num_heads=2, latent_dim=16, num_cond_tokens=3, window_size=3, flow_width=48, flow_depth=1,
    num_classes=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def logs_again(monkeypatch):
    """Logs what an earlier test has logged too."""
    monkeypatch.setattr(gpu_kernels, "_log_once", functools.cache(gpu_kernels._log_once.__wrapped__))


@pytest.fixture
def cuda(monkeypatch):
    """As with JAX's CUDA plugin, in a process that sees one device."""
    monkeypatch.setattr(gpu_kernels, "cuda_is_installed", lambda: True)
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def traced(choice):
    """Returns what is chosen while JAX traces."""
    found = []
    jax.eval_shape(lambda x: found.append(gpu_kernels.check(choice, LARGE, arrays=x)), np.zeros(3))
    return found[0]


def test_without_a_gpu_auto_is_plain_and_fused_is_refused(monkeypatch):
    monkeypatch.setattr(gpu_kernels, "cuda_is_installed", lambda: False)
    assert gpu_kernels.check("auto", LARGE) == gpu_kernels.check("plain", LARGE) == "plain"
    with pytest.raises(ValueError, match="gpu_kernels='fused' needs an NVIDIA GPU and JAX's CUDA plugin: choose"):
        gpu_kernels.check("fused", LARGE)


@pytest.mark.usefixtures("cuda")
def test_arrays_on_a_cpu_are_not_for_a_gpu():
    arrays = {"a": jax.device_put(np.zeros(3), jax.devices("cpu")[0])}
    assert gpu_kernels.check("auto", LARGE, arrays=arrays) == "plain"
    with pytest.raises(ValueError, match="needs an NVIDIA GPU, and this computation runs on a cpu"):
        gpu_kernels.check("fused", LARGE, arrays=arrays)


@pytest.mark.usefixtures("cuda")
def test_what_is_traced_is_decided_when_it_is_lowered():
    assert traced("auto") == "auto" and traced("fused") == "fused" and traced("plain") == "plain"


@pytest.mark.usefixtures("cuda")
def test_several_devices_have_the_plain_path(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert traced("auto") == "plain"
    with pytest.raises(ValueError, match="needs one device or a mesh, and this computation may have 8"):
        traced("fused")


@pytest.mark.usefixtures("cuda")
def test_in_a_shard_map_every_device_computes_by_itself(monkeypatch):
    """As the evaluation samples."""
    found = []

    def local(x):
        found.append(gpu_kernels.check("auto", LARGE, arrays=x))
        return x

    mesh, rows = sharding.make_mesh(jax.devices("cpu")[:4]), jax.sharding.PartitionSpec("data")
    for axes, processes in (({"data", "fsdp", "tensor"}, 1), ({"data", "fsdp", "tensor"}, 2), ({"data"}, 1)):
        monkeypatch.setattr(jax, "device_count", lambda: 4)
        monkeypatch.setattr(jax, "process_count", lambda processes=processes: processes)
        split = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows, axis_names=axes, check_vma=False)
        jax.eval_shape(jax.jit(split), np.zeros(4))
    assert found == ["auto", "plain", "plain"]


@dataclasses.dataclass(frozen=True)
class Device:
    """As JAX describes one."""

    process_index: int
    device_kind: str
    platform: str = "gpu"


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ((Device(0, "NVIDIA L4"), Device(0, "NVIDIA L4")), None),
        ((Device(0, "NVIDIA L4"), Device(1, "NVIDIA L4"), Device(2, "NVIDIA L4")), None),
        (
            (Device(0, "NVIDIA L4"), Device(2, "NVIDIA L4")),
            "one process or of all 3, and those of this mesh belong to 2",
        ),
        ((Device(0, "NVIDIA L4"), Device(0, "NVIDIA L40")), "kind, and those of this mesh are NVIDIA L4, NVIDIA L40"),
        ((*map(Device, range(3), ("NVIDIA L4", "NVIDIA L4", "NVIDIA A100")),), "this mesh are NVIDIA A100, NVIDIA L4"),
        ((Device(0, "v5e", "tpu"),) * 2, "an NVIDIA GPU, and this computation runs on a tpu"),
    ],
)
def test_a_mesh_is_of_equal_gpus_of_one_process_or_of_all(devices, message, monkeypatch, caplog):
    """They run one program, which one of each process has compared with the plain one."""
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    mesh = mesh_of(*devices)
    assert gpu_kernels.check("auto", LARGE, mesh=mesh) == ("auto" if message is None else "plain")
    is_said = message is not None and devices[0].platform == "gpu"
    assert [bool(re.search(f"they need .*{message}", text)) for text in caplog.messages] == [True] * is_said
    if message is None:
        assert gpu_kernels.check("fused", LARGE, mesh=mesh) == "fused"
    else:
        with pytest.raises(ValueError, match=f"gpu_kernels='fused' needs .*{message}"):
            gpu_kernels.check("fused", LARGE, mesh=mesh)


def mesh_of(*devices):
    """Returns a mesh of devices that need not exist."""
    array: Any = np.empty(len(devices), object)
    array[:] = devices
    return jax.sharding.Mesh(array, ("data",))


@pytest.fixture
def votes(monkeypatch):
    """As in two processes, of which the other finds the kernels of layers wrong: what this one tells it."""
    told: list[bool] = []

    def everywhere(truth):
        told.append(truth)
        return truth and len(told) != 2

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(sharding, "everywhere", everywhere)
    return told


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("is_right", [True, False])
def test_processes_take_what_all_of_them_found_right_and_all_are_asked_alike(is_right, votes, monkeypatch, caplog):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(gpu_kernels, "error_here", lambda *_: 0.0 if is_right else float("inf"))
    mesh = mesh_of(Device(0, "NVIDIA L4"), Device(1, "NVIDIA L4"))
    assert gpu_kernels.agree("auto", LARGE, 128, mesh) == ({"blocks"} if is_right else set())
    assert votes == [is_right, is_right]
    said = "leaves out the fused kernels for layers: another process refuses them"
    assert (said in caplog.text) == is_right
    assert {gpu_kernels.agree(choice, LARGE, 128, mesh) for choice in ("plain", "fused")} == {"plain", "fused"}
    assert gpu_kernels.agree("auto", LARGE, 128, mesh_of(Device(1, "NVIDIA L4"))) == "auto"
    assert len(votes) == 2  # These ask nobody, as the other process may not be there.


def test_a_process_that_lacks_the_kernels_tells_the_others(votes, monkeypatch):
    """They wait for it."""
    monkeypatch.setattr(gpu_kernels, "cuda_is_installed", lambda: False)
    mesh = mesh_of(Device(0, "NVIDIA L4"), Device(1, "NVIDIA L4"))
    assert gpu_kernels.check("auto", LARGE, mesh=mesh) == "auto"
    assert not gpu_kernels.agree("auto", LARGE, 128, mesh) and votes == [False, False]


@pytest.mark.usefixtures("cuda")
def test_a_traced_function_takes_what_was_agreed_on(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    for choice in (frozenset({"layers"}), frozenset(), "fused", "plain"):
        with gpu_kernels.as_agreed(choice):
            assert traced("auto") == choice
        assert traced("auto") == "plain"
    with gpu_kernels.as_agreed(None):
        assert traced("auto") == "plain"


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"flow_width": 1000}, "multiples of 16 for flow_width=1000 and latent_dim=256"),
        ({"latent_dim": 8}, "multiples of 16 for flow_width=1280 and latent_dim=8"),
        ({"dtype": "float64"}, "floats of 16 or 32 bits, not float64"),
        ({"width": 1032, "num_heads": 12}, "a multiple of 16 for width=1032"),
        ({"num_heads": 4}, "heads of at most 128 channels, not 256"),
    ],
)
def test_fused_is_refused_for_sizes_without_kernels(fields, expected):
    with pytest.raises(ValueError, match=expected):
        gpu_kernels.check("fused", Generator(**fields))


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("fields", "choice", "kinds"),
    [
        ({}, "auto", ["blocks", "rows", "layers"]), ({"flow_width": 1000}, "auto", ["layers"]),
        ({"num_heads": 4}, "auto", ["blocks", "rows"]), ({"flow_width": 1000, "num_heads": 4}, "plain", []),
        ({"dtype": "float64"}, "plain", []),
    ],
)  # fmt: skip
def test_auto_takes_the_kinds_that_there_are(fields, choice, kinds):
    generator, found = Generator(**fields), []
    jax.eval_shape(lambda x: found.append(gpu_kernels.check("auto", generator, arrays=x)), np.zeros(3))
    assert found == [choice]
    assert [kind for kind in gpu_kernels.KINDS if gpu_kernels.is_worthwhile(kind, 2, generator)] == kinds


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("rows", "dtype", "precision", "flow", "has_layers"),
    [
        (128, "bfloat16", "highest", "blocks", True), (130, "bfloat16", "highest", "rows", True),
        (512, "bfloat16", "highest", "rows", False), (16, "float32", "highest", "blocks", True),
        (18, "float32", "highest", "rows", True), (128, "float32", "tf32", "blocks", True),
        (256, "float32", "highest", "rows", True), (258, "float32", "highest", "rows", False),
    ],
)  # fmt: skip
def test_auto_takes_what_is_predicted_to_be_fast(rows, dtype, precision, flow, has_layers):
    generator: Any = Generator(dtype=dtype)
    with computing_in(precision):
        assert gpu_kernels.flow_kind(rows, generator) == flow
        assert gpu_kernels.is_worthwhile(flow, rows, generator)
        assert gpu_kernels.is_worthwhile("layers", rows, generator) == has_layers


# What describes a GPU is newer than the oldest JAX.
@pytest.mark.parametrize("version", [(0, 7, 2), *([(0, 11, 0), (0, 12, 0)] if jax.__version_info__ >= (0, 10) else [])])
def test_all_versions_trace_the_kernels_for_a_gpu_that_is_elsewhere(monkeypatch, version):
    """From 0.11 on JAX lowers them for a GPU that it is told of. Where it refuses, an error would not be caught."""
    monkeypatch.setattr(jax, "__version_info__", version)
    found = []
    monkeypatch.setattr(pl, "pallas_call", lambda *_, **__: lambda *_: found.append(jax.sharding.get_abstract_mesh()))
    fused_tiles.call(lambda *_: None, (1,), 0, None, interpret=False, name="none")
    described = getattr(found[0], "abstract_device", None)
    assert (described is not None and described.platform == "gpu") == (version >= (0, 11))


@pytest.mark.usefixtures("cuda")
def test_a_jax_that_refuses_a_kernel_has_the_plain_path_and_says_so_once(monkeypatch, caplog):
    """Such as one without Pallas' Triton, or with warnings that are errors."""

    def refuse():
        raise DeprecationWarning("Triton is gone\nfor good")

    monkeypatch.setattr(fused_tiles, "lower_one", refuse)
    monkeypatch.setattr(gpu_kernels, "_missing_compiler", gpu_kernels._missing_compiler.__wrapped__)
    assert traced("auto") == traced("auto") == "plain"
    lacking = f"Pallas with its Triton compiler, which jax {jax.__version__} lacks (DeprecationWarning: Triton is gone)"
    assert caplog.messages == [f"gpu_kernels='auto' leaves out the fused kernels: they need {lacking}."]
    with pytest.raises(ValueError, match=re.escape(f"gpu_kernels='fused' needs {lacking}: choose")):
        traced("fused")


def test_what_lowers_a_kernel_does_so_here_also_while_jax_traces():
    jax.eval_shape(fused_tiles.lower_one)
    assert gpu_kernels._missing_compiler.__wrapped__() is None


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(("error", "expected"), [(1e-3, True), (0.1, False), (float("inf"), False)])
def test_on_a_gpu_auto_takes_each_kind_that_is_right_there(monkeypatch, caplog, error, expected):
    asked = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(
        gpu_kernels, "error_here", lambda *case: asked.append(case) or (error if case[0] == "rows" else 0.0)
    )
    assert gpu_kernels.is_worthwhile("rows", 2, LARGE) == expected and gpu_kernels.is_worthwhile("layers", 2, LARGE)
    said = "leaves out the fused kernels for rows: on this GPU they differ from XLA's by 1e-01 of the largest value"
    assert (said in caplog.text) == (error == 0.1)
    (kind, rows, generator), _ = asked
    assert (kind, rows) == ("rows", 2)
    assert (generator.width, generator.flow_width, generator.num_heads) == (1024, 1280, 16)
    assert (generator.depth, generator.flow_depth) == (2, 2)  # Not all 32 layers, but one behind the first.


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("blocks", 6), ("layers", 6), pytest.param("rows", 5, marks=pytest.mark.slow),
        pytest.param("layers", 5, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_kernels_are_right_here_also_while_jax_traces(kind, rows):
    found = []
    jax.eval_shape(lambda: found.append(gpu_kernels.error_here(kind, rows, SMALL, interpret=True)))
    assert found[0] < 1e-5


def test_wrong_kernels_are_found_and_old_gpus_have_none(monkeypatch, caplog):
    modules = {
        "blocks": (fused_flow, "velocity"),
        "rows": (fused_rows, "velocity"),
        "layers": (fused_layers, "decode_step"),
    }
    real = {kind: getattr(*place) for kind, place in modules.items()}

    def error_on(capability, kind, kernels):
        monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
        monkeypatch.setattr(*modules[kind], kernels)
        return gpu_kernels.error_here.__wrapped__(kind, 6, SMALL)

    def constant(value):
        return lambda *_, **__: jax.numpy.full((6, 16), value, jax.numpy.float32)

    def wrong_cache(*args, **options):
        x, cache = real["layers"](*args, **{**options, "interpret": True})
        return x, KVCache(cache.keys, cache.values.at[1, :, 1].multiply(2))

    def refuse(*_, **__):
        raise RuntimeError("No supported GPU devices found")

    assert 0.5 < error_on("8.9", "rows", constant(0)) < float("inf")
    assert 0.1 < error_on("8.9", "layers", wrong_cache) < float("inf")
    assert error_on("8.9", "blocks", constant(np.nan)) == error_on("9.0", "layers", refuse) == float("inf")
    said = "not all their values here are finite", "for layers: RuntimeError: No supported GPU devices found"
    assert [text in message for text, message in zip(said, caplog.messages, strict=True)] == [True, True]
    for capability in (None, "7.5"):  # A CPU, and a GPU before Ampere.
        assert error_on(capability, "rows", real["rows"]) == float("inf")


@pytest.mark.parametrize(
    ("backend", "capabilities", "expected"),
    [("gpu", ["9.0"], True), ("gpu", ["8.0", "7.5"], False), ("cpu", [], True)],
)
def test_gpus_without_triton_have_no_late_sums(backend, capabilities, expected, monkeypatch):
    """A program that is compiled for another machine's GPU has them."""
    found = [types.SimpleNamespace(compute_capability=capability) for capability in capabilities]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: found)
    monkeypatch.setattr(gpu_kernels, "cuda_is_installed", lambda: True)
    assert gpu_kernels.has_late_sums() is expected
    monkeypatch.setattr(gpu_kernels, "cuda_is_installed", lambda: False)
    assert gpu_kernels.has_late_sums() is (expected and backend == "gpu")
