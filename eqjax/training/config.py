"""The configuration of a training run: complete defaults, the checks, and `resolve`.

`tokenizer_config` and `generator_config` return complete configurations with the published values; the files in
`configs/` change them. The tables of `eqjax.training.fields` say what each field means and may be.
"""

from collections.abc import Iterator

from eqjax import config_fields
from eqjax.config_fields import Table
from eqjax.data.config import contradictions
from eqjax.training import fields
from eqjax.typing import Config

# The fields of each trainer's configuration.
TABLES: dict[str, Table] = {"tokenizer": fields.TOKENIZER, "generator": fields.GENERATOR}


def tokenizer_config() -> Config:
    """Returns the complete configuration of a tokenizer's training: published sizes, weights and optimizers."""
    return config_fields.make(fields.TOKENIZER)


def generator_config() -> Config:
    """Returns the complete configuration of a generator's training: published size L and optimizer."""
    return config_fields.make(fields.GENERATOR)


# ── Checks ──────────────────────────────────────────────────────────────────────────────────────


def check_config(config: Config, trainer: str) -> None:
    """Checks that a configuration is a trainer's, with its fields, in their ranges, which fit each other.

    Args:
      config: the configuration.
      trainer: "tokenizer" or "generator".

    Raises:
      ValueError: the configuration is another trainer's; fields are unknown, missing, out of range or contradictory.
        The message names all of them.
    """
    found = config.get("trainer")
    if found in TABLES and found != trainer:
        raise ValueError(
            f"this is a {found}'s configuration (trainer={found!r}), and this trains a {trainer}: use "
            f"eqjax train-{found}, or a configuration made from {trainer}_config()."
        )
    name = f"a {trainer}'s configuration"
    config_fields.check(config, TABLES[trainer], name)
    config_fields.refuse(list(_contradictions(config)), name)


def _contradictions(config: Config) -> Iterator[str]:
    """Yields a sentence about every pair of fields that do not fit each other."""
    if config.batch_size % config.accumulation_steps:
        yield f"batch_size={config.batch_size} is not a multiple of accumulation_steps={config.accumulation_steps}."
    if config.keep_best and config.eval_every is None:
        yield f"keep_best={config.keep_best!r} needs evaluations, but eval_every is None: set it."
    yield from contradictions(config.data)


# ── Epochs to steps ─────────────────────────────────────────────────────────────────────────────


def resolve(config: Config) -> Config:
    """Converts epochs to steps, and scales learning rates to the batch size.

    Args:
      config: a configuration with the fields of `fields.RUN`, `data` and `optimizer`, in their ranges.

    Returns:
      A copy without `total_epochs`, `warmup_epochs` and `lr_reference_batch_size`; resolving it again changes nothing.
    """
    config = config.copy_and_resolve_references()
    optimizers = [config[name] for name in ("optimizer", "discriminator_optimizer") if name in config]
    if config.total_epochs is not None:
        config.total_steps = max(1, round(config.total_epochs * _steps_per_epoch(config)))
    for optimizer in optimizers:
        if optimizer.warmup_epochs is not None:
            optimizer.warmup_steps = float(optimizer.warmup_epochs * _steps_per_epoch(config))
        if optimizer.lr_reference_batch_size is not None:
            optimizer.learning_rate *= config.batch_size / optimizer.lr_reference_batch_size
        optimizer.warmup_epochs = optimizer.lr_reference_batch_size = None
    config.total_epochs = None
    return config


def _steps_per_epoch(config: Config) -> float:
    from eqjax.data import make_source  # Imports JAX, which configurations that count steps need not wait for.

    return len(make_source(config.data)) / config.batch_size
