"""Metrics against recorded values and closed forms, and rejected arguments."""

import tracemalloc
import zlib

import numpy as np
import pytest

from eqjax.evaluation import feature_metrics, fid


def data(tag, shape):
    return np.random.default_rng(zlib.crc32(tag.encode())).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def recorded(golden):
    """(generated features, reference features, logits, recorded values)."""
    with np.load(golden / "fid_tiny.npz") as arrays:
        values = {name.removeprefix("metrics/"): float(arrays[name]) for name in arrays if name.startswith("metrics/")}
    a, b = np.abs(data("feat-a", (600, 64))), np.abs(data("feat-b", (500, 64)) * np.float32(1.2) + np.float32(0.1))
    return a, b, data("logits", (600, 40)) * 2, values


def moments(features, batch):
    out = fid.Moments(features.shape[1])
    for start in range(0, len(features), batch):
        out.update(features[start : start + batch])
    return out.result()


@pytest.mark.parametrize("batch", [1, 70, 600])
def test_fid_is_the_recorded_one_in_any_batches(recorded, batch):
    a, b, _, values = recorded
    distance = fid.frechet_distance(*moments(a, batch), *moments(b, 500))
    assert distance == pytest.approx(values["fid"], rel=1e-5)


def test_moments_equal_numpy_and_survive_a_large_mean():
    x = 1e6 + np.random.default_rng(0).standard_normal((200, 5))
    mean, covariance = moments(x, 30)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(x, rowvar=False), rtol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_frechet_distance_of_commuting_covariances_without_full_rank(seed):
    a, b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 1.0, 2.0])
    expected = 3 * 0.25 + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))[0]
    covariances = (turn @ np.diag(a) @ turn.T, turn @ np.diag(b) @ turn.T)
    distance = fid.frechet_distance(np.zeros(3), covariances[0], np.full(3, 0.5), covariances[1])
    assert distance == pytest.approx(expected, rel=1e-9)
    assert fid.frechet_distance(np.zeros(3), covariances[0], np.zeros(3), covariances[0]) == pytest.approx(0, abs=1e-6)


def test_inception_score_shuffled_and_in_file_order(recorded):
    _, _, logits, values = recorded
    for seed, name in ((2020, "isc_mean"), (None, "isc_noshuffle_mean")):
        score = feature_metrics.InceptionScore(600, shuffle_seed=seed)
        for start in range(0, 600, 70):
            score.update(logits[start : start + 70])
        mean, deviation = score.result()
        assert mean == pytest.approx(values[name], rel=1e-7)
        if seed:
            assert deviation == pytest.approx(values["isc_std"], rel=1e-7)


def test_inception_score_of_sorted_certain_images():
    """Forty images of ten certain classes: exactly 10 together, and 1 if every split holds one class."""
    logits = np.where(np.repeat(np.arange(10), 4)[:, None] == np.arange(10), 2000.0, 0.0)
    one = feature_metrics.InceptionScore(40, num_splits=1)
    one.update(logits)
    assert one.result()[0] == pytest.approx(10, rel=1e-12)
    by_class = feature_metrics.InceptionScore(40, num_splits=10, shuffle_seed=None)
    by_class.update(logits)
    assert by_class.result() == (pytest.approx(1, rel=1e-12), pytest.approx(0, abs=1e-12))


def test_kid_and_precision_recall_are_the_recorded_ones(recorded):
    generated, reference, _, values = recorded
    mean, _ = feature_metrics.kid(generated, reference, num_subsets=20, subset_size=200)
    assert mean == pytest.approx(values["kid_mean"], rel=1e-5)
    for block in (2048, 77):
        precision, recall = feature_metrics.precision_recall(reference, generated, block_size=block)
        # Whole numbers of images: 582 of 600 and 61 of 500.
        assert (precision, recall) == (round(values["precision"] * 600) / 600, round(values["recall"] * 500) / 500)


def test_an_image_at_the_edge_of_a_ball_is_inside():
    """Points on a line; with one neighbor, the balls reach exactly to the next point, whatever the block."""
    reference = np.arange(5.0)[:, None] * np.ones((1, 3))
    generated = np.array([-1.0, -1.0001, 5.0, 5.0001, 2.5])[:, None] * np.ones((1, 3))
    for block in (1, 2, 2048):
        assert feature_metrics.precision_recall(reference, generated, num_neighbors=1, block_size=block)[0] == 0.6


def test_equal_sets_with_repeated_images_have_full_precision_and_recall():
    x = np.repeat(np.random.default_rng(0).standard_normal((30, 500)) * 100 + 50, 4, axis=0).astype(np.float32)
    assert feature_metrics.precision_recall(x, x[::-1], num_neighbors=3, block_size=17) == (
        1.0,
        1.0,
    )  # All radii are 0.


def test_frechet_distance_rejects_other_sizes_and_nan():
    with pytest.raises(ValueError, match="statistics of 3 and of 4 features cannot be compared"):
        fid.frechet_distance(np.zeros(3), np.eye(3), np.zeros(4), np.eye(4))
    with pytest.raises(ValueError, match="not finite; were there NaNs"):
        fid.frechet_distance(np.full(3, np.nan), np.eye(3), np.zeros(3), np.eye(3))


def test_moments_reject_nan_other_sizes_and_too_few_features():
    with pytest.raises(ValueError, match="features of 1 images are not finite"):
        fid.Moments(2).update(np.array([[0.0, np.nan], [1.0, 1.0]]))
    with pytest.raises(ValueError, match=r"shape \(1, 3\); expected \[N, 2\]"):
        fid.Moments(2).update(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least 2 images, but there are 0"):
        fid.Moments(2).result()


def test_inception_score_rejects_another_number_of_images():
    with pytest.raises(ValueError, match="of 10 splits needs at least 10 images, not 9"):
        feature_metrics.InceptionScore(9)
    score = feature_metrics.InceptionScore(10)
    score.update(np.zeros((9, 4)))
    with pytest.raises(ValueError, match="logits of 9 images arrived, fewer than num_images=10"):
        score.result()
    with pytest.raises(ValueError, match="more than num_images=10"):
        score.update(np.zeros((2, 4)))


def test_kid_and_precision_recall_reject_too_few_images_and_other_sizes():
    x = np.zeros((3, 2))
    with pytest.raises(ValueError, match="1000 images cannot be drawn from 3 and 3 .* 2 … 3"):
        feature_metrics.kid(x, x)
    with pytest.raises(ValueError, match="needs more than 3 images on either side; there are 3 and 3"):
        feature_metrics.precision_recall(x, x)
    with pytest.raises(ValueError, match=r"shapes \(3, 2\) and \(3, 3\) cannot be compared"):
        feature_metrics.kid(x, np.zeros((3, 3)))


def test_too_few_images_for_full_rank_are_reported(caplog):
    with caplog.at_level("WARNING"):
        fid.warn_if_few(65, 64, "reference")
        assert not caplog.records
        fid.warn_if_few(64, 64, "reference")
    assert "reference: 64 images give a covariance of rank 63 at most, for 64 features" in caplog.text


def test_memory_does_not_grow_with_the_number_of_images():
    def peak(count):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(500, 64)).astype(np.float32)
        tracemalloc.start()
        sums, score = fid.Moments(64), feature_metrics.InceptionScore(count)
        for _ in range(count // 500):
            sums.update(x)
            score.update(x[:, :20])
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    # 24 bytes an image at most, for the index of its split in the Inception Score; its features are 256.
    assert peak(50_000) - peak(1_000) < 24 * 50_000
