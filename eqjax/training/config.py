"""The part of a configuration that both stages share: its fields, what is wrong with them, what they come to."""

import dataclasses
import types

import ml_collections
from ml_collections import config_dict

from eqjax import pretrained
from eqjax.data import make_source


def common_config():
    """The loop's part of a configuration."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 256  # Global: all processes and devices together.
    config.total_steps = 100_000
    config.total_epochs = 0.0  # Passes over the training images, in place of total_steps; 0: total_steps counts.
    config.mesh = "data:-1"  # Axes data, fsdp, tensor; see eqjax.sharding.
    config.log_every = 100  # Steps; likewise below. 0 turns a thing off.
    config.eval_every = 1000
    config.image_every = 1000
    config.checkpoint_every = 1000
    config.keep_checkpoints = 2  # The newest.
    config.keep_every = 0  # Steps: checkpoints at multiples of it stay.
    # The metric of evaluation by which the best stays, "eval_loss:min": the weights as best.safetensors, and
    # the checkpoint of that step if there is one. "": none.
    config.keep_best = ""
    config.max_consecutive_nonfinite = (
        10  # Updates in a row that were not finite, and so nonfinite_steps, until the run stops; 0: never.
    )
    config.wandb_project = ""  # Logs also go to Weights & Biases, which must be installed; "": not.
    config.profile_from = 0  # First step of a profiler trace, counted from 1.
    config.profile_steps = 0  # Its length in steps; 0: no trace.
    return config


def module_fields(module):
    """A module's fields as a part of a configuration.

    Those of several types (a number or None) take any value: on a command line, what Python reads as one.
    """
    part = ml_collections.ConfigDict(convert_dict=False, type_safe=False)
    kinds = {field.name: field.type for field in dataclasses.fields(module)}
    for name, value in pretrained.module_to_dict(module).items():
        several = isinstance(kinds[name], types.UnionType)
        part[name] = config_dict.FieldReference(value, field_type=object) if several else value
    return part


def resolve(config):
    """The configuration with everything in steps: epochs and rates per batch size worked out.

    Args:
      config: with the fields of `default_config`, `data` and `optimizer`.

    Returns:
      A copy; resolving it again changes nothing.

    Raises:
      ValueError: epochs of a negative length, or a batch of no images.
    """
    config = config.copy_and_resolve_references()
    optimizer = config.optimizer
    if config.batch_size < 1:
        raise ValueError(f"batch_size={config.batch_size} must be at least 1.")
    for name, value in (("total_epochs", config.total_epochs), ("warmup_epochs", optimizer.warmup_epochs)):
        if value < 0:
            raise ValueError(f"{name}={value} must be at least 0.")
    if config.total_epochs or optimizer.warmup_epochs:
        steps_per_epoch = len(make_source(config.data)) / config.batch_size
        if config.total_epochs:
            config.total_steps = max(1, round(config.total_epochs * steps_per_epoch))
        if optimizer.warmup_epochs:
            optimizer.warmup_steps = float(optimizer.warmup_epochs * steps_per_epoch)
    if optimizer.lr_reference_batch_size:
        optimizer.learning_rate *= config.batch_size / optimizer.lr_reference_batch_size
    config.total_epochs = optimizer.warmup_epochs = 0.0
    optimizer.lr_reference_batch_size = 0
    return config


def check_config(config, default):
    """Compares the fields of a configuration with those that are known.

    Raises:
      ValueError: fields that are unknown, missing, or out of range.
    """

    def names(part, prefix=""):
        for key, value in part.items():
            # The modules' own fields are checked where modules are made.
            if isinstance(value, ml_collections.ConfigDict) and key not in ("tokenizer", "generator"):
                yield from names(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    have, want = set(names(config)), set(names(default))
    unknown, missing = sorted(have - want), sorted(want - have)
    if unknown or missing:
        raise ValueError(
            "the configuration does not have the fields that it should have.\n"
            f"  unknown: {unknown}\n  missing: {missing}\n  known: {sorted(want)}"
        )
    if config.keep_best and not config.eval_every:
        raise ValueError(f"keep_best={config.keep_best!r} needs evaluations; eval_every is 0.")
    least = dict(
        batch_size=1, accumulation_steps=1, keep_checkpoints=1, total_steps=0, max_consecutive_nonfinite=0, keep_every=0
    )
    least |= dict(log_every=0, eval_every=0, image_every=0, checkpoint_every=0)
    for name, bound in least.items():
        if config[name] < bound:
            raise ValueError(f"{name}={config[name]} must be at least {bound}.")
    if config.batch_size % config.accumulation_steps:
        raise ValueError(
            f"batch_size={config.batch_size} is not a multiple of accumulation_steps={config.accumulation_steps}."
        )
