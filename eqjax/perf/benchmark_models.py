"""Models to measure: a published size or a config with random weights, or a model with its own weights."""

import os
import runpy
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import ml_collections
import numpy as np

from eqjax import pretrained
from eqjax.generator import Generator
from eqjax.model import Model
from eqjax.published import GENERATOR_SIZES
from eqjax.tokenizer import Tokenizer
from eqjax.training.config import generator_config
from eqjax.typing import Params


def build_modules(config: str, dtype: DTypeLike = "float32") -> tuple[Tokenizer, Generator]:
    """Returns the modules of a published size or of a generator's config, without weights.

    Args:
      config: "S", "B", "L" or "H", or "path.py:variant". A config that names no tokenizer gets the published one.
      dtype: the compute dtype of both modules.

    Raises:
      ValueError: `config` is neither a size nor a generator's config.
    """
    if config in GENERATOR_SIZES:
        tokenizer, generator = Tokenizer(), Generator(**GENERATOR_SIZES[config])
    else:
        fields: Any = read_config(config)
        if "generator" not in fields:
            raise ValueError(f"--config={config} holds no generator; give a generator's config.")
        if fields.tokenizer_weights:
            tokenizer = pretrained.load(pretrained.resolve_path(fields.tokenizer_weights)).modules["tokenizer"]
        else:
            tokenizer = Tokenizer()
        generator = pretrained.build_module("generator", dict(fields.generator))
    return tokenizer.clone(dtype=jnp.dtype(dtype)), generator.clone(dtype=jnp.dtype(dtype))


def read_config(config: str) -> ml_collections.ConfigDict:
    """Returns the training config of "path.py:variant", or of a published size.

    Raises:
      ValueError: `config` is neither a size nor a file.
    """
    if config in GENERATOR_SIZES:
        fields: Any = generator_config()
        fields.generator.update(GENERATOR_SIZES[config])
        return fields
    path, _, variant = config.partition(":")
    if not os.path.isfile(path):
        raise ValueError(f"--config={config} is neither one of {sorted(GENERATOR_SIZES)} nor a config file.")
    return runpy.run_path(path)["get_config"](variant or None)


def random_params(module: Tokenizer | Generator) -> Params:
    """Returns normal parameters of standard deviation 0.02, without compiling an initializer."""
    random = np.random.default_rng(0)

    def normal(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(random.standard_normal(leaf.shape, np.float32) * 0.02)

    return jax.tree.map(normal, pretrained.abstract_params(module))


def names_weights(config: str) -> bool:
    """Returns whether `config` names a model with weights, rather than a published size or a config file.

    Example:
      >>> names_weights("photos"), names_weights("L"), names_weights("configs/photos_generator.py:tiny")
      (True, False, False)
    """
    return config not in GENERATOR_SIZES and not config.partition(":")[0].endswith(".py")


def make_model(config: str, dtype: DTypeLike = "float32") -> Model:
    """Returns the `Model` to measure.

    Args:
      config: as in `build_modules`, for a model with random weights; or a shipped model's name, a weights
        file or a workdir.
      dtype: the compute dtype of both modules.

    Raises:
      ValueError: as `build_modules`.
      FileNotFoundError: there are no such weights.
    """
    if names_weights(config):
        model = pretrained.load_pretrained(config)
        return model.replace(
            tokenizer=model.tokenizer.clone(dtype=jnp.dtype(dtype)),
            generator=model.generator.clone(dtype=jnp.dtype(dtype)),
        )
    tokenizer, generator = build_modules(config, dtype)
    return Model(tokenizer, random_params(tokenizer), generator, random_params(generator), 1.0, None)
