"""Statistics files: the three kinds, rejected files and comparisons, and interrupted writes."""

import dataclasses
import json
import os
import zipfile

import numpy as np
import pytest

from eqjax import npz
from eqjax.evaluation import statistics
from eqjax.evaluation.statistics import Statistics, StatisticsError
from tests import bit_flips, hostile_files

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
    assert adm.mean.dtype == np.float64 and adm.spatial_mean is not None and adm.spatial_mean.shape == (2,)
    assert set(statistics.compare(plain, stats)) == {"fid"}
    assert set(statistics.compare(adm, stats)) == {"fid", "sfid"}


MU, SIGMA = np.ones(3), np.eye(3)


def header(**fields):
    return json.dumps({"format": "eqjax-statistics-1", **fields})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            dict(arr_0=np.zeros((2, 4, 4, 3), np.uint8)),
            r"holds the arrays \['arr_0'\]; .* needs mu and sigma. It holds images",
        ),
        (dict(mu=MU, sigma=SIGMA, mu_s=MU), "one of mu_s and sigma_s"),
        (dict(mu=MU, sigma=np.eye(4)), r"mu \(3,\) and sigma \(4, 4\) do not belong together"),
        (dict(mu=MU, sigma=SIGMA, features=np.zeros((2, 4))), r"features \(2, 4\) do not belong to mu \(3,\)"),
        (dict(mu=np.array([object()]), sigma=SIGMA), "s.npz cannot be read as npz"),  # A pickle: never executed.
        (
            dict(mu=MU, sigma=SIGMA, protocol=json.dumps({"format": "other"})),
            "format 'other'; this version reads 'eqjax-statistics-1'",
        ),
        (dict(mu=MU, sigma=SIGMA, protocol="{"), "the protocol inside .* is not JSON"),
        (dict(mu=MU * [1, np.nan, 1], sigma=SIGMA), "s.npz: 1 of 3 values of mu are NaN or infinite"),
        (dict(mu=MU, sigma=np.diag([np.inf, 1, 1])), r"s.npz: \d of 9 values of sigma are NaN or infinite"),
        (
            dict(mu=MU, sigma=SIGMA, features=np.full((1, 3), -np.inf)),
            "s.npz: 3 of 3 values of features are NaN or inf",
        ),
        (dict(mu=np.array(["a", "b"]), sigma=np.eye(2)), "mu is <U1; numbers expected"),
        (dict(mu=MU, sigma=SIGMA, protocol=np.array(3)), "protocol is int64; text expected"),
        (dict(mu=MU, sigma=SIGMA, protocol=["a"]), r"protocol has shape \(1,\); expected 0 axes"),
        (
            dict(mu=MU, sigma=SIGMA, protocol="[" * 5000),
            "the protocol inside .* is not JSON .it is nested more than 64",
        ),
        (dict(mu=MU, sigma=SIGMA, protocol="[" * 66 + "]" * 66), "is not JSON .it is nested more than 64 deep"),
        (dict(mu=MU, sigma=SIGMA, protocol="x" * 2**18 + "x"), "protocol has 1048708 bytes; at most 1048576 are read"),
        (dict(mu=MU, sigma=SIGMA, protocol=header(count="5")), "count is '5'; expected a number of images"),
        (dict(mu=MU, sigma=SIGMA, protocol=header(count=True)), "count is True"),
        (dict(mu=MU, sigma=SIGMA, protocol=header(count=-1)), "count is -1"),
        (dict(mu=MU, sigma=SIGMA, protocol=header(protocol=[1])), r"protocol is \[1\]; expected its entries by name"),
    ],
)
def test_files_that_are_not_statistics_are_rejected(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(StatisticsError, match=message):
        statistics.load(tmp_path / "s.npz")


def test_a_missing_file_is_reported_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="`eqjax make-statistics` computes one"):
        statistics.load(tmp_path / "absent.npz")


