"""Models of the benchmarks: published sizes, a configuration's, or a shipped model's; random weights."""

import os
import runpy

import jax
import jax.numpy as jnp
import numpy as np

from eqjax import Generator, Model, Tokenizer, load_pretrained, pretrained
from eqjax.published import GENERATOR_SIZES
from eqjax.training.config import generator_config

SIZES = {  # width, depth, heads, flow width (arXiv 2503.18948, table of model sizes)
    "S": (512, 16, 8, 960),
    "B": (768, 24, 12, 1024),
    "L": (1024, 32, 16, 1280),
    "H": (1280, 40, 16, 1536),
}


def modules(config, dtype="float32"):
    """(tokenizer, generator) of a published size ("S" … "H"), or of a configuration file with a variant.

    Raises:
      ValueError: neither.
    """
    if config in SIZES:
        width, depth, heads, flow_width = SIZES[config]
        tokenizer = Tokenizer()
        generator = Generator(width=width, depth=depth, num_heads=heads, flow_width=flow_width)
    else:
        fields = read_config(config)
        if "generator" not in fields:
            raise ValueError(f"--config={config} holds no generator; give a generator's configuration.")
        if fields.tokenizer_weights:
            tokenizer = pretrained.load(pretrained.resolve_path(fields.tokenizer_weights)).modules["tokenizer"]
        else:
            tokenizer = Tokenizer()  # The published one, where a configuration leaves the choice to its user.
        generator = pretrained.build_module("generator", dict(fields.generator))
    return tokenizer.clone(dtype=jnp.dtype(dtype)), generator.clone(dtype=jnp.dtype(dtype))


def read_config(config):
    """The ConfigDict of "path.py:variant", or of a published size's training.

    Raises:
      ValueError: there is no such file.
    """
    if config in SIZES:
        fields = generator_config()
        fields.generator.update(GENERATOR_SIZES[config])
        return fields
    path, _, variant = config.partition(":")
    if not os.path.isfile(path):
        raise ValueError(f"--config={config} is neither one of {sorted(SIZES)} nor a configuration file.")
    return runpy.run_path(path)["get_config"](variant or None)


def random_params(module):
    """Parameters with random numbers, without compiling an initializer."""
    random = np.random.default_rng(0)

    def fill(leaf):
        return jnp.asarray(random.standard_normal(leaf.shape, np.float32) * 0.02)

    return jax.tree.map(fill, pretrained.abstract_params(module))


def is_weights(config):
    """Whether `--config` is a model's name or file, rather than a size or a configuration."""
    return config not in SIZES and not config.partition(":")[0].endswith(".py")


def make_model(config, dtype="float32"):
    """A `Model` with random weights; "photos" and weights files: with theirs."""
    if is_weights(config):
        model = load_pretrained(config)
        return model.replace(
            tokenizer=model.tokenizer.clone(dtype=jnp.dtype(dtype)),
            generator=model.generator.clone(dtype=jnp.dtype(dtype)),
        )
    tokenizer, generator = modules(config, dtype)
    return Model(tokenizer, random_params(tokenizer), generator, random_params(generator), 1.0, None)
