"""Weights of the kinds of transforms in a tokenizer's training, by how much of the data each of them leaves data."""

from collections.abc import Callable, Iterator
import itertools
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
from jaxtyping import Float
import numpy as np

from eqjax import data
from eqjax.equivariance import measure_overlap
from eqjax.training.tokenizer.regularization import Regularization
from eqjax.typing import AnyArray, Config

# Images per batch of the critic, and batches of held-out ones.
_BATCH_SIZE = 32
_HELD_OUT = 16


def measure_soft_weights(
    config: Config, regularization: Regularization, check_stop: Callable[[], None]
) -> Float[np.ndarray, "G"]:
    """Measures the overlap of transformed images with images for every kind of transforms; returns its power.

    Images are those of training, with its crops and flips; the critic is read on such crops of images that are kept for
    evaluation. One process measures, for all.

    Args:
      config: a resolved `tokenizer_config`.
      regularization: its regularizers, with soft weights.
      check_stop: raises an error if the run was asked to stop; called before every step of a critic.

    Raises:
      ValueError: the data keep no images for evaluation.
    """
    weights = np.ones(len(regularization.kinds), np.float32)
    if jax.process_index() == 0:
        for i, kind in enumerate(regularization.kinds):
            weights[i] = _measure(config, regularization, kind, check_stop)
    return np.asarray(multihost_utils.broadcast_one_to_all(weights)) if jax.process_count() > 1 else weights


def _measure(config: Config, regularization: Regularization, kind: str, check_stop: Callable[[], None]) -> float:
    assert regularization.soft_power is not None
    group, steps = regularization.alone(kind), config.objective.equivariance.soft_steps
    options: dict[str, Any] = {"batch_size": _BATCH_SIZE, "process_index": 0, "process_count": 1}
    with (
        data.make_iterator(config.data, seed=config.seed, **options) as batches,
        data.make_iterator(config.data, seed=config.seed, train=False, **options) as held_out,
    ):
        seen = _images(batches, check_stop)
        others = itertools.islice(_images(held_out, check_stop), _HELD_OUT)
        overlap = measure_overlap(regularization.geometry, group, seen, others, steps=steps, seed=config.seed)
    weight = overlap.fraction**regularization.soft_power
    logging.info(
        "%s: a critic tells held-out images from transformed ones with an area of %.3f under its ROC curve (0.5: not "
        "at all), so their overlap is %.2f. It weighs %.2g.", kind.capitalize(), overlap.auc, overlap.fraction, weight,
    )  # fmt: skip
    return weight


def _images(batches: data.BatchIterator, check_stop: Callable[[], None]) -> Iterator[AnyArray]:
    for batch in batches:
        check_stop()
        yield batch["image"]
