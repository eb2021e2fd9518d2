"""Precision of products: float32 in every module and gradient unless JAX is told otherwise, and how far others are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import sample_latents
from eqjax.precision import computing_in, jax_name
from tests import emulated_precision
from tests.sampling.small_models import local_model

HIGHEST, HIGH = jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH
IMAGES = np.zeros((1, 16, 4, 3), np.float32)


def precisions(function, *arguments) -> set[Any]:
    """Returns the precisions of all products and convolutions of a function, in its inner functions too."""
    found = set()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                found.add(equation.params["precision"])
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
            ):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    visit(getattr(inner, "jaxpr", inner))

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


def generator_loss(params):
    generator, key = local_model().require("generator"), jax.random.key(0)
    return generator.apply({"params": params}, jnp.ones((1, 3, 4)), jnp.array([1]), method="loss", rngs=key)


def tokenizer_loss(params):
    return local_model().require("tokenizer").apply({"params": params}, IMAGES).images.sum()


@pytest.mark.parametrize(
    ("loss", "params"), [(generator_loss, "generator_params"), (tokenizer_loss, "tokenizer_params")]
)
def test_modules_and_their_gradients_are_float32_unless_jax_is_told_otherwise(loss, params):
    arguments = jax.grad(loss), getattr(local_model(), params)
    with jax.default_matmul_precision(None):
        assert precisions(*arguments) == {(HIGHEST, HIGHEST)}
    with computing_in("tf32"):
        assert precisions(*arguments) == {(HIGH, HIGH)}


@pytest.mark.parametrize(("given", "expected"), [({}, HIGHEST), ({"precision": "tf32"}, HIGH)])
def test_samples_are_float32_unless_asked_otherwise(given, expected):
    m = local_model()

    def sample(params):
        key = jax.random.key(0)
        return sample_latents(
            m.generator, params, [0], num_columns=2, num_flow_steps=4, modulation_times=2, key=key, **given
        )

    with jax.default_matmul_precision("bfloat16"):
        found = precisions(sample, m.generator_params)
    # Weights of interpolation are float32 always.
    assert found == {(HIGHEST, HIGHEST), (expected, expected)}


@pytest.mark.parametrize("precision", ["float32", "", None, 1, []])
def test_other_precisions_are_refused(precision):
    with pytest.raises((TypeError, ValueError), match="precision=.* must be one of 'highest', 'tf32', 'bfloat16'"):
        jax_name(precision)


def test_a_product_of_three_is_nearly_exact_and_a_rounded_one_is_not():
    x, y = np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32)
    exact, errors = x.astype(np.float64) @ y.astype(np.float64), {}
    for mode in emulated_precision.MODES:
        with emulated_precision.emulating(mode):
            found = jax.jit(jnp.matmul)(x, y)
        errors[mode] = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert errors["highest"] < errors["TF32_TF32_F32_X3"] < 2e-6 < errors["BF16_BF16_F32_X3"] < 3e-5
    assert 1e-4 < errors["tf32"] < 1e-3 < errors["bfloat16"] < 1e-2
