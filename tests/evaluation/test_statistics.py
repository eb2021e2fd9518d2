"""Statistics files: the three kinds, rejected files and comparisons, and interrupted writes."""

import dataclasses
import json
import os

import numpy as np
import pytest

from eqjax.evaluation import statistics
from eqjax.evaluation.statistics import Statistics, StatisticsError

PROTOCOL = {"network": "tiny", "resize": "none", "rounding": "8 bit", "image_size": [4, 4]}
STORED = {"features": "of 5 images, uniformly"}


@pytest.fixture(name="stats")
def _stats():
    rng = np.random.default_rng(0)
    return Statistics(
        rng.normal(size=3), np.eye(3), rng.normal(size=2), np.eye(2), 7, PROTOCOL | STORED, np.ones((5, 3), "f4")
    )


def test_saved_statistics_load_unchanged(tmp_path, stats):
    statistics.save(tmp_path / "s.npz", stats)
    loaded = statistics.load(tmp_path / "s.npz")
    for field in dataclasses.fields(stats):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(stats, field.name))
    with np.load(tmp_path / "s.npz") as file:  # What ADM's tools read.
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(file.files)


def test_files_of_other_tools_load(tmp_path, stats):
    np.savez(tmp_path / "plain.npz", mu=stats.mean, sigma=stats.covariance)
    np.savez(
        tmp_path / "adm.npz",
        arr_0=np.zeros((2, 4, 4, 3), np.uint8),
        mu=stats.mean.astype(np.float32),
        sigma=stats.covariance,
        mu_s=stats.spatial_mean,
        sigma_s=stats.spatial_covariance,
    )
    plain, adm = statistics.load(tmp_path / "plain.npz"), statistics.load(tmp_path / "adm.npz")
    assert plain.spatial_mean is None and plain.count is None and plain.protocol == {} and adm.features is None
    assert adm.mean.dtype == np.float64 and adm.spatial_mean.shape == (2,)
    assert set(statistics.compare(plain, stats)) == {"fid"}
    assert set(statistics.compare(adm, stats)) == {"fid", "sfid"}


def test_files_that_are_not_statistics_are_rejected(tmp_path, stats):
    with pytest.raises(FileNotFoundError, match="`eqjax make-statistics` computes one"):
        statistics.load(tmp_path / "absent.npz")
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(StatisticsError, match=r"holds the arrays \['arr_0'\]; .* needs mu and sigma. It holds images"):
        statistics.load(tmp_path / "images.npz")
    np.savez(tmp_path / "half.npz", mu=stats.mean, sigma=stats.covariance, mu_s=stats.mean)
    with pytest.raises(StatisticsError, match="one of mu_s and sigma_s"):
        statistics.load(tmp_path / "half.npz")
    np.savez(tmp_path / "shape.npz", mu=stats.mean, sigma=np.eye(4))
    with pytest.raises(StatisticsError, match=r"mu \(3,\) and sigma \(4, 4\) do not belong together"):
        statistics.load(tmp_path / "shape.npz")
    np.savez(tmp_path / "features.npz", mu=stats.mean, sigma=np.eye(3), features=np.zeros((2, 4)))
    with pytest.raises(StatisticsError, match=r"features \(2, 4\) do not belong to mu \(3,\)"):
        statistics.load(tmp_path / "features.npz")
    np.savez(tmp_path / "objects.npz", mu=np.array([object()]), sigma=np.eye(3))  # A pickle: never executed.
    with pytest.raises(StatisticsError, match="objects.npz cannot be read as npz"):
        statistics.load(tmp_path / "objects.npz")
    np.savez(tmp_path / "old.npz", mu=stats.mean, sigma=np.eye(3), protocol=json.dumps({"format": "other"}))
    with pytest.raises(StatisticsError, match="format 'other'; this version reads 'eqjax-statistics-1'"):
        statistics.load(tmp_path / "old.npz")
    statistics.save(tmp_path / "whole.npz", stats)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    with pytest.raises(StatisticsError, match="cut.npz cannot be read as npz .* truncated"):
        statistics.load(tmp_path / "cut.npz")


def test_values_that_are_not_finite_and_damaged_bytes_are_rejected(tmp_path, stats):
    for name, value in (("mu", np.nan), ("sigma", np.inf), ("features", -np.inf)):
        arrays = dict(mu=stats.mean.copy(), sigma=np.eye(3), features=np.ones((7, 3)))
        arrays[name].flat[1] = value
        np.savez(tmp_path / "s.npz", **arrays)
        with pytest.raises(StatisticsError, match=rf"s.npz: 1 of \d+ values of {name} are NaN or infinite"):
            statistics.load(tmp_path / "s.npz")
    np.savez(tmp_path / "s.npz", mu=np.array(["a", "b"]), sigma=np.eye(2))
    with pytest.raises(StatisticsError, match="mu is <U1; numbers are expected"):
        statistics.load(tmp_path / "s.npz")
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "s.npz", mu=stats.mean, sigma=np.random.default_rng(0).normal(size=(3, 3)))
        damaged = bytearray((tmp_path / "s.npz").read_bytes())
        damaged[damaged.index(b"sigma.npy") + 100] ^= 0xFF
        (tmp_path / "s.npz").write_bytes(damaged)
        with pytest.raises(StatisticsError, match="s.npz cannot be read as npz"):
            statistics.load(tmp_path / "s.npz")


def test_interrupted_writing_leaves_what_was_there(tmp_path, stats):
    statistics.save(tmp_path / "s.npz", stats)

    class Interrupted:
        def __array__(self, *args, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        statistics.save(tmp_path / "s.npz", dataclasses.replace(stats, covariance=Interrupted()))
    assert os.listdir(tmp_path) == ["s.npz"]
    assert statistics.load(tmp_path / "s.npz").count == 7


def test_other_sizes_and_protocols_cannot_be_compared(stats):
    sizes = {"pool": 3, "spatial": 2}
    statistics.check_comparable(stats, PROTOCOL, sizes)
    statistics.check_comparable(dataclasses.replace(stats, protocol={}), PROTOCOL, sizes)
    with pytest.raises(StatisticsError, match="of 3 pool features, this network gives 2048"):
        statistics.check_comparable(stats, PROTOCOL, {"pool": 2048, "spatial": 2})
    with pytest.raises(StatisticsError, match="of 2 spatial features, this network gives 2023"):
        statistics.check_comparable(stats, PROTOCOL, {"pool": 3, "spatial": 2023})
    with pytest.raises(StatisticsError, match=r"another protocol(.|\n)*resize: reference 'none', here 'bicubic'"):
        statistics.check_comparable(stats, {**PROTOCOL, "resize": "bicubic"}, sizes)


def test_too_few_images_are_logged_with_their_number(stats, caplog):
    few = dataclasses.replace(stats, count=3)
    with caplog.at_level("WARNING"):
        statistics.compare(stats, few)
    assert "evaluated: 3 images give a covariance of rank 2 at most, for 3 features" in caplog.text
