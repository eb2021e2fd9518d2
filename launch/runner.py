"""What the training commands have in common: flags, logging, one call."""

import logging as python_logging
import os

from absl import app, flags, logging
import jax
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, with a variant after a colon.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, pictures, weights.")
_CACHE = flags.DEFINE_string(
    "compilation_cache", os.path.join("~", ".cache", "eqjax", "xla"), "Folder of compiled programs; empty for none."
)


def _not_orbax(record):
    """Keeps Orbax's many INFO lines per checkpoint out of the log."""
    return record.levelno > python_logging.INFO or "orbax" not in record.pathname


def main(train_and_evaluate):
    """Parses flags and calls `train_and_evaluate(config, workdir)`."""
    flags.mark_flags_as_required(["config", "workdir"])

    def run(argv):
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments {argv[1:]}; fields are set as --config.name=value")
        logging.set_verbosity(logging.INFO)
        logging.get_absl_handler().addFilter(_not_orbax)
        if _CACHE.value:
            jax.config.update("jax_compilation_cache_dir", os.path.expanduser(_CACHE.value))
        logging.info("Devices: %s", jax.devices())
        try:
            train_and_evaluate(_CONFIG.value, _WORKDIR.value)
        except (ValueError, FileNotFoundError, FloatingPointError) as error:
            logging.error("%s", error)
            raise SystemExit(1) from error

    app.run(run)
