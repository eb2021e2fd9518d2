"""Index shifts: a generator whose cross-attention knows positions, and one that does not."""

from typing import Any

import jax
import numpy as np
import pytest

from eqjax import Generator
from eqjax.equivariance import index_shift_errors, sampler_shift_errors
from eqjax.equivariance.index_shifts import context_columns
from tests.random_params import random_params

FIELDS = dict(
    width=16, depth=2, num_heads=2, latent_dim=4, num_classes=3, num_cond_tokens=2, window_size=3, flow_width=8,
    flow_depth=1,
)  # fmt: skip
LATENTS = np.random.default_rng(0).normal(size=(2, 8, 4)).astype(np.float32)
LABELS, KEY = np.array([0, 2]), jax.random.key(0)


def generator(**fields):
    made = Generator(**{**FIELDS, **fields})
    return made, random_params(made, 1, gain=4.0)


def test_contexts_and_velocities_move_with_the_index_unless_cross_attention_has_no_positions():
    moved = index_shift_errors(*generator(), LATENTS, LABELS, [0, 1, 16], key=KEY)
    assert moved.context.shape == moved.velocity.shape == (3, 7)
    assert not moved.context[0].any() and not moved.velocity[0].any()
    assert moved.context[2].mean() > 0.05 and moved.velocity[2].mean() > 0.01
    fixed = index_shift_errors(*generator(cross_rope=False), LATENTS, LABELS, [0, 1, 16], key=KEY)
    assert fixed.context.max() <= 1e-5 and fixed.velocity.max() <= 1e-5


def test_samples_move_with_the_index_unless_cross_attention_has_no_positions():
    assert context_columns(generator()[0]) == 5
    options: Any = dict(key=KEY, num_flow_steps=2, guidance_scale=2.0)
    moved = sampler_shift_errors(*generator(), LATENTS, LABELS, [0, 3, 16], **options)
    assert moved.shape == (3, 3) and not moved[0].any() and moved[2].min() > 0.01
    fixed = sampler_shift_errors(*generator(cross_rope=False), LATENTS, LABELS, [3, 16], **options)
    assert fixed.max() <= 1e-5
    # With a bound of the position, both are at the bound.
    assert sampler_shift_errors(*generator(), LATENTS, LABELS, [16], max_position=2, **options).max() <= 1e-5


def test_wrong_input_is_refused():
    made, params = generator()
    with pytest.raises(ValueError, match="latents have 5 columns; 2 layers with a window of 3 see 5, .* at least 6"):
        sampler_shift_errors(made, params, LATENTS[:, :5], LABELS, [1], key=KEY)
    with pytest.raises(ValueError, match="has no window"):
        sampler_shift_errors(Generator(**{**FIELDS, "window_size": None}), params, LATENTS, LABELS, [1], key=KEY)
    with pytest.raises(ValueError, match=r"shifts\[0\]=-1 must be an integer ≥ 0"):
        index_shift_errors(made, params, LATENTS, LABELS, [-1], key=KEY)
    with pytest.raises(ValueError, match="latents=.* must be a floating-point array of shape .images, columns, 4"):
        index_shift_errors(made, params, LATENTS[..., :3], LABELS, [1], key=KEY)
    with pytest.raises(ValueError, match="have one column"):
        index_shift_errors(made, params, LATENTS[:, :1], LABELS, [1], key=KEY)
    with pytest.raises(ValueError, match="labels="):
        index_shift_errors(made, params, LATENTS, LABELS[:1], [1], key=KEY)
