"""The stereo pair: its true disparities, windows, and that aligned windows agree."""

import numpy as np
import pytest

from eqjax.equivariance import Codec, ColumnGeometry, StereoPair, load_stereo_pair, stereo_report
from eqjax.equivariance.stereo import find_windows
from tests.equivariance.toy_codecs import blind_codec, columns_codec, photograph_rows


@pytest.fixture(name="pair", scope="module")
def _pair():
    return load_stereo_pair(2)


def test_disparities_lead_from_the_left_image_to_the_right_one(pair):
    """Pixels at x − disparity look like those at x, better than those at x or on the other side."""
    rows, columns = np.nonzero(np.isfinite(pair.disparity[:, 40:-40]))
    columns, moves = columns + 40, np.round(pair.disparity[rows, columns + 40]).astype(int)
    left = pair.left[rows, columns].astype(float)
    errors = [np.abs(left - pair.right[rows, columns + sign * moves]).mean() for sign in (-1, 0, 1)]
    assert errors[0] < 0.6 * min(errors[1:])
    assert 0.9 < np.isfinite(pair.disparity).mean() < 0.95 and 3 < np.nanmin(pair.disparity) < 4
    full = load_stereo_pair()
    assert full.left.shape == (500, 741, 3) and full.disparity.shape == (500, 741)


def test_aligned_windows_agree(pair):
    report = stereo_report(columns_codec(stride=16, height=64), pair)
    assert len(report.aligned) > 20 and np.isfinite(report.psnr)
    assert report.aligned.mean() < 0.3 * report.unaligned.mean()
    assert report.precision > 0.9 > 2 * report.chance


def test_a_codec_that_ignores_images_agrees_everywhere_and_finds_nothing(pair):
    report = stereo_report(blind_codec(height=64, stride=16), pair, height=64)
    assert report.aligned.max() == report.unaligned.max() == 0 and report.psnr < 16


def test_windows_of_a_made_up_scene():
    """A plane 6 pixels away, seen at x in one image and at x − 6 in the other."""
    scene = (127.5 * (photograph_rows(1, 70)[0] + 1)).astype(np.uint8)
    pair = StereoPair(scene[:, :64], scene[:, 6:], np.full((16, 64), 6.0, np.float32))
    report = stereo_report(columns_codec(), pair)
    assert (report.disparities == 6).all() and report.aligned.max() == 0 < report.unaligned.min()
    assert report.precision == 1 and set(report.lefts) == set(range(8, 49, 4))
    uneven = pair.disparity.copy()
    uneven[:, :32] = np.nan
    uneven[:, 48:] = np.arange(16)
    tops, lefts, _ = find_windows(uneven, 16, 16, 4, 0.5)
    assert tops.tolist() == [0] and lefts.tolist() == [32]


def test_wrong_input_is_refused(pair):
    with pytest.raises(ValueError, match="no window of 64 × 256 pixels has a disparity that is constant to 0.1 pix"):
        stereo_report(columns_codec(16, 64), pair, columns=16, tolerance=0.1)
    no_height = Codec(columns_codec().encoder, columns_codec().decoder, ColumnGeometry(4))
    with pytest.raises(ValueError, match="give height"):
        stereo_report(no_height, pair)
    with pytest.raises(TypeError, match="pair=3 must be a StereoPair"):
        stereo_report(no_height, 3)
    with pytest.raises(ValueError, match="reduction=0 must be"):
        load_stereo_pair(0)
