"""The score of agreement between transformed copies of an image."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.equivariance import equivariance_score, flips, make_action, scales, shifts
from tests.equivariance.toy_codecs import blind_codec, columns_codec, photograph_rows

IMAGES = photograph_rows(3, 32)


def test_it_is_one_where_the_encoder_is_equivariant_and_below_elsewhere():
    codec = columns_codec()
    for group in (shifts(8, step=4), flips()):
        np.testing.assert_allclose(equivariance_score(codec, IMAGES, group), 1, atol=1e-5)
    assert (equivariance_score(codec, IMAGES, shifts(2, step=2)) < 0.999).all()
    np.testing.assert_allclose(equivariance_score(blind_codec(), IMAGES, shifts(2, step=2)), 1, atol=1e-5)


def test_it_is_the_mean_cosine_of_all_pairs():
    codec = columns_codec()
    actions = [make_action(), make_action(shift=2), make_action(shift=4)]
    z = np.asarray(codec.encode(IMAGES), np.float64)[:, 3:5]
    half = np.asarray(codec.encode(np.roll(IMAGES, 2, 2)), np.float64)
    # A shift by half a column, moved back: the mean of two neighbors.
    half = (0.5 * (half + np.roll(half, -1, 1)))[:, 3:5]  # All but two columns at either border.
    cosine = (z * half).sum((1, 2)) / np.sqrt(np.square(z).sum((1, 2)) * np.square(half).sum((1, 2)))
    found = equivariance_score(codec, IMAGES, actions[:2], margin=2)
    np.testing.assert_allclose(found, cosine, rtol=1e-5)
    pairs = [equivariance_score(codec, IMAGES, pair, margin=0) for pair in itertools.combinations(actions, 2)]
    np.testing.assert_allclose(equivariance_score(codec, IMAGES, actions, margin=0), np.mean(pairs, 0), rtol=1e-5)


def test_gradients_pass_and_raise_it():
    codec, group = columns_codec(), shifts(2, step=2)
    gradient = jax.jit(jax.grad(lambda x: equivariance_score(codec, x, group).sum()))(jnp.asarray(IMAGES))
    better = IMAGES + 0.1 * np.asarray(gradient) / np.abs(gradient).max()
    assert (equivariance_score(codec, better, group) > equivariance_score(codec, IMAGES, group)).all()


def test_wrong_input_is_refused():
    codec = columns_codec()
    with pytest.raises(TypeError, match="codec="):
        equivariance_score(3, IMAGES, flips())
    with pytest.raises(ValueError, match="two or more elements; got 1"):
        equivariance_score(codec, IMAGES, [make_action()])
    with pytest.raises(ValueError, match="leaves none of 8 columns valid"):
        equivariance_score(codec, IMAGES, [make_action(), make_action(shift=28)])
    with pytest.raises(ValueError, match="no column in common"):
        equivariance_score(codec, IMAGES, [make_action(shift=16), make_action(shift=-16)])
    with pytest.raises(ValueError, match="images 30 pixels wide do not divide"):
        equivariance_score(codec, IMAGES[:, :, :30], flips())
    with pytest.raises(TypeError, match="Action"):
        equivariance_score(codec, IMAGES, [1, 2])
    assert equivariance_score(codec, IMAGES, [make_action(), *scales("1/2").grid()]).shape == (3,)
