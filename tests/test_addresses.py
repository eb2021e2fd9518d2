"""Addresses in buckets: weights are copied from there, and everything else is refused with a sentence."""

import os
import pathlib
import types
from typing import Any, cast

from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
import pytest

from eqjax import addresses, io, load_pretrained, loading, pretrained
from eqjax.data import folder, tfds, webdataset
from eqjax.evaluation import SampleFolder, features, results
from eqjax.evaluation.protocol import weights_id
from eqjax.latent_cache import format as cache_format
from eqjax.latent_cache import writer
from tests.sampling.small_models import local_model
from tests.training import toy_runs, toy_trainer


@pytest.mark.parametrize("path", ["run", "/a/b", "a:b", "C:/a", "", "1://a", "a//b"])
def test_paths_have_no_scheme(path):
    assert addresses.scheme(path) is None and addresses.local_path(path, "the file") == path


@pytest.mark.parametrize("path", ["gs://bucket/run", "S3://bucket", "hf://owner/name", "https://a.org/b"])
def test_addresses_are_refused_with_the_way_out(path):
    with pytest.raises(ValueError, match=f"the file is {path}; expected a path of a file system, .* Mount the bucket"):
        addresses.local_path(path, "the file")
    with pytest.raises(ValueError, match="Leave file:// out"):
        addresses.local_path("file:///a", "the file")


def write(path):
    with io.atomic_write(path):
        pass


@pytest.mark.parametrize(
    "use",
    [
        write,
        lambda path: toy_runs.train(path, toy_trainer.config()),
        lambda path: results.load(path),
        lambda path: SampleFolder(path, 1, 1),
        lambda path: features._memory_mapped((1, 1), path),
        lambda path: folder.find_class_root(path),
        lambda path: webdataset.find_shards(path),
        lambda path: tfds.find_version(path),
        lambda path: cache_format.load_manifest(path),
        lambda path: writer.CacheWriter.open(cast(Any, types.SimpleNamespace(root=path))),
    ],
    ids=["file", "workdir", "results", "samples", "features", "images", "archives", "prepared", "cache", "new cache"],
)
def test_places_that_need_a_file_system_make_no_folder_of_an_address(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="gs://bucket/run.*; expected a path of a file system, gs:// is not supported"):
        use("gs://bucket/run")
    assert not os.listdir(tmp_path)


@pytest.fixture(name="bucket")
def _bucket(monkeypatch, tmp_path):
    """Keeps gs://bucket in memory, and copies in a folder of the test; returns a function that writes the model."""
    memory = MemoryFileSystem()
    memory.store.clear()

    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda _: memory)
    monkeypatch.setenv("EQJAX_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def put(scale):
        model = local_model()
        weights = pretrained.Weights({"tokenizer": model.tokenizer}, {"tokenizer": model.tokenizer_params}, scale)
        pretrained.save(tmp_path / "model.safetensors", weights)
        memory.pipe("gs://bucket/run/model.safetensors", (tmp_path / "model.safetensors").read_bytes())
        os.unlink(tmp_path / "model.safetensors")

    return put


def test_weights_are_copied_from_a_bucket_and_again_when_they_change(bucket, tmp_path):
    bucket(0.5)
    found = load_pretrained("gs://bucket/run")
    assert weights_id(found) == weights_id(load_pretrained("gs://bucket/run/model.safetensors"))
    assert len(list((tmp_path / "cache" / "buckets").glob("*/model.safetensors"))) == 1
    assert os.listdir(tmp_path) == ["cache"]
    bucket(0.123456789012345)  # The file is longer: a bucket's times may be whole seconds.
    assert (found.latent_scale, load_pretrained("gs://bucket/run").latent_scale) == (0.5, 0.123456789012345)


def test_a_damaged_copy_names_itself(bucket):
    bucket(0.5)
    path = loading.resolve_path("gs://bucket/run")
    content = bytearray(pathlib.Path(path).read_bytes())
    content[-1] ^= 1
    pathlib.Path(path).write_bytes(content)
    with pytest.raises(
        pretrained.WeightsError, match=f"a copy of gs://bucket/run: delete {path}, and it is made again"
    ):
        load_pretrained("gs://bucket/run")


def test_what_is_not_in_the_bucket_and_other_addresses_are_refused(bucket):
    del bucket
    with pytest.raises(FileNotFoundError, match="no weights file at gs://bucket/none"):
        load_pretrained("gs://bucket/none")
    with pytest.raises(ValueError, match="ftp://a/b is no address of weights: expected a path, hf://owner/name"):
        load_pretrained("ftp://a/b")


def test_a_bucket_without_its_package_says_which_one(monkeypatch):
    def missing(name):
        raise ImportError(f"no package for {name}")

    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", missing)
    with pytest.raises(OSError, match="s3://bucket/run cannot be read .* gs:// needs the package gcsfs"):
        load_pretrained("s3://bucket/run")
