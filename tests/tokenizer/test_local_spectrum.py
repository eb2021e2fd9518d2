"""The distance of local amplitudes: what it is blind to, and what it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.tokenizer.local_spectrum import local_spectrum_distance

NOISE = np.random.default_rng(0).normal(scale=0.2, size=(2, 2, 48, 64, 3)).astype(np.float32)


def test_it_is_zero_for_equal_images_only():
    # Rounding: the newest XLA computes the two equal transforms in different orders.
    assert np.all(local_spectrum_distance(NOISE[0], NOISE[0]) < 1e-9)
    assert np.all(local_spectrum_distance(NOISE[0], NOISE[1]) > 1e-3)


def test_white_noise_has_its_own_size():
    """Amplitudes of complex Gaussian noise of variance σ² have the mean σ √π / 2."""
    distance = local_spectrum_distance(NOISE[0], np.zeros_like(NOISE[0]), sides=(16,))
    np.testing.assert_allclose(distance, 0.2 * np.sqrt(np.pi) / 2, rtol=0.05)


def test_detail_in_another_place_is_nearer_than_no_detail():
    """The error per pixel says the opposite."""
    real, moved, blurred = NOISE[0], np.roll(NOISE[0], 1, axis=2), np.zeros_like(NOISE[0])
    assert np.all(local_spectrum_distance(real, moved) < 0.6 * local_spectrum_distance(real, blurred))
    assert np.mean(np.abs(real - moved)) > np.mean(np.abs(real - blurred))


def test_windows_that_do_not_fit_are_left_out():
    small = NOISE[:, :, :8, :40]
    np.testing.assert_array_equal(local_spectrum_distance(*small), local_spectrum_distance(*small, sides=(8,)))
    with pytest.raises(ValueError, match=r"images of 4 × 64 pixels are smaller .* 8 pixels wide; set objective"):
        local_spectrum_distance(NOISE[0, :, :4], NOISE[1, :, :4])


def test_its_gradient_is_finite_where_there_is_no_detail_and_points_to_more():
    flat, real = jnp.zeros((1, 16, 16, 3)), NOISE[0, :1, :16, :16]
    gradient = jax.grad(lambda x: local_spectrum_distance(x, real).sum())
    assert np.all(np.isfinite(gradient(flat)))
    faint = 0.01 * NOISE[1, :1, :16, :16]
    assert np.sum(gradient(faint) * faint) < 0
