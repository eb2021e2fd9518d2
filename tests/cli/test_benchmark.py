"""The command's flags: what they become."""

from absl import flags

from eqjax.cli import benchmark
from eqjax.perf.benchmark import BenchmarkOptions
from eqjax.sampling.options import SamplingOptions


def parse(*arguments):
    values = flags.FlagValues()
    benchmark.define_flags(values)
    values(["benchmark", *arguments])
    return benchmark.options_from_flags(values)


def test_flags_without_arguments_are_the_default_options():
    assert parse() == BenchmarkOptions()


def test_every_flag_reaches_the_options():
    options = parse(
        "--config=L", "--batch_size=4", "--num_columns=8", "--dtype=bfloat16", "--guidance_scale=1",
        "--num_flow_steps=10", "--solver=heun", "--repeats=5",
    )  # fmt: skip
    sampling = SamplingOptions(guidance_scale=1.0, num_flow_steps=10, solver="heun")
    assert options == BenchmarkOptions(
        config="L", batch_size=4, num_columns=8, dtype="bfloat16", sampling=sampling, repeats=5
    )
