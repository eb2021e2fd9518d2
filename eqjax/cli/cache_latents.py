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

from absl import app, flags, logging
import jax
from ml_collections import config_flags

from eqjax.cli import runner
from eqjax.latent_cache import build
from eqjax.training import generator

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file of the generator's training.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the cache.")
_SPLIT = flags.DEFINE_enum("split", "train", ["train", "eval"], "Random crops, or the evaluation's.")
_CROPS = flags.DEFINE_integer("num_crops", 1, "Random crops per image.", 1)
_FLIPS = flags.DEFINE_bool("flips", True, "Encode every crop mirrored too.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float16"], "Of the stored means.")
_SHARD = flags.DEFINE_integer("shard_size", 1024, "Images per shard, the unit of what is lost when cut off.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Images per call of the encoder, every crop and flip counted.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the crops.", 0)
_INDEX = flags.DEFINE_integer("process_index", None, "This process; what the starter set, or 0, when not given.", 0)
_COUNT = flags.DEFINE_integer("process_count", None, "Processes; what the starter set, or 1, when not given.", 1)


def process_numbers():
    """(index, count) of this process: from the flags, else from what the starter set.

    Raises:
      ValueError: one of the two without the other, or numbers that make no sense.
    """
    given = (_INDEX.value, _COUNT.value)
    if (given[0] is None) != (given[1] is None):
        raise ValueError(f"give both or neither of --process_index={given[0]} and --process_count={given[1]}.")
    found = given if given[0] is not None else runner.process_numbers(os.environ)
    if found is None:
        # Only here are processes connected: a TPU slice's hosts know their numbers from JAX alone.
        runner.join_processes()
        found = jax.process_index(), jax.process_count()
    return found


def _stop(*_):
    logging.info("Asked to stop. Exit code %d. The same command makes the missing shards.", runner.EXIT_PREEMPTED)
    raise SystemExit(runner.EXIT_PREEMPTED)


def main(argv):
    """Makes this process's part of the cache."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; fields are set as --config.name=value")
    # Not joined: JAX lets none of the processes that it connects go before the others are done.
    runner.set_up(join=False)
    options = dict(split=_SPLIT.value, num_crops=_CROPS.value, flips=_FLIPS.value, dtype=_DTYPE.value)
    options |= dict(shard_size=_SHARD.value, seed=_SEED.value, batch_size=_BATCH.value)
    try:
        index, count = process_numbers()
        options |= dict(process_index=index, process_count=count, wait=jax.distributed.is_initialized())
        signal.signal(signal.SIGTERM, _stop)
        weights = generator.load_tokenizer(_CONFIG.value)
        if not build.build_cache(_OUTPUT.value, _CONFIG.value.data, weights, **options):
            logging.info("This process's shards are finished; other processes' are not yet.")
    except (ValueError, OSError) as error:
        logging.error("%s", error)
        raise SystemExit(1) from error


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "output"])
    app.run(main, flags_parser=runner.parse_flags)
