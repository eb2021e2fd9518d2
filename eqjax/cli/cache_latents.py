r"""Encodes a data set once, so that a generator trains without the encoder.

    eqjax cache-latents --config=photos_generator --output=caches/photos --num_crops=4
    eqjax cache-latents --config=photos_generator --output=caches/photos_eval --split=eval
    eqjax train-generator --config=photos_generator --workdir=runs/generator \
        --config.data.source=latents --config.data.root=caches/photos --config.data.eval_root=caches/photos_eval

The configuration is that of the generator's training; its `data` and `tokenizer_weights` are used. If the command is
interrupted, the same command makes the missing shards. Several processes divide the shards: those that a starter
starts (see launch/README.md), or any with --process_index and --process_count (or PROCESS_ID and NUM_PROCESSES in the
environment). They share only the output folder. Each ends when its shards are complete, or on SIGTERM
with exit code 75.
"""

import os
import signal

from absl import flags, logging

from eqjax.cli import command_line, processes, runner
from eqjax.progress import announced


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with command_line.flag_group(values, "Images"):
        command_line.define_config(values, "Configuration of the generator's training.")
        flags.DEFINE_enum(
            "split",
            "train",
            ["train", "eval"],
            "Crops for training or for evaluation.",
            flag_values=values,
        )
        flags.DEFINE_integer("num_crops", 1, "Random crops per image.", 1, flag_values=values)
        flags.DEFINE_bool("flips", True, "Encode every crop mirrored too.", flag_values=values)
        flags.DEFINE_integer("seed", 0, "Seed of the random crops.", 0, flag_values=values)
    with command_line.flag_group(values, "Work"):
        flags.DEFINE_integer(
            "batch_size", 64, "Images per call of the encoder, counting crops and flips.", 1, flag_values=values
        )
        flags.DEFINE_integer("process_index", None, "This process; default: as started.", 0, flag_values=values)
        flags.DEFINE_integer("process_count", None, "Number of processes; default: as started.", 1, flag_values=values)
    with command_line.flag_group(values, "Output"):
        command_line.define_folder(values, None, "Folder of the cache.", required=True)
        flags.DEFINE_enum(
            "dtype", "bfloat16", ["bfloat16", "float16"], "Dtype of the stored latents.", flag_values=values
        )
        flags.DEFINE_integer("shard_size", 1024, "Images per shard, a file.", 1, flag_values=values)


def find_process(args: flags.FlagValues) -> tuple[int, int]:
    """Returns (index, count) of this process, from the flags or from the starter.

    Raises:
      ValueError: only one of the two flags is given, or the starter's numbers are invalid.
    """
    if (args.process_index is None) != (args.process_count is None):
        raise ValueError(
            f"Give both or neither of --process_index={args.process_index} and --process_count={args.process_count}."
        )
    if args.process_index is not None:
        return args.process_index, args.process_count
    found = processes.process_numbers(os.environ)
    if found is None:
        import jax

        # Processes are connected only here: the hosts of a TPU slice learn their numbers from JAX alone.
        processes.join_processes()
        found = jax.process_index(), jax.process_count()
    return found


def run(args: flags.FlagValues) -> None:
    """Makes this process's shards of the cache."""
    import jax

    with announced("Loading the libraries", patience=2.0):
        from eqjax.latent_cache.build import build_cache
        from eqjax.training import generator
        from eqjax.training.config import check_config

    check_config(args.config, "generator")
    # The shell has not connected the processes, because JAX ends none of them before all are done.
    index, count = find_process(args)
    stop = _Stop()
    signal.signal(signal.SIGTERM, stop)
    complete = build_cache(
        args.output,
        args.config.data,
        generator.load_tokenizer(args.config),
        split=args.split,
        num_crops=args.num_crops,
        flips=args.flips,
        dtype=args.dtype,
        shard_size=args.shard_size,
        seed=args.seed,
        batch_size=args.batch_size,
        process_index=index,
        process_count=count,
        wait=jax.distributed.is_initialized(),
        precision=args.config.precision,
        between_calls=stop.check,
    )
    if not complete:
        logging.info("The shards of this process are complete; those of other processes are not yet.")


class _Stop:
    """Ends the command at SIGTERM: at once, or before the next call of the encoder.

    Compiled code that calls Python, as JAX does while it traces, may drop the exception that a handler raises.
    """

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, *_: object) -> None:
        logging.info("Asked to stop. Exit code %d. The same command makes the missing shards.", runner.EXIT_PREEMPTED)
        self._asked = True
        self.check()

    def check(self) -> None:
        """Raises SystemExit once the signal has come."""
        if self._asked:
            raise SystemExit(runner.EXIT_PREEMPTED)
