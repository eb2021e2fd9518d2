"""Footprints: of a strict tokenizer, of made-up maps, and their scores under transforms."""

import numpy as np
import pytest

from eqjax.equivariance import (
    Codec,
    decoder_footprints,
    encoder_footprints,
    flips,
    footprint_fractions,
    footprint_score,
    make_action,
    scales,
    shifts,
)
from tests.equivariance.toy_codecs import columns_codec, photograph_rows, tokenizer_codec

IMAGES = photograph_rows(3, 4 * 48)


def test_footprints_are_local_in_a_strict_tokenizer():
    codec, halo = tokenizer_codec()
    for maps in (decoder_footprints(codec, IMAGES), encoder_footprints(codec, IMAGES).mean(0)):
        assert maps.shape == (48, 16, 192)
        np.testing.assert_allclose(maps.sum((1, 2)), 1)
        outside = np.ones(192, bool)
        outside[4 * (24 - halo) : 4 * (24 + halo + 1)] = False
        assert outside.any() and maps[24][:, outside].max() == 0
        fractions = footprint_fractions(maps, 4, reach=(0, 1, halo))
        assert fractions[0] < fractions[1] <= fractions[halo] == pytest.approx(1)


def test_footprints_of_columns_that_see_only_themselves_are_their_own_pixels():
    codec = columns_codec()
    decoded, encoded = decoder_footprints(codec, IMAGES), encoder_footprints(codec, IMAGES)
    for maps in (decoded, *encoded):
        assert footprint_fractions(maps, 4) == pytest.approx({0: 1, 1: 1, 2: 1})


def test_footprints_follow_the_image_by_whole_columns():
    codec, _ = tokenizer_codec()

    def maps(images):
        return encoder_footprints(codec, images)

    few = IMAGES[:, :, : 4 * 16]
    moved = footprint_score(maps, codec.geometry, few, [make_action(4)], margin=5)
    assert moved >= 0.95
    assert moved > footprint_score(maps, codec.geometry, few, flips(), margin=5) + 0.01


def test_scores_of_known_maps():
    """A map that stays at one place of the image is neither; one in own pixels is both under shifts."""
    geometry, columns = columns_codec().geometry, 48

    def fixed(images):
        return np.ones((len(images), columns, 16, 1)) * np.eye(192)[4]

    def place(images):  # Of column k, pixel 4 k.
        return np.ones((len(images), 1, 16, 1)) * np.eye(192)[None, ::4, None]

    group = shifts(8, step=4)
    assert footprint_score(fixed, geometry, IMAGES, group) == 0
    assert footprint_score(fixed, geometry, IMAGES, group, kind="invariance") == 1
    assert footprint_score(place, geometry, IMAGES, group) == 1
    assert footprint_score(place, geometry, IMAGES, flips()) == 0  # The first pixel becomes the last.


def test_known_fractions():
    maps = np.zeros((3, 1, 6))
    maps[:, 0] = [[0.5, 0.5, 0, 0, 0, 0], [0, 0.1, 0.4, 0.4, 0.1, 0], [0, 0, 0, 0.2, 0.4, 0.4]]
    assert footprint_fractions(maps, 2, reach=(0, 1)) == pytest.approx({0: (1 + 0.8 + 0.8) / 3, 1: 1})


def test_wrong_input_is_refused():
    codec = columns_codec()

    def maps(images):
        return encoder_footprints(codec, images)

    with pytest.raises(ValueError, match="give at least 2"):
        decoder_footprints(codec, IMAGES[:1])
    numpy_codec = Codec(lambda x: np.asarray(codec.encoder(np.asarray(x))), codec.decoder, codec.geometry)
    with pytest.raises(ValueError, match="JAX cannot differentiate the encoder"):
        encoder_footprints(numpy_codec, IMAGES)
    with pytest.raises(ValueError, match="no element but the identity"):
        footprint_score(maps, codec.geometry, IMAGES, [])
    with pytest.raises(ValueError, match="cannot be invariant"):
        footprint_score(maps, codec.geometry, IMAGES, scales("1/2"), kind="invariance")
    with pytest.raises(ValueError, match="kind='equivarience' must be one of .*did you mean 'equivariance'"):
        footprint_score(maps, codec.geometry, IMAGES, flips(), kind="equivarience")
