"""What the commands have in common: flags, logging, several processes, compiled programs kept on disk."""

import difflib
import logging as python_logging
import os
import re
import runpy

from absl import app, flags, logging
import jax
import ml_collections
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from eqjax.checkpoints import UnreadableError
from eqjax.training.fault_tolerance import Preempted

_CACHE = flags.DEFINE_string(
    "compilation_cache", os.path.join("~", ".cache", "eqjax", "xla"), "Folder of compiled programs; empty for none."
)

# Exit codes: 0 done, 1 an error that a restart would meet again, and this one (EX_TEMPFAIL of sysexits.h): the
# run was asked to stop and has saved; the same command continues it.
EXIT_PREEMPTED = 75

# Names under which starters say who is who: ours, and torchrun's.
_COORDINATES = (
    ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"),
    ("MASTER_ADDR", "WORLD_SIZE", "RANK"),
)


def set_up(join=True):
    """Logging to the terminal, the other processes of the run (unless not to `join`), compiled programs' folder."""
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_not_from_libraries)
    if join:
        join_processes()
    if _CACHE.value:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(_CACHE.value))


def process_numbers(environment):
    """Which process this is, for programs whose processes need not know each other.

    Args:
      environment: as `distributed_arguments`; the coordinator's address need not be set.

    Returns:
      (index, count), (0, 1) where nothing is set; None where JAX has to ask the platform.

    Raises:
      ValueError: only one of the two variables is set, or numbers that make no sense.
    """
    for _, *names in _COORDINATES:
        count, index = (environment.get(name) for name in names)
        if count is None and index is None:
            continue
        if count is None or index is None:
            raise ValueError(f"{names[count is not None]} not set, but {names[count is None]} is; set both.")
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise ValueError(f"{names[1]}={index} must be a number below {names[0]}={count}.")
        return int(index), int(count)
    return None if environment.get("EQJAX_DISTRIBUTED") == "auto" else (0, 1)


def distributed_arguments(environment):
    """What jax.distributed.initialize is called with.

    Args:
      environment: a mapping such as os.environ. COORDINATOR_ADDRESS (host:port), NUM_PROCESSES and
        PROCESS_ID; or as torchrun sets them: MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK, and
        LOCAL_RANK where LOCAL_WORLD_SIZE is above 1; or
        EQJAX_DISTRIBUTED=auto, for clusters that JAX recognizes itself (TPU pods, SLURM, Open MPI).

    Returns:
      A dict of arguments, empty for automatic recognition; None for a single process.

    Raises:
      ValueError: only a part of the variables is set, or numbers that make no sense.
    """
    numbers = process_numbers(environment)
    if numbers is None:
        return {}
    index, count = numbers
    if count == 1:
        return None
    names = next(names for names in _COORDINATES if names[1] in environment)
    address = environment.get(names[0])
    if address is None:
        raise ValueError(f"{names[0]} not set, but the others of {', '.join(names)} are; set all three.")
    if ":" not in address:
        # At MASTER_PORT itself torchrun's agent listens.
        address = f"{address}:{int(environment.get('MASTER_PORT', '29500')) + 1}"
    arguments = dict(coordinator_address=address, num_processes=count, process_id=index)
    if environment.get("LOCAL_WORLD_SIZE", "1") != "1" and "LOCAL_RANK" in environment:
        # Several processes on a machine: one accelerator each, as torchrun's programs take them.
        arguments["local_device_ids"] = [int(environment["LOCAL_RANK"])]
    return arguments


def join_processes():
    """Connects the processes of a run, where `distributed_arguments` finds that there are several."""
    arguments = distributed_arguments(os.environ)
    if arguments is None:
        return
    jax.distributed.initialize(**arguments)
    logging.info("Process %d of %d.", jax.process_index(), jax.process_count())


def _not_from_libraries(record):
    """Keeps Orbax's many INFO lines per checkpoint, and JAX's about absent platforms, out of the log."""
    foreign = "orbax" in record.pathname or "xla_bridge" in record.pathname
    return record.levelno > python_logging.INFO or not foreign


def finish(run):
    """Sets up, calls `run()`, and ends the process with the exit code that says how it went.

    Raises:
      SystemExit: of `EXIT_PREEMPTED`, or of 1 with the error as one message.
    """
    try:
        set_up()
        logging.info("Devices: %s", jax.devices())
        run()
    except Preempted as stopped:
        logging.info("%s Exit code %d; the same command continues it.", stopped, EXIT_PREEMPTED)
        raise SystemExit(EXIT_PREEMPTED) from stopped
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError, UnreadableError) as error:
        # These say what is wrong and what to do; a stack of frames would hide it.
        logging.error("%s", error)
        raise SystemExit(1) from error


def parse_flags(argv):
    """Parses a command line with a `--config`, as `flags_parser` of app.run.

    Raises:
      SystemExit: of 1 with what is wrong with the configuration as one message, where ml_collections has a stack.
    """
    try:
        check_fields(argv)
    except (ValueError, OSError) as error:
        logging.error("%s", error)
        raise SystemExit(1) from error
    return app.parse_flags_with_usage(argv)


def check_fields(argv):
    """Compares the fields that a command line sets by name with those of its configuration.

    Raises:
      FileNotFoundError: there is no such configuration file.
      ValueError: an unknown field, named with the nearest one that there is; or an unknown variant.
    """
    files = [found[1] or following for argument, following in zip(argv, [*argv[1:], ""], strict=True)
             if (found := re.fullmatch("--?config(?:=(.*))?", argument))]  # fmt: skip
    if not files:
        return
    path, *variant = files[-1].split(":", 1)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"--config={files[-1]}: there is no file {path}.")
    config = runpy.run_path(path)["get_config"](*variant)
    for field in (found[1] for argument in argv if (found := re.match(r"--?(?:no)?config\.([^=]+)", argument))):
        try:
            config_path.get_value(field, config)
        except (AttributeError, LookupError, TypeError) as error:
            nearest = difflib.get_close_matches(field, _names(config), 1, 0)[0]
            raise ValueError(
                f"--config.{field}: {path} has no such field; the nearest is --config.{nearest}."
            ) from error


def _names(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def train(train_and_evaluate):
    """Defines the flags of a training command and calls `train_and_evaluate(config, workdir)`."""
    config = config_flags.DEFINE_config_file("config", None, "Configuration file, with a variant after a colon.")
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, images, weights.")
    flags.mark_flags_as_required(["config", "workdir"])

    def main(argv):
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments {argv[1:]}; fields are set as --config.name=value")
        finish(lambda: train_and_evaluate(config.value, workdir.value))

    app.run(main, flags_parser=parse_flags)
