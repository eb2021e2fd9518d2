"""Models to measure: what a --config names, and what is made of it."""

import jax
import jax.numpy as jnp
import pytest

from eqjax.perf import benchmark_models
from eqjax.published import GENERATOR_SIZES
from eqjax.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("S", False),
        ("photos_generator", False),
        ("photos_generator:tiny", False),
        ("path/to/config.py:tiny", False),
        ("photos", True),
        ("runs/generator", True),
        ("model.safetensors", True),
    ],
)
def test_sizes_and_configurations_are_told_from_models_with_weights(config, expected):
    assert benchmark_models.names_weights(config) is expected


@pytest.mark.parametrize("size", GENERATOR_SIZES)
def test_a_published_size_has_its_config_and_module(size):
    fields = benchmark_models.read_config(size).generator
    _, generator = benchmark_models.build_modules(size, "bfloat16")
    for name, value in GENERATOR_SIZES[size].items():
        assert fields[name] == getattr(generator, name) == value
    assert generator.dtype == jnp.bfloat16


def test_a_config_that_names_no_tokenizer_gets_the_published_one():
    fields = benchmark_models.read_config("imagenet_generator:size=S")
    tokenizer, generator = benchmark_models.build_modules("imagenet_generator:size=S")
    assert not fields.tokenizer_weights
    assert (tokenizer, generator.width) == (Tokenizer(dtype=jnp.dtype("float32")), 512)


def test_random_params_have_the_shapes_of_the_module_and_small_values():
    _, generator = benchmark_models.build_modules("photos_generator:tiny")
    params = benchmark_models.random_params(generator)
    expected = jax.eval_shape(generator.init_params, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)
    values = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])
    assert float(jnp.std(values)) == pytest.approx(0.02, rel=0.05)


def test_a_model_with_weights_keeps_them_and_takes_the_dtype():
    model = benchmark_models.make_model("photos", "bfloat16")
    assert model.require("tokenizer").dtype == model.require("generator").dtype == jnp.bfloat16
    assert model.class_names is not None and "flower" in model.class_names
