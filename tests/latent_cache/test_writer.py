"""Writing shards and the manifest."""

import dataclasses
import os
import resource

import numpy as np
import pytest

from eqjax.data import CacheError, LatentSource
from eqjax.io import read_json
from eqjax.latent_cache.writer import CacheWriter


@pytest.fixture(name="writer")
def _writer(caches, tmp_path):
    """Three images with one variant [6, 8], in shards of two."""
    spec = LatentSource(caches / "eval").spec
    return CacheWriter(str(tmp_path / "new"), dataclasses.replace(spec, num_images=3, shard_size=2))


def _records(count, value=2.0):
    return [(np.full((6, 8), value, np.float16), label) for label in range(count)]


def test_cache_is_complete_with_its_last_shard(writer):
    writer.open()
    writer.write_shard(0, _records(2))
    assert writer.is_complete(0) and not writer.is_complete(1) and not writer.write_manifest(0.0)
    writer.write_shard(1, _records(1))
    assert writer.write_manifest(5.0)
    source = LatentSource(writer.root)
    assert [source[i]["label"] for i in range(3)] == [0, 1, 0]
    assert source.manifest["latent_scale"] == pytest.approx((4 + 5) ** -0.5)


def test_leftovers_of_killed_processes_are_removed_at_the_next_start(writer):
    writer.open()
    writer.write_shard(0, _records(2))
    files = sorted(os.listdir(writer.root))
    for name in ("latents-00001-of-00002.array_record", "latents-00000-of-00002.json", "spec.json", "manifest.json"):
        path = f"{writer.root}/{name}.k3v_x9ab.tmp"
        with open(path, "w", encoding="utf-8") as file:
            file.write("half")
        os.utime(path, (0, 0))
    with open(f"{writer.root}/latents-00001-of-00002.array_record.aaaaaaaa.tmp", "w", encoding="utf-8"):
        pass  # Just begun by another process.
    writer.open()
    assert sorted(os.listdir(writer.root)) == sorted([*files, "latents-00001-of-00002.array_record.aaaaaaaa.tmp"])


def test_shard_of_another_size_than_its_statistics_is_incomplete(writer):
    writer.open()
    writer.write_shard(0, _records(2))
    path = f"{writer.root}/latents-00000-of-00002"
    statistics = read_json(f"{path}.json")
    with open(f"{path}.array_record", "ab") as file:
        file.write(b"more")
    assert not writer.is_complete(0) and statistics["records"] == 2 and statistics["mean_square"] == 4.0


def test_wrong_number_of_records_is_refused(writer):
    writer.open()
    writer.write_shard(0, _records(2))
    writer.write_shard(1, _records(2))
    with pytest.raises(CacheError, match="holds 4 records, expected 3 × 1"):
        writer.write_manifest(0.0)


def test_latents_that_are_not_finite_are_refused(writer):
    writer.open()
    with pytest.raises(CacheError, match=r"record 0 of .*latents-00001.* not finite in float16; try bfloat16"):
        writer.write_shard(1, _records(1, np.inf))
    assert not writer.is_complete(1)


def test_a_full_disk_is_an_error_and_leaves_nothing(writer):
    writer.open()
    records = [(np.random.RandomState(0).normal(size=(600, 8)).astype(np.float16), 0)] * 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"the cache could not be written: .*latents-00000-of-00002"):
            writer.write_shard(0, records)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(writer.root) == ["spec.json"]
