"""The generator against arrays recorded from the reference."""

import functools

import jax
import numpy as np
import pytest

from eqjax import convert
from tests.golden_cases import generator_case, relative_error, training_loss


@pytest.mark.parametrize("length", [12, 40])
def test_contexts_equal_recorded_ones(length):
    generator, params, arrays = generator_case()
    context = jax.jit(functools.partial(generator.apply, {"params": params}, method="context"))
    latents, labels = arrays[f"hidden/{length}/latents"], arrays["labels"]
    null = np.full_like(labels, generator.num_classes)
    assert relative_error(context(latents, labels), arrays[f"hidden/{length}/hidden"]) < 1e-5
    assert relative_error(context(latents, null), arrays[f"hidden/{length}/hidden_unconditional"]) < 1e-5


def test_contexts_without_a_window_equal_recorded_ones():
    generator, params, arrays = generator_case(window_size=None)
    context = jax.jit(functools.partial(generator.apply, {"params": params}, method="context"))
    out = context(arrays["hidden/12/latents"], arrays["labels"])
    assert relative_error(out, arrays["full_causal/hidden"]) < 1e-5


def test_velocities_equal_recorded_ones():
    generator, params, arrays = generator_case()
    x_t, time, context = (arrays[f"velocity/{name}"] for name in "xtc")
    out = jax.jit(functools.partial(generator.apply, {"params": params}, method="velocity"))(x_t, time, context)
    assert relative_error(out, arrays["velocity/velocity"]) < 1e-5


@pytest.mark.parametrize("remat", [False, True])
def test_loss_and_gradients_equal_recorded_ones(remat):
    generator, params, arrays = generator_case()

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return training_loss(generator.clone(remat=remat), params, arrays)

    value, gradient = loss(params)
    assert abs(float(value) / float(arrays["train/loss"]) - 1) < 1e-5
    gradient = convert.generator_state_dict(gradient, generator)
    norms = {key.split("grad_norm/")[1]: float(arrays[key]) for key in arrays if "train/grad_norm/" in key}
    assert set(norms) == set(gradient)
    for name, norm in norms.items():
        out = np.linalg.norm(gradient[name])
        if name.endswith("attn2.k.bias"):
            # A bias on keys without positions adds the same to all scores of a query, so its true gradient is 0
            # and both values are rounding errors.
            assert max(out, norm) < 1e-6 * norms[name.replace("bias", "weight")]
        else:
            assert abs(out - norm) <= 1e-4 * norm, name
    for key in (key for key in arrays if key.startswith("train/grad/")):
        assert relative_error(gradient[key.removeprefix("train/grad/")], arrays[key]) < 1e-4
