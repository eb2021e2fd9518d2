r"""Encodes a data set once, so that a generator trains without the encoder.

    python -m eqjax.cli.cache_latents --config=configs/photos_generator.py --output=caches/photos --num_crops=4
    python -m eqjax.cli.cache_latents --config=configs/photos_generator.py --output=caches/photos_eval --split=eval
    python -m eqjax.cli.train_generator --config=configs/photos_generator.py --workdir=runs/generator \
        --config.data.source=latents --config.data.root=caches/photos --config.data.eval_root=caches/photos_eval

The configuration is that of the generator's training: its data and `tokenizer_weights` count. The same command makes
what is missing after it was cut off. Several processes share the shards: those of the starters in launch/README.md, or
any that are given --process_index and --process_count (or NUM_PROCESSES and PROCESS_ID in the environment). They need
not see one another, only the same folder, and each ends when its part is done, or on SIGTERM with code 75.
"""

import os
import signal

from absl import flags, logging
import jax

from eqjax.cli import processes, runner
from eqjax.latent_cache import build
from eqjax.training import generator


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with runner.flag_group(values, "Images"):
        runner.define_config(values, "Configuration of the generator's training.")
        flags.DEFINE_enum("split", "train", ["train", "eval"], "Random crops, or the evaluation's.", flag_values=values)
        flags.DEFINE_integer("num_crops", 1, "Random crops per image.", 1, flag_values=values)
        flags.DEFINE_bool("flips", True, "Encode every crop mirrored too.", flag_values=values)
        flags.DEFINE_integer("seed", 0, "Of the crops.", 0, flag_values=values)
    with runner.flag_group(values, "Work"):
        flags.DEFINE_integer("batch_size", 64, "Images per call of the encoder.", 1, flag_values=values)
        flags.DEFINE_integer("process_index", None, "This process; the starter's by default.", 0, flag_values=values)
        flags.DEFINE_integer("process_count", None, "Processes; the starter's by default.", 1, flag_values=values)
    with runner.flag_group(values, "Output"):
        flags.DEFINE_string("output", None, "Folder of the cache.", required=True, flag_values=values)
        flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float16"], "Of the stored means.", flag_values=values)
        flags.DEFINE_integer("shard_size", 1024, "Images per shard, saved as one file.", 1, flag_values=values)


def process_numbers(args: flags.FlagValues) -> tuple[int, int]:
    """(index, count) of this process: from the flags, else from what the starter set.

    Raises:
      ValueError: one of the two without the other, or numbers that make no sense.
    """
    given = (args.process_index, args.process_count)
    if (given[0] is None) != (given[1] is None):
        raise ValueError(f"give both or neither of --process_index={given[0]} and --process_count={given[1]}.")
    found = given if given[0] is not None else processes.process_numbers(os.environ)
    if found is None:
        # Only here are processes connected: a TPU slice's hosts know their numbers from JAX alone.
        processes.join_processes()
        found = jax.process_index(), jax.process_count()
    return found


def _stop(*_):
    logging.info("Asked to stop. Exit code %d; the same command makes what is missing.", runner.EXIT_PREEMPTED)
    raise SystemExit(runner.EXIT_PREEMPTED)


def run(args: flags.FlagValues) -> None:
    """Makes this process's part of the cache."""
    # The shell has not joined the processes: JAX lets none of those it connects go before the others are done.
    options = dict(split=args.split, num_crops=args.num_crops, flips=args.flips, dtype=args.dtype)
    options |= dict(shard_size=args.shard_size, seed=args.seed, batch_size=args.batch_size)
    index, count = process_numbers(args)
    options |= dict(process_index=index, process_count=count, wait=jax.distributed.is_initialized())
    signal.signal(signal.SIGTERM, _stop)
    weights = generator.load_tokenizer(args.config)
    if not build.build_cache(args.output, args.config.data, weights, **options):
        logging.info("This process's shards are finished; other processes' are not yet.")
