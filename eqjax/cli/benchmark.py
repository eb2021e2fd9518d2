r"""Measures how fast this machine samples, decodes and trains, as a table and as JSON.

    eqjax benchmark --quick --output=outputs/quick.json  # At most 8 minutes on a GPU.
    eqjax benchmark sampling --config=S,L --batch_size=1,64 --dtype=bfloat16 --output=outputs/benchmark.json
    eqjax benchmark decoding --config=L --batch_size=64 --dtype=bfloat16 --profile
    eqjax benchmark training --config=L --batch_size=64 --dtype=bfloat16 --config.generator.remat=projections
    eqjax benchmark training --config=imagenet_tokenizer --batch_size=12 --precision=tf32
    eqjax benchmark floor --config=L  # FLOPs and bytes; runs nothing.

Lists are measured in all combinations. The file is written again after every row; a row that does not fit into memory
has a sentence in the place of figures, and the others follow. Speeds are compared with the machine's peak for matrix
products, which is measured in the same call. A tokenizer's step is measured with random frozen networks.
"""

from collections.abc import Sequence
import dataclasses
import os
from typing import TYPE_CHECKING

from absl import flags

from eqjax import config_files
from eqjax.cli import command_line
from eqjax.cli.sampling_flags import define_sampling_flags, parse_numbers, sampling_options
from eqjax.module_fields import PRECISION
from eqjax.published import GENERATOR_SIZES

if TYPE_CHECKING:
    from eqjax.perf.benchmark_options import BenchmarkOptions

_DTYPES = ("float32", "bfloat16")
_NUM_KERNELS = 10
# Flags that --quick leaves open.
_QUICK_TAKES = ("output", "resume", "profile", "quick", "time_limit", "compilation_cache")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with command_line.flag_group(values, "Model"):
        flags.DEFINE_list(
            "config", ["S"], "Sizes (S, B, L, H), configurations with :variant, models with weights.",
            flag_values=values,
        )  # fmt: skip
        command_line.define_fields(values)
        flags.DEFINE_list("dtype", ["float32"], "Compute dtypes: float32, bfloat16.", flag_values=values)
        flags.DEFINE_enum(
            "precision", "highest", list(PRECISION.choices), "Of float32 products; highest is exact.",
            flag_values=values,
        )  # fmt: skip
    with command_line.flag_group(values, "Work"):
        flags.DEFINE_list("batch_size", ["1"], "Images at once; or several numbers.", flag_values=values)
        flags.DEFINE_integer("num_columns", 16, "Columns of an image.", 1, flag_values=values)
        flags.DEFINE_integer("repeats", 3, "Timed calls; the median counts.", 1, flag_values=values)
        flags.DEFINE_list("parts", [], "Parts of the work, such as sampling,decoder; all.", flag_values=values)
        flags.DEFINE_bool(
            "quick", False, "A fixed set of size L instead: at most 8 minutes on a GPU.",
            flag_values=values,
        )  # fmt: skip
        flags.DEFINE_float(
            "time_limit", None, "Minutes after which no row is started; 6 with --quick.", 0.0, flag_values=values
        )
    with command_line.flag_group(values, "Sampling"):
        # Guided unless asked otherwise: that takes twice the work, whatever the scale.
        define_sampling_flags(values, guidance_scale=7.0)
    with command_line.flag_group(values, "Output"):
        flags.DEFINE_bool(
            "profile", False, f"List the {_NUM_KERNELS} longest kernels of every row.",
            flag_values=values,
        )  # fmt: skip
        flags.DEFINE_string("output", None, "JSON file of the results, written after every row.", flag_values=values)
        flags.DEFINE_bool(
            "resume", False, "Keep the rows of --output, and measure the others.",
            flag_values=values,
        )  # fmt: skip


def benchmark_requests(args: flags.FlagValues, words: list[str]) -> "list[BenchmarkOptions]":
    """Returns what the flags and the words ask for: all combinations of kinds, configurations, dtypes and batch sizes.

    Args:
      args: the flags.
      words: kinds of work, of `eqjax.perf.benchmark_options.KINDS`.

    Raises:
      ValueError: no word, or an unknown dtype or number; a sampling option is out of its range.
    """
    from eqjax.perf.benchmark_options import KINDS, BenchmarkOptions, combinations

    if not words:
        raise ValueError(f"name the work to measure: {', '.join(KINDS)}; or give --quick.")
    if unknown := [dtype for dtype in args.dtype if dtype not in _DTYPES]:
        raise ValueError(f"--dtype={','.join(args.dtype)}: {unknown[0]!r} is not one of {', '.join(_DTYPES)}.")
    sizes = parse_numbers("batch_size", args.batch_size, int, "an integer ≥ 1")
    if min(sizes) < 1 or not args.config or not args.dtype:
        raise ValueError("--batch_size, --config and --dtype need values, and batches at least one image.")
    options = BenchmarkOptions(
        fields=tuple(args[command_line.FIELDS].value or ()),
        num_columns=args.num_columns,
        precision=args.precision,
        sampling=sampling_options(args),
        repeats=args.repeats,
        num_kernels=_NUM_KERNELS * args.profile,
        parts=tuple(args.parts),
    )
    return combinations(words, join_variants(args.config), args.dtype, sizes, options)


def join_variants(items: Sequence[str]) -> list[str]:
    """Returns the configurations of a list that was split at its commas, some of which are those of a variant.

    Args:
      items: the parts. Behind one with a colon, whatever is not a size, a configuration or a file is of its variant.

    Example:
      >>> join_variants(["imagenet_tokenizer:stage2", "dtype=bfloat16", "S", "L"])
      ['imagenet_tokenizer:stage2,dtype=bfloat16', 'S', 'L']
    """
    known, joined = {*GENERATOR_SIZES, *config_files.names()}, list[str]()
    for item in items:
        if joined and ":" in joined[-1] and ":" not in item and item not in known and not os.path.exists(item):
            joined[-1] += f",{item}"
        else:
            joined.append(item)
    return joined


def quick_requests(args: flags.FlagValues, words: list[str]) -> "list[BenchmarkOptions]":
    """Returns the set of --quick for this machine.

    Raises:
      ValueError: other flags or words are given, which it does not take.
    """
    import jax

    from eqjax.perf.benchmark_options import quick

    given = [f"--{name}" for name in args if args[name].present and name not in _QUICK_TAKES]
    if given or words:
        raise ValueError(
            f"--quick measures a fixed set, so {', '.join([*words, *given])} would have no effect: leave it or --quick "
            "out."
        )
    found = quick(jax.default_backend())
    return [dataclasses.replace(request, num_kernels=_NUM_KERNELS * args.profile) for request in found]


def run(args: flags.FlagValues, words: list[str]) -> None:
    """Measures, prints the table and writes JSON.

    Args:
      args: the flags.
      words: kinds of work, of `eqjax.perf.benchmark_options.KINDS`.

    Raises:
      ValueError: an unknown kind, part, configuration or field; nothing could be measured.
      FileNotFoundError: there are no such weights.
    """
    from eqjax.perf.benchmark import format_results, run_benchmark
    from eqjax.perf.benchmark_options import QUICK_SECONDS

    if args.resume and not args.output:
        raise ValueError("--resume continues the file of --output; give one.")
    requests = quick_requests(args, words) if args.quick else benchmark_requests(args, words)
    limit = QUICK_SECONDS if args.quick else None
    if args.time_limit is not None:
        limit = 60 * args.time_limit
    results = run_benchmark(requests, output=args.output, resume=args.resume, time_limit=limit)
    print(format_results(results))
