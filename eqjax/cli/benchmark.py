r"""Measures how fast this machine samples, decodes and trains, as a table and as JSON.

    eqjax benchmark sampling --config=S --num_columns=16 --output=outputs/benchmark.json
    eqjax benchmark decoding --config=L --batch_size=64 --dtype=bfloat16
    eqjax benchmark training --config=L --batch_size=64 --dtype=bfloat16  # From cached latents, and from images.
    eqjax benchmark training --config=photos_tokenizer --batch_size=16 --num_columns=4
    eqjax benchmark floor --config=L  # FLOPs and bytes; runs nothing.

Speeds are compared with the machine's peak for matrix products, which is measured in the same call.
"""

from typing import TYPE_CHECKING

from absl import flags

from eqjax.cli import command_line
from eqjax.cli.sampling_flags import define_sampling_flags, sampling_options
from eqjax.io import write_json

if TYPE_CHECKING:
    from eqjax.perf.benchmark import BenchmarkOptions


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with command_line.flag_group(values, "Model"):
        flags.DEFINE_string(
            "config", "S", "Published size (S, B, L, H), configuration with :variant, or model with weights.",
            flag_values=values,
        )  # fmt: skip
        flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.", flag_values=values)
    with command_line.flag_group(values, "Work"):
        flags.DEFINE_integer("batch_size", 1, "Images at once.", 1, flag_values=values)
        flags.DEFINE_integer("num_columns", 16, "Columns of an image.", 1, flag_values=values)
        flags.DEFINE_integer("repeats", 3, "Timed calls; the median counts.", 1, flag_values=values)
    with command_line.flag_group(values, "Sampling"):
        # Guided unless asked otherwise: that takes twice the work, whatever the scale.
        define_sampling_flags(values, guidance_scale=7.0)
    with command_line.flag_group(values, "Output"):
        flags.DEFINE_string("output", None, "JSON file to write the results to.", flag_values=values)


def benchmark_options(args: flags.FlagValues) -> "BenchmarkOptions":
    """Returns the options that the flags give.

    Raises:
      ValueError: a sampling option is out of its range.
    """
    from eqjax.perf.benchmark import BenchmarkOptions

    return BenchmarkOptions(
        config=args.config,
        batch_size=args.batch_size,
        num_columns=args.num_columns,
        dtype=args.dtype,
        sampling=sampling_options(args),
        repeats=args.repeats,
    )


def run(args: flags.FlagValues, words: list[str]) -> None:
    """Measures, prints the table and writes JSON.

    Args:
      args: the flags.
      words: the kind of work, one of `eqjax.perf.benchmark.KINDS`.

    Raises:
      ValueError: an unknown kind or configuration.
      FileNotFoundError: there are no such weights.
    """
    from eqjax.perf.benchmark import KINDS, format_results, run_benchmark

    if len(words) != 1:
        raise ValueError(f"name one kind of work to measure: {', '.join(KINDS)}; got {words}.")
    results = run_benchmark(words[0], benchmark_options(args))
    print(format_results(results))
    if args.output:
        write_json(args.output, results)
