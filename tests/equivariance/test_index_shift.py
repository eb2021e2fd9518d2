"""A generator without cross_rope continues a panorama alike wherever it is; the default does not."""

import jax
import numpy as np
import pytest

from eqjax.equivariance import context_shift_errors, sample_shift_errors
from tests.generator.test_generator import FIELDS, make
from tests.random_params import random_params

LABELS = np.array([0, 2])


@pytest.fixture(scope="module", name="generator")
def _generator():
    generator, _ = make(window_size=3)
    return generator, random_params(generator, gain=3.0)


def test_contexts_depend_on_the_index_by_cross_rope_alone(generator):
    module, params = generator
    latents = jax.random.normal(jax.random.key(0), (2, 6, FIELDS["latent_dim"]))
    errors = context_shift_errors(module.clone(cross_rope=False), params, latents, LABELS, 16)
    assert errors.max() < 1e-5
    errors = context_shift_errors(module, params, latents, LABELS, 16)
    assert errors[0] == 0 and errors[1:].min() > 0.05


@pytest.mark.slow
def test_a_shifted_panorama_has_the_same_columns(generator):
    module, params = generator
    prefix = jax.random.normal(jax.random.key(0), (2, 5, FIELDS["latent_dim"]))
    options = dict(shift=7, num_columns=4, key=jax.random.key(1), num_flow_steps=3, guidance_scale=2.0)
    errors = sample_shift_errors(module.clone(cross_rope=False), params, LABELS, prefix, **options)
    assert errors.shape == (4,) and errors.max() < 1e-4
    errors = sample_shift_errors(module, params, LABELS, prefix, **options)
    assert errors.min() > 0.01


def test_wrong_input_is_named(generator):
    module, params = generator
    prefix = np.zeros((2, 4, FIELDS["latent_dim"]), np.float32)
    options = dict(shift=2, num_columns=2, key=jax.random.key(1))
    with pytest.raises(ValueError, match="prefix has 4 columns, but depth=2 .* reach 4 columns back"):
        sample_shift_errors(module, params, LABELS, prefix, **options)
    with pytest.raises(ValueError, match="window_size=None: this generator sees all columns before"):
        sample_shift_errors(module.clone(window_size=None), params, LABELS, prefix, **options)
    with pytest.raises(ValueError, match="shift=-1 must be"):
        context_shift_errors(module, params, prefix, LABELS, -1)
