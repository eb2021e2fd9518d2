"""Orbits: codecs of known behavior, that PSNR is always there, and what is refused."""

import numpy as np
import pytest

from eqjax.equivariance import Codec, ColumnGeometry, flips, make_action, measure_orbit, product, scales, shifts
from eqjax.equivariance.orbit_plots import curve_scatter
from eqjax.equivariance.orbits import interior
from tests.equivariance.toy_codecs import blind_codec, circular_convolution, columns_codec, photograph_rows

IMAGES = photograph_rows(3, 64)


def test_a_circular_convolution_is_equivariant_at_multiples_of_its_stride_alone():
    orbit = measure_orbit(circular_convolution(), IMAGES, [make_action(shift) for shift in (0, 4, 8, 12, 16)])
    curve = orbit.encoder_errors
    assert curve.shape == (5, 3)
    assert curve[[0, 2, 4]].max() < 1e-6 and curve[[1, 3]].mean(1).min() > 0.3
    np.testing.assert_allclose(orbit.column_errors[2], 0, atol=1e-6)
    # Moved back, equal latents agree; the others pull the mean away.
    assert orbit.consensus_errors[[0, 2, 4]].std(0).max() < 1e-6


def test_exact_equivariance_shows_in_every_measure():
    group = product(shifts(8, step=4), flips())
    orbit = measure_orbit(columns_codec(), IMAGES, group)
    assert orbit.encoder_errors.max() < 1e-6 > orbit.decoder_errors.max() and orbit.consensus_errors.max() < 1e-6
    found = orbit.summary()
    assert found.encoder < 1e-6 and found.psnr == pytest.approx(orbit.psnr.mean()) and 10 < found.psnr < 30
    assert found.transformed_psnr == pytest.approx(found.psnr, abs=1.5)  # Of fewer columns.


def test_errors_of_a_codec_that_ignores_images_stand_beside_its_psnr():
    found = measure_orbit(blind_codec(), IMAGES, shifts(8)).summary()
    assert found.encoder < 1e-6 and found.consensus < 1e-6 and found.psnr < 19


def test_half_a_column_is_the_error_of_interpolation():
    """Every second column is white: the mean of its halves is gray, and so is the mean of two neighbors."""
    stripes = np.zeros((1, 16, 32, 3), np.float32) + np.repeat(np.arange(8) % 2, 4)[:, None]
    moved = measure_orbit(columns_codec(), stripes, [make_action(2)])
    assert moved.encoder_errors.max() < 1e-6
    quarter = measure_orbit(columns_codec(), np.roll(stripes, 2, axis=2), [make_action(1)])
    # Gray everywhere, but after a shift by a quarter 3/4 in three of the valid columns and 1/4 in two.
    assert quarter.encoder_errors.max() == pytest.approx(0.25 / np.sqrt((3 * 9 + 2) / 80), rel=1e-5)


def test_columns_near_borders_do_not_count():
    orbit = measure_orbit(columns_codec(), IMAGES, [make_action(8), make_action(-4), make_action(flip=True)], margin=2)
    valid = np.isfinite(orbit.column_errors)
    assert [np.flatnonzero(row)[[0, -1]].tolist() for row in valid] == [[4, 13], [2, 12], [2, 13]]
    narrow = interior(np.array([True, True, True, False]), 1, "circular")
    assert narrow.tolist() == [False, True, False, False]


def test_scales_make_columns_of_their_own():
    orbit = measure_orbit(columns_codec(), IMAGES, scales("1/2", "3/4"))
    assert np.isfinite(orbit.column_errors).sum(1).tolist() == [6, 10]
    assert 0 < orbit.encoder_errors.max() < 0.5 and np.isfinite(orbit.consensus_errors).all()
    assert orbit.labels == ["scale 1/2", "scale 3/4"]


def test_curves_of_two_kinds_are_apart_in_the_scatter():
    curves = np.stack([np.full(5, 0.1), np.full(5, 0.1), [0.1, 0.9, 0.1, 0.9, 0.1], [0.1, 0.8, 0.1, 0.8, 0.1]], axis=1)
    points, explained = curve_scatter(curves)
    assert np.abs(points[0] - points[1]).max() < 1e-9
    assert np.linalg.norm(points[0] - points[2]) > 5 * np.linalg.norm(points[2] - points[3])
    assert explained[0] > 0.99
    assert not curve_scatter(np.zeros((4, 1))).points.any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((columns_codec(), IMAGES, []), ValueError, "needs at least one element"),
        ((columns_codec(), IMAGES, [3]), TypeError, "action=3 must be an Action"),
        ((columns_codec(), IMAGES, [make_action(56)]), ValueError, r"shift \+56 px leaves none of 16 columns valid"),
        ((columns_codec(), IMAGES, scales("1/3")), ValueError, "scale=1/3 makes 5.33333 columns of 16"),
        ((columns_codec(), IMAGES[:0], flips()), ValueError, "images=<float32 array of shape .0, 16, 64, 3.>"),
        ((columns_codec(), IMAGES[:, :8], flips()), ValueError, "8 pixels high; the geometry has height=16"),
        ((columns_codec(), IMAGES.astype(np.uint8), flips()), TypeError, "must be a floating-point array"),
        ((lambda x: x, IMAGES, flips()), TypeError, "codec=.* must be a Codec"),
        ((Codec(columns_codec().encoder, columns_codec().decoder, ColumnGeometry(8)), IMAGES, flips()),
         ValueError, "has stride=4"),
    ],
)  # fmt: skip
def test_input_that_does_not_fit_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        measure_orbit(*arguments)
