"""Shift errors and footprints: of a tokenizer that is exactly equivariant, and of made-up maps."""

import numpy as np
import pytest

from eqjax.evaluation import equivariance
from tests.evaluation import tiny_models


@pytest.fixture(scope="module")
def model():
    return tiny_models.model()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 4 * 51, 3), np.uint8)


def test_shifts_by_whole_columns_are_exact_inside_a_strict_tokenizer(model, images):
    found = equivariance.shift_errors(model, images, [0, 2, 4, 12], 4 * 48)
    halo = model.tokenizer.halo_columns
    assert found.errors.shape == (4, 48) and 0 < halo < 22 and np.isfinite(found.psnr)
    np.testing.assert_array_equal(found.errors[0], 0)
    inside = slice(halo, 48 - halo - 3)
    assert found.errors[[2, 3], inside].max() < 1e-4
    assert found.errors[1, inside].min() > 0.01 and found.unrelated > 0.05  # Half a column.
    assert np.isnan(found.errors[3, 45:]).all() and np.isfinite(found.errors[3, :45]).all()
    assert found.errors[2, :2].max() > 1e-4  # The content left of the border differs.


def test_footprints_are_local_in_a_strict_tokenizer(model, images):
    maps = equivariance.footprints(model, images[:, :, : 4 * 48])
    assert maps.shape == (48, 16, 192)
    np.testing.assert_allclose(maps.sum((1, 2)), 1)
    halo, center = model.tokenizer.halo_columns, 24
    outside = np.ones(192, bool)
    outside[4 * (center - halo) : 4 * (center + halo + 1)] = False
    assert maps[center][:, outside].max() == 0
    fractions = equivariance.footprint_fractions(maps, 4, reach=(0, 1, halo))
    assert fractions[0] < fractions[1] <= fractions[halo] == pytest.approx(1)


def test_footprint_fractions_of_a_known_map():
    maps = np.zeros((3, 1, 6))
    maps[:, 0] = [[0.5, 0.5, 0, 0, 0, 0], [0, 0.1, 0.4, 0.4, 0.1, 0], [0, 0, 0, 0.2, 0.4, 0.4]]
    assert equivariance.footprint_fractions(maps, 2, reach=(0, 1)) == pytest.approx({0: (1 + 0.8 + 0.8) / 3, 1: 1})


def test_too_few_or_too_narrow_images_are_rejected(model, images):
    with pytest.raises(ValueError, match="need at least 2 images of 208 pixels; these are 3 of 204"):
        equivariance.shift_errors(model, images, [16], 192)
    with pytest.raises(ValueError, match="give at least 2"):
        equivariance.footprints(model, images[:1])
