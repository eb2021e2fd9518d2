r"""Measures how fast this machine samples, decodes and trains, beside what it could do: a table, and JSON.

    eqjax benchmark sampling --config=S --num_columns=16 --output=outputs/benchmark.json
    eqjax benchmark decoding --config=L --batch_size=64 --dtype=bfloat16
    eqjax benchmark training --config=L --batch_size=64 --dtype=bfloat16  # From cached latents, and from images.
    eqjax benchmark training --config=configs/photos_tokenizer.py --batch_size=16 --num_columns=4
    eqjax benchmark floor --config=L  # FLOPs and bytes; runs nothing.

`--config` is a published size (S, B, L, H), a config file, or a model with weights ("photos", a weights file).
"""

import sys

from absl import app, flags, logging

from eqjax import flow
from eqjax.cli import runner
from eqjax.io import write_json
from eqjax.perf.benchmark import KINDS, BenchmarkOptions, format_results, run_benchmark
from eqjax.sampling.options import SamplingOptions


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("config", "S", "Published size, config file, or model with weights.", flag_values=values)
    flags.DEFINE_integer("batch_size", 1, "Images at once.", 1, flag_values=values)
    flags.DEFINE_integer("num_columns", 16, "Columns of an image.", 1, flag_values=values)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.", flag_values=values)
    flags.DEFINE_float("guidance_scale", 7.0, "Guidance scale; 1 takes half the work.", 0.0, flag_values=values)
    flags.DEFINE_integer("num_flow_steps", 100, "Solver steps per column.", 1, flag_values=values)
    flags.DEFINE_enum("solver", "euler", flow.SOLVERS, "Solver of the flow.", flag_values=values)
    flags.DEFINE_integer("repeats", 3, "Timed calls; the median counts.", 1, flag_values=values)
    flags.DEFINE_string("output", None, "JSON file to write the results to.", flag_values=values)


def options_from_flags(values: flags.FlagValues = flags.FLAGS) -> BenchmarkOptions:
    """Returns what the flags ask for."""
    return BenchmarkOptions(
        config=values.config,
        batch_size=values.batch_size,
        num_columns=values.num_columns,
        dtype=values.dtype,
        sampling=SamplingOptions(
            guidance_scale=values.guidance_scale, num_flow_steps=values.num_flow_steps, solver=values.solver
        ),
        repeats=values.repeats,
    )


def main(argv: list[str]) -> None:
    """Measures, prints the table, writes JSON."""
    runner.set_up()
    try:
        if len(argv) != 2:
            raise ValueError(f"name one kind of {KINDS} to measure; got {argv[1:]}.")
        results = run_benchmark(argv[1], options_from_flags())
    except (ValueError, FileNotFoundError) as error:
        logging.error("%s", error)
        raise SystemExit(1) from error
    print(format_results(results))
    if flags.FLAGS.output:
        write_json(flags.FLAGS.output, results)
    sys.stdout.flush()


if __name__ == "__main__":
    define_flags()
    app.run(main)
