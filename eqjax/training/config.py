"""The configuration of a training run: complete defaults, the checks, and `resolve`.

`tokenizer_config` and `generator_config` return complete configurations with the published values; the files in
`configs/` change them. The tables of `eqjax.training.fields` say what each field means and may be.
"""

from collections.abc import Iterator
import math

from absl import logging

from eqjax import config_fields
from eqjax.arguments import check_arguments
from eqjax.config_fields import CONFIG, Table
from eqjax.data.config import contradictions
from eqjax.rules import Choice
from eqjax.training import fields
from eqjax.typing import Config

# The fields of each trainer's configuration.
TABLES: dict[str, Table] = {"tokenizer": fields.TOKENIZER, "generator": fields.GENERATOR}


# Weight of the random start in the exported EMA weights of which a run warns, and which it refuses.
_NOTABLE_START, _LARGEST_START = 0.01, 0.1


def tokenizer_config() -> Config:
    """Returns the complete configuration of a tokenizer's training: published sizes, weights and optimizers."""
    return config_fields.make(fields.TOKENIZER)


def generator_config() -> Config:
    """Returns the complete configuration of a generator's training: published size L and optimizer."""
    return config_fields.make(fields.GENERATOR)


# ── Checks ──────────────────────────────────────────────────────────────────────────────────────


@check_arguments(config=CONFIG, trainer=Choice(tuple(TABLES)))
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
    if found != trainer and isinstance(found, str) and found in TABLES:
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


def check_length(config: Config) -> None:
    """Checks that a run is long enough for its warm-up and its EMA.

    Args:
      config: a resolved configuration.

    Raises:
      ValueError: most of the EMA weights, which the run exports, would be their random start.
    """
    total, optimizer = config.total_steps, config.optimizer
    if total and optimizer.warmup_steps > total:
        logging.warning(
            "The learning rate ends at %.2g of optimizer.learning_rate: optimizer.warmup_steps=%g is more than "
            "total_steps=%d.", total / optimizer.warmup_steps, optimizer.warmup_steps, total,
        )  # fmt: skip
    start = ema_start_weight(optimizer, total)
    # With a warm-up, a run of two or more steps has forgotten the most of it.
    trained = config.get("stage1_weights") or config.get("initial_weights")  # The start is not random.
    if not total or optimizer.ema_warmup or trained or start < _NOTABLE_START:
        return
    message = (
        f"{100 * start:.3g} % of the EMA weights, which are exported, would be their random start: "
        f"optimizer.ema_decay={optimizer.ema_decay} is long for total_steps={total}. Set optimizer.ema_warmup=True, "
        f"or optimizer.ema_decay to at most {_NOTABLE_START ** (1 / total):.4g}, or train longer."
    )
    if start > _LARGEST_START:
        raise ValueError(message)
    logging.warning(message)


def ema_start_weight(optimizer: Config, num_steps: int) -> float:
    """Returns the weight that the parameters before the first step have in the EMA weights: the product of the decays.

    Args:
      optimizer: the fields of `fields.OPTIMIZER`.
      num_steps: steps done.

    Example:
      >>> config = generator_config().optimizer
      >>> config.update(ema_decay=0.995, ema_warmup=False)
      >>> round(ema_start_weight(config, 150), 2)
      0.47
    """
    decay, warmup = optimizer.ema_decay, 0
    if optimizer.ema_warmup:  # For n steps (1 + n) / (10 + n) is below the decay.
        warmup = min(num_steps, max(0, math.ceil((10 * decay - 1) / (1 - decay)) - 1))
    # The product of (1 + n) / (10 + n) over the first n steps telescopes.
    rising = math.factorial(10) / math.prod(warmup + k for k in range(2, 11))
    return rising * decay ** (num_steps - warmup)


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
