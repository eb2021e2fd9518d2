"""What the commands have in common: flags, logging, compiled programs kept on disk."""

import logging as python_logging
import os

from absl import app, flags, logging
import jax
from ml_collections import config_flags

_CACHE = flags.DEFINE_string(
    "compilation_cache", os.path.join("~", ".cache", "eqjax", "xla"), "Folder of compiled programs; empty for none."
)


def set_up():
    """Logging to the terminal, and the folder of compiled programs."""
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_not_from_libraries)
    if _CACHE.value:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(_CACHE.value))


def _not_from_libraries(record):
    """Keeps Orbax's many INFO lines per checkpoint, and JAX's about absent platforms, out of the log."""
    foreign = "orbax" in record.pathname or "xla_bridge" in record.pathname
    return record.levelno > python_logging.INFO or not foreign


def train(train_and_evaluate):
    """Defines the flags of a training command and calls `train_and_evaluate(config, workdir)`."""
    config = config_flags.DEFINE_config_file("config", None, "Configuration file, with a variant after a colon.")
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, pictures, weights.")
    flags.mark_flags_as_required(["config", "workdir"])

    def main(argv):
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments {argv[1:]}; fields are set as --config.name=value")
        set_up()
        logging.info("Devices: %s", jax.devices())
        try:
            train_and_evaluate(config.value, workdir.value)
        except (ValueError, FileNotFoundError, FloatingPointError) as error:
            # These say what is wrong and what to do; a stack of frames would hide it.
            logging.error("%s", error)
            raise SystemExit(1) from error

    app.run(main)
