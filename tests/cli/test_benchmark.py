"""The benchmark command: its options from flags, and rejected arguments."""

from absl import flags
import pytest

from eqjax.cli import benchmark
from eqjax.perf.benchmark import BenchmarkOptions
from eqjax.sampling.options import SamplingOptions


def parse(*arguments):
    values = flags.FlagValues()
    benchmark.define_flags(values)
    values(["benchmark", *arguments])
    return values


def test_no_flags_are_the_default_options():
    assert benchmark.benchmark_options(parse()) == BenchmarkOptions()


def test_every_flag_reaches_the_options():
    args = parse(
        "--config=L", "--batch_size=4", "--num_columns=8", "--dtype=bfloat16", "--guidance_scale=1",
        "--num_flow_steps=10", "--solver=heun", "--repeats=5",
    )  # fmt: skip
    sampling = SamplingOptions(guidance_scale=1.0, num_flow_steps=10, solver="heun")
    assert benchmark.benchmark_options(args) == BenchmarkOptions(
        config="L", batch_size=4, num_columns=8, dtype="bfloat16", sampling=sampling, repeats=5
    )


@pytest.mark.parametrize("words", [[], ["sampling", "training"]])
def test_one_kind_of_work_must_be_named(words):
    with pytest.raises(ValueError, match="name one kind of work to measure: sampling, decoding, training, floor"):
        benchmark.run(parse(), words)
