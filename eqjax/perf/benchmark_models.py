"""Models to measure: a published size or a config with random weights, or a model with its own weights."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from eqjax import config_files, convert, loading, pretrained
from eqjax.generator import Generator
from eqjax.model import Model
from eqjax.nets import download
from eqjax.published import GENERATOR_SIZES
from eqjax.tokenizer import Tokenizer
from eqjax.training.config import generator_config
from eqjax.typing import Config, Params


def build_modules(config: str, dtype: DTypeLike = "float32", fields: Sequence[str] = ()) -> tuple[Tokenizer, Generator]:
    """Returns the modules of a published size or of a generator's config, without weights.

    Args:
      config: "S", "B", "L" or "H", or a config file with ":variant". If it names no tokenizer, the published one
        is used.
      dtype: the compute dtype of both modules.
      fields: fields of the config to set, as "NAME=VALUE".

    Raises:
      ValueError: `config` is neither a size nor a generator's config, or has no such field.
    """
    if config in GENERATOR_SIZES and not fields:
        tokenizer, generator = Tokenizer(), Generator(**GENERATOR_SIZES[config])
    else:
        values = read_config(config, fields)
        if "generator" not in values:
            raise ValueError(f"--config={config} holds no generator; give a generator's config.")
        if values.tokenizer_weights:
            tokenizer = loading.load_weights(values.tokenizer_weights).modules["tokenizer"]
        else:
            tokenizer = Tokenizer()
        generator = pretrained.build_module("generator", dict(values.generator))
    return tokenizer.clone(dtype=jnp.dtype(dtype)), generator.clone(dtype=jnp.dtype(dtype))


def read_config(config: str, fields: Sequence[str] = ()) -> Config:
    """Returns the training config of a file, or of a published size.

    Args:
      config: "S", "B", "L" or "H", or a file as `config_files.find` takes it.
      fields: fields to set, as "NAME=VALUE".

    Raises:
      ValueError: `config` is neither a size nor a file, its variant is unknown, or it has no such field.
    """
    if config in GENERATOR_SIZES:
        values = generator_config()
        values.generator.update(GENERATOR_SIZES[config])
    else:
        try:
            values = config_files.load(config)
        except FileNotFoundError as error:
            raise ValueError(
                f"--config={config} is none of the sizes {', '.join(GENERATOR_SIZES)}, and {error}"
            ) from error
    config_files.override(values, fields, config)
    return values


def random_params(module: Tokenizer | Generator) -> Params:
    """Returns normal parameters of standard deviation 0.02, without compiling an initializer."""
    random = np.random.default_rng(0)

    def normal(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(random.standard_normal(leaf.shape, np.float32) * 0.02)

    return jax.tree.map(normal, pretrained.abstract_params(module))


def random_network(name: str, dtype: DTypeLike | None = None) -> tuple[Any, Params]:
    """Returns a frozen network with normal parameters of standard deviation 0.02; takes the place of `nets.load`.

    Args:
      name: "lpips", "dino", "dinov2" or "inception".
      dtype: compute dtype of the module; None: float32.
    """
    random = np.random.default_rng(0)
    return _network(name, dtype, lambda shape: random.standard_normal(shape, np.float32) * np.float32(0.02))


def abstract_network(name: str, dtype: DTypeLike | None = None) -> tuple[Any, Params]:
    """Returns a frozen network with shapes in the place of parameters; takes the place of `nets.load`.

    Args:
      name: "lpips", "dino", "dinov2" or "inception".
      dtype: compute dtype of the module; None: float32.
    """
    module, params = _network(name, dtype, lambda shape: np.broadcast_to(np.float32(0), shape))
    return module, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)


def _network(name: str, dtype: DTypeLike | None, fill: Callable[[tuple[int, ...]], np.ndarray]) -> tuple[Any, Params]:
    network = download.find_network(name)
    module = network.module if dtype is None else network.module.clone(dtype=dtype)
    state = {key: fill(shape) for key, shape in convert.frozen_shapes(name, module).items()}
    return module, network.convert(state, module)


def names_weights(config: str) -> bool:
    """Returns whether `config` names a model with weights, rather than a published size or a config file.

    Example:
      >>> names_weights("photos"), names_weights("L"), names_weights("photos_generator:tiny")
      (True, False, False)
    """
    path = config.partition(":")[0]
    is_config = path.endswith(".py") or path.removeprefix("configs/") in config_files.names()
    return config not in GENERATOR_SIZES and not is_config


def make_model(config: str, dtype: DTypeLike = "float32", fields: Sequence[str] = ()) -> Model:
    """Returns the `Model` to measure, with parameters in its compute dtype, as `eqjax.load_pretrained` returns it.

    Args:
      config: as in `build_modules`, for a model with random weights; or a shipped model's name, a weights
        file or a workdir.
      dtype: the compute dtype of both modules.
      fields: fields of a config to set, as "NAME=VALUE".

    Raises:
      ValueError: `config` is neither a size, nor a generator's config, nor a model with weights; fields are set of
        one that has none.
      FileNotFoundError: there are no such weights.
    """
    if names_weights(config):
        if fields:
            raise ValueError(
                f"--config={config} is a model with weights, so --config.{fields[0]} has no effect; give a size or a "
                "configuration."
            )
        return loading.load_pretrained(config).astype(dtype)
    tokenizer, generator = build_modules(config, dtype, fields)
    return Model(tokenizer, random_params(tokenizer), generator, random_params(generator), 1.0, None).astype(dtype)
