"""The benchmark: rows saved one by one, rows that fail, resuming, the table."""

import json
import pathlib
import re

import jax
from jax.errors import JaxRuntimeError
import pytest

from eqjax.perf import benchmark
from eqjax.perf.benchmark_options import BenchmarkOptions
from eqjax.perf.benchmark_parts import Measurement
from eqjax.perf.profiles import Kernel
from eqjax.perf.timing import Timing
from tests.sampling import small_models

REQUESTS = [BenchmarkOptions(batch_size=size, parts=("sampling", "decoder"), num_columns=4) for size in (1, 64)]


@pytest.fixture(name="fake")
def _fake(monkeypatch):
    """Measuring, replaced: the (batch size, part) of all calls, and a function to do at one of them."""
    calls, actions = [], {}

    def measure_part(options, part, model):
        calls.append((options.batch_size, part))
        assert model is small_models.local_model()
        if action := actions.get(calls[-1]):
            action()
        kernels = tuple(Kernel(f"kernel {i}", i + 1, 1e-3, 0.5) for i in range(options.num_kernels))
        return Measurement(part, 8e9, 5e6 if part == "sampling" else None, Timing(2.0, 3.0, 7_000_000, kernels))

    made = []
    monkeypatch.setattr(benchmark, "measure_part", measure_part)
    monkeypatch.setattr(benchmark, "matmul_peak", lambda dtype, _: {"float32": 1e12, "bfloat16": 4e12}[dtype])
    monkeypatch.setattr(benchmark, "make_model", lambda config, *_: made.append(config) or small_models.local_model())
    return calls, actions, made


def read(path):
    """Returns the rows of a file."""
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))["rows"]


def fail(kind, text):
    def action():
        raise kind(text)

    return action


def test_rows_have_their_options_and_figures(fake, tmp_path):
    output = tmp_path / "b.json"
    results = benchmark.run_benchmark(REQUESTS, output=str(output))
    assert json.loads(output.read_text()) == results
    assert [(row["batch_size"], row["part"]) for row in results["rows"]] == fake[0]
    row = results["rows"][2]
    assert (row["config"], row["batch_size"], row["part"], row["guidance_scale"]) == ("S", 64, "sampling", 7.0)
    assert row["seconds"] == 2 and row["images_per_second"] == 32 and row["seconds_per_column"] == 0.5
    assert row["tflops"] == 0.004 and row["fraction_of_peak"] == 0.004 and row["temporary_megabytes"] == 7
    assert row["gigabytes"] == 0.005 and "gigabytes" not in results["rows"][3]
    assert fake[2] == ["S"]  # Made once for all rows.


def test_the_file_is_whole_after_every_row(fake, tmp_path):
    output, lengths = tmp_path / "b.json", []
    for key in [(1, "sampling"), (1, "decoder"), (64, "sampling"), (64, "decoder")]:
        fake[1][key] = lambda: lengths.append(len(json.loads(output.read_text())["rows"]))
    benchmark.run_benchmark(REQUESTS, output=str(output))
    assert lengths == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (JaxRuntimeError, "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2147483648 bytes.",
         r"out of memory of the device with batch_size=64 \(2 GiB were asked for at once\): lower batch_size"),
        (ValueError, "no such solver\nmore", "no such solver$"),
        (AssertionError, "", "AssertionError"),
    ],
)  # fmt: skip
def test_a_row_that_fails_has_a_sentence_and_the_next_follows(fake, kind, text, expected):
    fake[1][64, "sampling"] = fail(kind, text)
    rows = benchmark.run_benchmark(REQUESTS)["rows"]
    assert ["error" in row for row in rows] == [False, False, True, False]
    assert re.match(expected, rows[2]["error"]) and "seconds" not in rows[2]


def test_an_interrupt_is_no_row(fake, tmp_path):
    output = tmp_path / "b.json"
    fake[1][64, "sampling"] = fail(KeyboardInterrupt, "")
    with pytest.raises(KeyboardInterrupt):
        benchmark.run_benchmark(REQUESTS, output=str(output))
    assert len(json.loads(output.read_text())["rows"]) == 2


def test_resuming_measures_what_is_missing_or_failed(fake, tmp_path):
    output = str(tmp_path / "b.json")
    fake[1][1, "decoder"] = fail(ValueError, "broken")
    benchmark.run_benchmark(REQUESTS[:1], output=output)
    fake[0].clear()
    fake[1].clear()
    rows = benchmark.run_benchmark(REQUESTS, output=output, resume=True)["rows"]
    assert fake[0] == [(1, "decoder"), (64, "sampling"), (64, "decoder")]
    assert len(rows) == 4 and not any("error" in row for row in rows)
    fake[0].clear()
    assert benchmark.run_benchmark(REQUESTS, output=output, resume=True)["rows"] == rows and not fake[0]
    benchmark.run_benchmark(REQUESTS[:1], output=output)  # Without resume, everything.
    assert len(fake[0]) == 2 and len(read(output)) == 2


