"""Checksums notice every flipped bit, and files that are lost, short or changed."""

import json

import numpy as np
import pytest

from eqjax import checksums


@pytest.mark.parametrize("size", [1, 7, 8 << 10, 100_003, (256 << 10) + 8_200])
def test_every_flipped_bit_changes_the_checksum(size):
    rng = np.random.default_rng(size)
    data = rng.integers(0, 256, size, dtype=np.uint8)
    before = checksums.update(0, data)
    for place in {0, size - 1, *rng.integers(0, size, 20)}:
        flipped = data.copy()
        flipped[place] ^= 1 << rng.integers(8)
        assert checksums.update(0, flipped) != before
    assert checksums.update(0, data.tobytes()) == before
    assert checksums.update(0, np.append(data, np.uint8(0))) != before
    assert checksums.update(before, data) != before


def test_names_dtypes_shapes_and_fields_are_part_of_the_checksum():
    arrays = {"a": np.zeros(4, np.float32), "b": np.zeros((), np.float32)}
    others = (
        {"a": arrays["a"], "c": arrays["b"]},
        {"a": np.zeros((2, 2), np.float32), "b": arrays["b"]},
        {"a": np.zeros(4, np.int32), "b": arrays["b"]},
    )
    sums = {checksums.of_arrays(values, {"x": 1.0}) for values in (arrays, *others)}
    assert len(sums | {checksums.of_arrays(arrays, {"x": 2.0})}) == 5
    assert checksums.of_arrays(dict(reversed(arrays.items())), {"x": 1.0}) in sums


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two large files of three chunks each, and a small one."""
    monkeypatch.setattr(checksums, "_CHUNK", 512 << 10)
    rng = np.random.default_rng(0)
    for name, size in (("a", 1_300_000), ("b", 1_300_000), ("small", 1_000)):
        (tmp_path / name).write_bytes(rng.bytes(size))
    checksums.write(tmp_path, checksums.of_files(str(tmp_path), ["a", "b", "small"]))
    return tmp_path


@pytest.mark.parametrize("place", [0, 600_000, 1_299_999])
def test_damage_in_a_large_file_is_seen_by_one_of_the_processes(folder, place):
    checksums.check(folder)
    content = bytearray((folder / "b").read_bytes())
    content[place] ^= 1
    (folder / "b").write_bytes(content)
    seen = []
    for index in range(2):
        try:
            checksums.check(folder, index, 2)
        except checksums.ChecksumError as error:
            seen.append(str(error))
    assert len(seen) == 1 and f"{folder / 'b'} has another content" in seen[0]


def test_damage_in_a_small_file_is_seen_by_all_processes(folder):
    (folder / "small").write_bytes(b"0" * 1_000)
    for index in range(2):
        with pytest.raises(checksums.ChecksumError, match="small has another content"):
            checksums.check(folder, index, 2)


def test_lost_and_short_files_and_damaged_checksums_are_refused(folder):
    (folder / "new").write_bytes(b"")
    checksums.check(folder)  # Other files do not matter.
    (folder / "a").write_bytes(b"123")
    with pytest.raises(checksums.ChecksumError, match="a has 3 bytes; 1300000 bytes were written"):
        checksums.check(folder)
    (folder / "a").unlink()
    with pytest.raises(checksums.ChecksumError, match="a is lost; 1300000"):
        checksums.check(folder)
    path = folder / checksums.FILE_NAME
    saved = json.loads(path.read_text())
    del saved["files"]["a"]
    path.write_text(json.dumps(saved))
    with pytest.raises(checksums.ChecksumError, match="checksums.json is damaged"):
        checksums.check(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        checksums.check(folder)
