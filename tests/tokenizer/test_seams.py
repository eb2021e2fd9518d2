"""The distance of roughness by place in a column."""

import jax
import jax.numpy as jnp
import numpy as np

from eqjax.evaluation.roughness import border_roughness
from eqjax.tokenizer.seams import seam_distance

NOISE = np.random.default_rng(0).uniform(-1, 1, (2, 48, 64, 3)).astype(np.float32)


def seamed(images, axis, at):
    """Returns images with jumps at a place of every column of 16 pixels."""
    jumps = np.where((np.arange(images.shape[axis]) - at) // 16 % 2 == 0, 0.3, -0.3).astype(np.float32)
    return images + np.expand_dims(jumps, [a for a in range(4) if a != axis])


def test_it_is_zero_for_equal_and_for_paler_images():
    np.testing.assert_allclose(seam_distance(NOISE, NOISE, 16), 0)
    np.testing.assert_allclose(seam_distance(NOISE, 0.5 * NOISE, 16), 0, atol=0.01)


def test_it_sees_seams_at_any_place_in_both_directions():
    plain = seam_distance(NOISE, 0.5 * NOISE, 16)
    for axis in (1, 2):
        for at in (0, 5, 8):
            assert np.all(seam_distance(NOISE, seamed(0.5 * NOISE, axis, at), 16) > 5 * plain)


def test_its_profile_is_that_of_border_roughness():
    """Along the width, of images without vertical detail, whose profile down the height is 0."""
    wide = np.broadcast_to(NOISE[:1, :1], (1, 16, 64, 3))
    flat = np.zeros_like(wide)
    profile = border_roughness(np.float64(wide), 16).profile
    expected = np.mean(profile / (profile.mean() * (1 + 2e-3 / np.abs(np.diff(wide, axis=2)).mean()))) / 2
    np.testing.assert_allclose(seam_distance(wide, flat, 16), expected, rtol=1e-3)


def test_its_gradient_lowers_a_seam_and_is_finite_for_flat_images():
    gradient = jax.grad(lambda x: seam_distance(NOISE, x, 16).sum())
    rough = seamed(0.5 * NOISE, 2, 0)
    assert np.sum(gradient(rough) * (rough - 0.5 * NOISE)) > 0
    assert np.all(np.isfinite(gradient(jnp.zeros_like(NOISE))))
