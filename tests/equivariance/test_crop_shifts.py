"""Shift errors with real content: of tokenizers with norms of positions and of whole images."""

import numpy as np
import pytest

from eqjax.equivariance import Codec, crop_shift_errors
from tests.equivariance.toy_codecs import blind_codec, photograph_rows, tokenizer_codec

IMAGES = photograph_rows(3, 4 * 51)


def test_whole_columns_are_exact_inside_a_strict_tokenizer_and_not_with_group_norm():
    codec, halo = tokenizer_codec("pixel")
    found = crop_shift_errors(codec, IMAGES, [0, 2, 4, 12], 4 * 48)
    assert found.errors.shape == (4, 48) and 0 < halo < 22 and np.isfinite(found.psnr)
    np.testing.assert_array_equal(found.errors[0], 0)
    inside = slice(halo, 48 - halo - 3)
    assert found.errors[[2, 3], inside].max() < 1e-4
    assert found.errors[1, inside].min() > 0.01 and found.unrelated > 0.05  # Half a column.
    assert np.isnan(found.errors[3, 45:]).all() and np.isfinite(found.errors[3, :45]).all()
    assert found.errors[2, :2].max() > 1e-4  # The content left of the border differs.
    whole = Codec(tokenizer_codec("group")[0].encoder, blind_codec().decoder, codec.geometry)
    of_images = crop_shift_errors(whole, IMAGES, [12], 4 * 48)
    assert np.mean(of_images.errors[0, inside]) > 100 * np.mean(found.errors[3, inside])


def test_too_few_or_too_narrow_images_are_refused():
    codec, _ = tokenizer_codec()
    with pytest.raises(ValueError, match="need at least 2 images of 208 pixels; these are 3 of 204"):
        crop_shift_errors(codec, IMAGES, [16], 192)
    with pytest.raises(ValueError, match="these are 1 of 204"):
        crop_shift_errors(codec, IMAGES[:1], [4], 192)
    with pytest.raises(ValueError, match="shifts is empty"):
        crop_shift_errors(codec, IMAGES, [], 192)