def test_a_truncated_file_is_rejected(tmp_path, stats):
    statistics.save(tmp_path / "whole.npz", stats)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    with pytest.raises(StatisticsError, match="cut.npz cannot be read as npz .* truncated"):
        statistics.load(tmp_path / "cut.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_byte_is_found(tmp_path, save):
    save(tmp_path / "s.npz", mu=MU, sigma=np.random.default_rng(0).normal(size=(3, 3)))
    damaged = bytearray((tmp_path / "s.npz").read_bytes())
    damaged[damaged.index(b"sigma.npy") + 100] ^= 0xFF
    (tmp_path / "s.npz").write_bytes(damaged)
    with pytest.raises(StatisticsError, match="s.npz cannot be read as npz"):
        statistics.load(tmp_path / "s.npz")


def test_flipped_bits_are_found_or_change_nothing(tmp_path, stats):
    path, refused = tmp_path / "s.npz", 0
    statistics.save(path, stats)
    for place, bit in bit_flips.flipped(path, 300):
        try:
            loaded = statistics.load(path)
        except StatisticsError:
            refused += 1
            continue
        for field in dataclasses.fields(stats):
            name = f"{field.name} after bit {bit} of byte {place}"
            np.testing.assert_array_equal(getattr(loaded, field.name), getattr(stats, field.name), err_msg=name)
    assert 150 < refused < 300  # Dates and the like may change.


@pytest.mark.parametrize("change", [{"features": None}, {"mu": np.ones(3)}, {"count": 8}, {"protocol": {}}])
def test_exchanged_parts_of_intact_archives_are_found(tmp_path, stats, change):
    statistics.save(tmp_path / "s.npz", stats)
    with np.load(tmp_path / "s.npz") as file:
        arrays = dict(file)
    header = json.loads(str(arrays["protocol"]))
    for name, value in change.items():
        if name in header:
            header[name] = value
        elif value is None:
            del arrays[name]
        else:
            arrays[name] = value
    np.savez(tmp_path / "s.npz", **{**arrays, "protocol": json.dumps(header)})
    with pytest.raises(StatisticsError, match=r"s\.npz is damaged: .* checksum differs"):
        statistics.load(tmp_path / "s.npz")


def test_interrupted_writing_keeps_the_previous_file(tmp_path, stats, monkeypatch):
    statistics.save(tmp_path / "s.npz", stats)

    def interrupt(file, **_):
        file.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        statistics.save(tmp_path / "s.npz", dataclasses.replace(stats, count=8))
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


def write_npz(path, method=zipfile.ZIP_DEFLATED, names=(), **entries):
    entries = {"mu": hostile_files.npy("<f8", (3,), MU.tobytes()), **entries}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in [*entries.items(), *((name, b"") for name in names)]:
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    ("kind", "shape", "size", "message"),
    [
        ("<f8", (3, 3), 64, r"sigma \(3, 3\) of float64 does not have the 192 bytes that the file declares"),
        ("<f8", (2**31, 2**31), 72, r"mu \(3,\) and sigma|sigma \(2147483648, 2147483648\) of float64 does not have"),
        ("<f8", (-3, -3), 72, r"sigma has shape \(-3, -3\)"),
        ("<f8", (9,), 72, r"sigma has shape \(9,\); expected 2 axes"),
        ("<f8", (1,) * 1000, 8, "cannot be read as npz|expected 2 axes"),
        ("|V8", (3, 3), 72, "sigma is .*V8.*; numbers expected"),
    ],
)
def test_headers_that_contradict_their_arrays_are_refused(tmp_path, kind, shape, size, message):
    path = write_npz(tmp_path / "s.npz", sigma=hostile_files.npy(kind, shape, bytes(size)))
    with pytest.raises(StatisticsError, match=rf"s\.npz.*({message})") as error:
        statistics.load(path)
    assert len(str(error.value)) < 1000


def test_a_small_file_of_many_zeros_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    size = 2000  # 32 MB, in 32 kB.
    content = {"mu": np.zeros(size), "sigma": np.zeros((size, size))}
    content = {name: hostile_files.npy("<f8", a.shape, a.tobytes()) for name, a in content.items()}
    path = write_npz(tmp_path / "s.npz", **content)
    assert os.path.getsize(path) < 10**5
    monkeypatch.setattr(npz.Npz, "read", None)
    with pytest.raises(StatisticsError, match=r"s\.npz of \d+ bytes declares arrays of 32\d+ bytes: .* refused"):
        statistics.load(path)
    write_npz(path, zipfile.ZIP_STORED, **content)
    monkeypatch.setattr(statistics, "MAX_BYTES", 2**24)
    with pytest.raises(StatisticsError, match="more than 64 times its size, or than 16777216"):
        statistics.load(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("method", "names", "message"),
    [
        (zipfile.ZIP_BZIP2, [], "mu is compressed by method 12"),
        (zipfile.ZIP_LZMA, [], "mu is compressed by method 14"),
        (zipfile.ZIP_STORED, ["mu"], "mu occurs twice"),
    ],
)
def test_odd_entries_are_refused(tmp_path, method, names, message):
    with pytest.raises(StatisticsError, match=rf"s\.npz: {message}"):
        statistics.load(write_npz(tmp_path / "s.npz", method, names))


def test_encrypted_entries_are_refused(tmp_path):
    content = bytearray(write_npz(tmp_path / "s.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(StatisticsError, match=r"s\.npz: mu is encrypted"):
        statistics.load(tmp_path / "s.npz")


def test_a_single_array_is_named(tmp_path):
    np.save(tmp_path / "mu.npy", MU)
    with pytest.raises(StatisticsError, match=r"mu\.npy cannot be read as npz .* It holds a single array \(\.npy\)"):
        statistics.load(tmp_path / "mu.npy")
