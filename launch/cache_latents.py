r"""Encodes a data set once, so that a generator trains without the encoder.

    python -m launch.cache_latents --config=configs/photos_generator.py --output=caches/photos --num_crops=4
    python -m launch.cache_latents --config=configs/photos_generator.py --output=caches/photos_eval --split=eval
    python -m launch.train_generator --config=configs/photos_generator.py --workdir=runs/generator \
        --config.data.source=latents --config.data.root=caches/photos --config.data.eval_root=caches/photos_eval

The configuration is that of the generator's training: its data and `tokenizer_weights` count. The same command makes
what is missing after it was cut off. On several machines start it on each with --process_index and --process_count
(or NUM_PROCESSES and PROCESS_ID in the environment): they need not see one another, only the same folder.
"""

import os

from absl import app, flags, logging
from ml_collections import config_flags

from eqjax.training import cache, generator
from launch import runner

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file of the generator's training.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the cache.")
_SPLIT = flags.DEFINE_enum("split", "train", ["train", "eval"], "Random crops, or the evaluation's.")
_CROPS = flags.DEFINE_integer("num_crops", 1, "Random crops per picture.", 1)
_FLIPS = flags.DEFINE_bool("flips", True, "Encode every crop mirrored too.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float16"], "Of the stored means.")
_SHARD = flags.DEFINE_integer("shard_size", 1024, "Pictures per shard, the unit of what is lost when cut off.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Pictures per call of the encoder, with all crops and flips.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the crops.", 0)
_INDEX = flags.DEFINE_integer("process_index", None, "This process; PROCESS_ID, or 0, when not given.", 0)
_COUNT = flags.DEFINE_integer("process_count", None, "Processes; NUM_PROCESSES, or 1, when not given.", 1)


def main(argv):
    """Makes this process's part of the cache."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; fields are set as --config.name=value")
    runner.set_up()
    index = int(os.environ.get("PROCESS_ID", 0)) if _INDEX.value is None else _INDEX.value
    count = int(os.environ.get("NUM_PROCESSES", 1)) if _COUNT.value is None else _COUNT.value
    options = dict(split=_SPLIT.value, num_crops=_CROPS.value, flips=_FLIPS.value, dtype=_DTYPE.value)
    options |= dict(shard_size=_SHARD.value, seed=_SEED.value, batch_size=_BATCH.value)
    options |= dict(process_index=index, process_count=count)
    try:
        weights = generator.load_tokenizer(_CONFIG.value)
        if not cache.build_cache(_OUTPUT.value, _CONFIG.value.data, weights, **options):
            logging.info("This process's shards are finished; other processes' are not yet.")
    except (ValueError, OSError) as error:
        logging.error("%s", error)
        raise SystemExit(1) from error


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "output"])
    app.run(main, flags_parser=runner.parse_flags)
