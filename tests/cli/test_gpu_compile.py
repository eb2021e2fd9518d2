"""The command `eqjax gpu-compile`: rejected arguments, and its report; tests/perf/test_gpu_budgets.py compiles."""

import pytest

from eqjax.cli import command_line, gpu_compile, main
from eqjax.perf import chips, gpu_compiler, gpu_report
from eqjax.perf.hlo import Collective
from eqjax.perf.kernels import Launches, Loop


def run(*arguments):
    args, words = command_line.parse(main.COMMANDS["gpu-compile"], arguments)
    gpu_compile.run(args, words)


@pytest.fixture(autouse=True)
def _same_devices(monkeypatch):
    """The command chooses virtual devices, which this process has already done."""
    monkeypatch.setattr(gpu_compile, "use_virtual_devices", lambda _: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name one program: sampling, decoding, training; got none"),
        (("flying",), "'flying' is not one of sampling, decoding, training"),
        (("sampling", "--chip=abacus"), "unknown chip 'abacus'"),
        (("sampling", "--chip=v5e"), "v5e is no CUDA GPU"),
        (("decoding", "--num_chips=2"), "num_chips=2: decoding runs on every device by itself"),
        (("training", "--num_chips=12"), "12 devices do not fill nodes of 8 H100"),
    ],
)
def test_wrong_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(*arguments)


def test_a_missing_compiler_is_an_error(monkeypatch):
    monkeypatch.setattr(gpu_compiler, "is_installed", lambda: False)
    with pytest.raises(ModuleNotFoundError, match="the GPU compiler is missing"):
        run("sampling")


def test_the_help_names_all_gpus():
    text = command_line.help_text(main.COMMANDS["gpu-compile"])
    names = [chip.name for chip in chips.CHIPS.values() if chip.cuda is not None]
    assert f"GPU: {', '.join(names[:-1])} or {names[-1]}." in text


def test_the_report_has_kernels_launches_memory_traffic_and_least_times():
    program = gpu_compiler.GpuProgram(
        compiler="GPU compiler of jax 1.2 for H100",
        compile_seconds=12.3,
        kernels=1000,
        loops=[Loop("outer", 0, 16, 1, 3), Loop("inner", 1, None, 16, 40)],
        launches=Launches(command_buffers=16, kernels_in_buffers=900, single_kernels=100),
        memory={"arguments": 4_000_000_000, "results": 0, "temporary": 36_000_000_000},
        traffic=[Collective("all-gather", 8, 8, 5, 45e9), Collective("all-reduce", 2, 9, 1, 5e9)],
    )
    request = gpu_report.GpuRequest(kind="training", num_chips=16, dtype="float32")
    seconds = gpu_report._least_seconds(request, chips.find_chip("H100"), program, 16 * 67e12)
    # Outside of the tensor cores, 67 TFLOP/s; 2 µs a kernel; 450 GB/s in a node and 50 GB/s beyond.
    assert seconds == pytest.approx({"products": 1.0, "kernels": 0.002, "network": 0.1 + 0.1}, rel=0.01)
    text = gpu_report.format_report(gpu_report.GpuReport(request, program, 16 * 67e12, {**seconds, "products": 1.0}))
    assert "kernels of a run: 1000, of which 900 in 16 launches of command buffers and 100 by themselves" in text
    assert "| total          | 40.0 GB, 50 % of H100 |" in text
    assert "|   inner | 16     | ?" in text and "| all-gather" in text
    assert "products 1.00 s, kernels 2.00 ms, network 200 ms" in text
