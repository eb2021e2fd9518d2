r"""Measures how fast this machine samples, decodes and trains, beside what it could do: a table, and JSON.

    eqjax benchmark sampling --config=S --num_columns=16 --output=outputs/benchmark.json
    eqjax benchmark decoding --config=L --batch_size=64 --dtype=bfloat16
    eqjax benchmark training --config=L --batch_size=64 --dtype=bfloat16  # From cached latents, and from images.
    eqjax benchmark training --config=configs/photos_tokenizer.py --batch_size=16 --num_columns=4
    eqjax benchmark floor --config=L  # FLOPs and bytes; runs nothing.

`--config` is a published size (S, B, L, H), a config file, or a model with weights ("photos", a weights file).
"""

from collections.abc import Sequence
import sys
from typing import TYPE_CHECKING

from absl import flags

from eqjax.cli.runner import flag_group
from eqjax.cli.sampling_flags import define_sampling_flags, sampling_options
from eqjax.io import write_json

if TYPE_CHECKING:
    from eqjax.perf.benchmark import BenchmarkOptions


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "What"):
        flags.DEFINE_string("config", "S", "Published size, config file, or model with weights.", flag_values=values)
        flags.DEFINE_integer("batch_size", 1, "Images at once.", 1, flag_values=values)
        flags.DEFINE_integer("num_columns", 16, "Columns of an image.", 1, flag_values=values)
        flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.", flag_values=values)
        flags.DEFINE_integer("repeats", 3, "Timed calls; the median counts.", 1, flag_values=values)
    with flag_group(values, "How"):
        define_sampling_flags(values, guidance_scale=7.0)
    with flag_group(values, "Output"):
        flags.DEFINE_string("output", None, "JSON file to write the results to.", flag_values=values)


def options_from_flags(args: flags.FlagValues) -> "BenchmarkOptions":
    """Returns the options of a benchmark, from parsed flags."""
    from eqjax.perf.benchmark import BenchmarkOptions

    return BenchmarkOptions(
        config=args.config,
        batch_size=args.batch_size,
        num_columns=args.num_columns,
        dtype=args.dtype,
        sampling=sampling_options(args),
        repeats=args.repeats,
    )


def run(args: flags.FlagValues, words: Sequence[str]) -> None:
    """Measures, prints the table, writes JSON.

    Raises:
      ValueError: `words` is not one kind of benchmark, or the configuration does not fit it.
    """
    from eqjax.perf.benchmark import KINDS, format_results, run_benchmark

    if len(words) != 1:
        raise ValueError(f"name one kind of {KINDS} to measure; got {list(words)}.")
    results = run_benchmark(words[0], options_from_flags(args))
    print(format_results(results))
    if args.output:
        write_json(args.output, results)
    sys.stdout.flush()