def test_an_interrupted_resume_keeps_the_rows_that_it_has_not_reached(fake, tmp_path):
    output = str(tmp_path / "b.json")
    benchmark.run_benchmark(REQUESTS[1:], output=output)
    fake[1][1, "decoder"] = fail(KeyboardInterrupt, "")
    with pytest.raises(KeyboardInterrupt):
        benchmark.run_benchmark(REQUESTS, output=output, resume=True)
    rows = read(output)
    assert [(row["batch_size"], row["part"]) for row in rows] == [(1, "sampling"), (64, "sampling"), (64, "decoder")]


@pytest.mark.parametrize("changes", [dict(repeats=9), dict(precision="tf32"), dict(fields=("generator.depth=2",))])
def test_rows_of_other_options_are_not_taken_over(fake, tmp_path, changes):
    output = str(tmp_path / "b.json")
    benchmark.run_benchmark([BenchmarkOptions(parts=("sampling",))], output=output)
    fake[0].clear()
    benchmark.run_benchmark([BenchmarkOptions(parts=("sampling",), **changes)], output=output, resume=True)
    assert len(fake[0]) == 1


def test_rows_of_another_machine_are_not_taken_over(fake, tmp_path, caplog):
    output = tmp_path / "b.json"
    results = benchmark.run_benchmark(REQUESTS[:1], output=str(output))
    output.write_text(json.dumps({**results, "device": "NVIDIA H100"}))
    fake[0].clear()
    benchmark.run_benchmark(REQUESTS[:1], output=str(output), resume=True)
    assert len(fake[0]) == 2 and "was measured on NVIDIA H100" in caplog.text
    output.write_text("[]")
    with pytest.raises(ValueError, match="expected an object"):
        benchmark.run_benchmark(REQUESTS[:1], output=str(output), resume=True)
    output.write_text('{"rows": 3}')
    with pytest.raises(ValueError, match="holds no rows of a benchmark"):
        benchmark.run_benchmark(REQUESTS[:1], output=str(output), resume=True)


def test_after_the_time_limit_nothing_is_started(fake, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(benchmark.time, "monotonic", lambda: now[0])
    fake[1][1, "decoder"] = lambda: now.__setitem__(0, 100.0)
    rows = benchmark.run_benchmark(REQUESTS, time_limit=60.0)["rows"]
    assert fake[0] == [(1, "sampling"), (1, "decoder")]
    assert [row.get("error") for row in rows] == [None, None, *["not started, as 60 s were over"] * 2]


def test_wrong_options_are_refused_before_anything_is_measured(fake, tmp_path):
    wrong = [*REQUESTS, BenchmarkOptions(kind="flying")]
    with pytest.raises(ValueError, match="'flying' is not one of"):
        benchmark.run_benchmark(wrong, output=str(tmp_path / "b.json"))
    assert not fake[0] and not (tmp_path / "b.json").exists()


def test_nothing_but_failures_is_an_error(fake):
    fake[1][1, "sampling"] = fake[1][1, "decoder"] = fail(ValueError, "no such thing")
    with pytest.raises(ValueError, match="nothing could be measured: no such thing"):
        benchmark.run_benchmark(REQUESTS[:1])


def test_the_table_has_what_differs_and_the_kernels(fake):
    fake[1][64, "decoder"] = fail(MemoryError, "")
    requests = [BenchmarkOptions(batch_size=size, parts=("sampling", "decoder"), num_kernels=2) for size in (1, 64)]
    text = benchmark.format_results(benchmark.run_benchmark(requests))
    line, _, header, *_ = text.splitlines()
    assert line.startswith("device=cpu jax=") and "config=S" in line and "batch_size" not in line
    assert header.split("|")[1].strip() == "batch_size" and "images_per_second" in header and "error" in header
    assert text.count("| kernel 1 ") == 3 and "| kernel 1 | 2     | 1.00 ms | 50.0 %" in text
    assert "sampling of S, batch 64, float32, sampling, longest kernels of a call:" in text


@pytest.mark.slow
def test_a_real_row_is_consistent_with_itself():
    options = BenchmarkOptions(config="photos", num_columns=2, parts=("sampling",), repeats=1, num_kernels=3)
    (row,) = benchmark.run_benchmark([options])["rows"]
    assert 0 < row["fraction_of_peak"] < 1 and len(row["kernels"]) == 3
    assert row["images_per_second"] * row["seconds"] == pytest.approx(1)
    assert jax.default_backend() == "cpu" and row["gflop"] > 0
