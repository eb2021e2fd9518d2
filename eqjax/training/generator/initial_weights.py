"""Fine-tuning: a generator that starts from the weights of another one, with its own classes or with others."""

from collections.abc import Sequence
import math
from typing import Any

from absl import logging
import jax
import numpy as np
import optax

from eqjax import loading, pretrained
from eqjax.differences import check_equal
from eqjax.generator import Generator
from eqjax.latent_cache.encode import encoder_params, latent_scale
from eqjax.pretrained import Weights
from eqjax.typing import Params

# Fields that leave a generator's parameters and their meaning as they are; classes are matched by name.
_FREE = ("num_classes", "dropout_rate", "label_dropout_rate", "context_noise", "flow_batch_mult", "remat", "dtype")
# Relative distance of two encoders that are one: files may store it in bfloat16.
_ROUNDING = 0.01


def load_initial_weights(
    path: str, generator: Generator, class_names: Sequence[str], tokenizer: Weights, tokenizer_path: str
) -> tuple[Params, str]:
    """Loads the generator that a run starts from, with an embedding for each of the run's classes.

    A class that the file knows by the same name keeps its embedding. Without names in the file, classes keep theirs in
    their order if there are as many. Others start from the embedding of no class, so that the model draws for them at
    first what it draws without a class.

    Args:
      path: name, file or workdir of the generator.
      generator: the module to be trained.
      class_names: the run's classes, in the order of their labels.
      tokenizer: the weights of the run's tokenizer.
      tokenizer_path: where they come from, for messages.

    Returns:
      The parameters, and the notes of the file.

    Raises:
      ValueError: the file holds no generator, or one of another architecture or of latents of another scale.
      FileNotFoundError: there is no such file.
    """
    weights = loading.load_weights(path)
    if "generator" not in weights.modules:
        raise ValueError(
            f"{path} holds no generator; give initial_weights a file or workdir of generator training, or leave it "
            "out to start from random parameters."
        )
    message = f"the generator of initial_weights={path} is not the one to be trained:"
    found, expected = _architecture(weights.modules["generator"]), _architecture(generator)
    check_equal(found, expected, message, found_name="initial_weights", expected_name="this run")
    _check_latents(path, weights, tokenizer_path, tokenizer)
    params = dict(weights.params["generator"])
    rows = _rows(weights.class_names, len(params["class_embedding"]), class_names)
    table = np.concatenate([params["class_embedding"], params["null_embedding"]])
    params["class_embedding"] = table[rows]  # -1 is the last row, that of no class.
    kept = [name for name, row in zip(class_names, rows, strict=True) if row >= 0]
    logging.info(
        "Starting from the generator of %s: %d of %d classes keep their embedding%s; the others start as no class.",
        path, len(kept), len(class_names), f" ({', '.join(kept[:5])}{', …' if len(kept) > 5 else ''})" if kept else "",
    )  # fmt: skip
    return params, weights.notes


def _architecture(generator: Generator) -> dict[str, Any]:
    """Returns the fields that determine a generator's parameters and their meaning."""
    return {name: value for name, value in pretrained.module_to_dict(generator).items() if name not in _FREE}


def _check_latents(path: str, weights: Weights, tokenizer_path: str, tokenizer: Weights) -> None:
    """Checks that a generator continues the latents of a tokenizer; warns where another encoder makes them.

    Raises:
      ValueError: the latents have another scale.
    """
    found, expected = latent_scale(weights), latent_scale(tokenizer)
    if not np.isclose(found, expected, rtol=1e-3, atol=0):
        raise ValueError(
            f"the generator of initial_weights={path} was trained on latents scaled by {found:.6g}, and those of "
            f"tokenizer_weights={tokenizer_path} are scaled by {expected:.6g}: give the tokenizer that it was trained "
            "with, or leave initial_weights out."
        )
    if "tokenizer" not in weights.modules:
        return
    if _distance(*(encoder_params(one.params["tokenizer"]) for one in (tokenizer, weights))) > _ROUNDING:
        logging.warning(
            "The generator of initial_weights=%s was trained on the latents of another encoder than that of "
            "tokenizer_weights=%s, so that little of what it learned may hold.", path, tokenizer_path,
        )  # fmt: skip


def _distance(ours: Params, theirs: Params) -> float:
    """Returns |ours − theirs| / |ours| over all parameters; infinite if they have other shapes."""
    if jax.tree.map(np.shape, ours) != jax.tree.map(np.shape, theirs):
        return math.inf
    change = jax.tree.map(lambda a, b: a - b, ours, theirs)
    return float(optax.tree.norm(change) / optax.tree.norm(ours))


def _rows(known: Sequence[str] | None, count: int, class_names: Sequence[str]) -> list[int]:
    """Returns, for every class of the run, its row among the embeddings of a file, or -1."""
    if known is None:
        return list(range(count)) if count == len(class_names) else [-1] * len(class_names)
    row = {name: i for i, name in enumerate(known)}
    return [row.get(name, -1) for name in class_names]
