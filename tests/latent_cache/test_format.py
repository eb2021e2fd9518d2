"""Files of a cache: reading records, drawing variants, and messages about damaged files."""

import json
import pickle
from typing import Any

import numpy as np
import pytest

from eqjax.data import CacheError, LatentSource, make_iterator
from eqjax.latent_cache.format import (
    CacheSpec,
    RandomVariant,
    decode_record,
    encode_record,
    read_cache_json,
    write_cache_json,
)
from tests import bit_flips
from tests.latent_cache.tiny_cache import cache_config


@pytest.fixture(name="spec")
def _spec():
    return CacheSpec(
        encoder_fingerprint="0" * 64,
        encoder_fields={"embed_dim": 2},
        data={"source": "photos", "height": 16, "width": 24},
        split="train",
        num_images=7,
        class_names=("ant", "bee"),
        num_crops=3,
        flips=True,
        shape=(3, 2),
        dtype="float16",
        shard_size=5,
        seed=0,
    )


def test_spec_survives_json(spec):
    assert CacheSpec.from_dict({**json.loads(json.dumps(spec.to_dict())), "latent_scale": 1.0}, "file") == spec


def test_spec_counts_variants_and_shards(spec):
    assert (spec.num_variants, spec.num_shards) == (6, 2)
    assert [list(spec.image_range(shard)) for shard in range(2)] == [[0, 1, 2, 3, 4], [5, 6]]
    assert spec.shard_name(1) == "latents-00001-of-00002"


def test_record_survives_encoding(spec):
    latents = np.arange(6, dtype=np.float16).reshape(3, 2)
    record = decode_record(encode_record(latents, 300), spec)
    np.testing.assert_array_equal(record["latents"], latents)
    assert record["label"] == 300 and record["latents"].dtype == np.float16


def test_pickled_source_reads_the_same_record(caches):
    source = LatentSource(caches / "train")
    record, copied = source[5], pickle.loads(pickle.dumps(source))[5]
    assert record["label"] == copied["label"] and record["latents"].tobytes() == copied["latents"].tobytes()


def test_iterator_draws_variants_and_resumes(caches, config):
    config = cache_config(config, caches / "train", num_threads=0)
    options: Any = dict(batch_size=100, seed=0, process_index=0, process_count=1)
    with make_iterator(config, **options) as iterator:
        batches = [next(iterator) for _ in range(2)]
        state = iterator.get_state()
        batches += [next(iterator) for _ in range(2)]
    with make_iterator(config, **options) as iterator:
        iterator.set_state(state)
        for batch in batches[2:]:
            resumed = next(iterator)
            assert all((resumed[name] == batch[name]).all() for name in ("latents", "label"))
    source = LatentSource(caches / "train")
    where = {source.read(i, v)["latents"].tobytes(): (i, v) for i in range(200) for v in range(4)}
    epochs = [[where[x.tobytes()] for b in batches[k : k + 2] for x in b["latents"]] for k in (0, 2)]
    for epoch in epochs:
        assert sorted(i for i, _ in epoch) == list(range(200))  # Every image once.
        assert min(np.bincount([v for _, v in epoch], minlength=4)) > 25
    assert sorted(epochs[0]) != sorted(epochs[1])


def test_variants_without_flip_are_never_mirrored(caches):
    source = LatentSource(caches / "train")
    plain = {source.read(5, variant)["latents"].tobytes() for variant in (0, 2)}
    pick = RandomVariant(source, flip=False)
    assert {pick(5, np.random.default_rng(i))["latents"].tobytes() for i in range(20)} == plain


def test_flip_needs_a_cache_with_flips(caches, config):
    with pytest.raises(CacheError, match="flip=True, but the cache .* flips=False"):
        make_iterator(cache_config(config, caches / "eval"), batch_size=4, seed=0, process_index=0, process_count=1)


def test_damaged_record_is_named_and_others_stay_readable(copy):
    shard = copy / "latents-00001-of-00003.array_record"
    content = shard.read_bytes()
    damaged = bytearray(content)
    first = content.index(LatentSource(copy).read(80, 0)["latents"].tobytes()[:32])
    damaged[first : first + 16] = bytes(16)
    shard.write_bytes(damaged)
    source = LatentSource(copy)
    with pytest.raises(CacheError, match=r"Record 0 of .*latents-00001-of-00003.array_record cannot be read .*Delete"):
        source[80]
    assert source[160]["label"] == 0


def test_truncated_shard_is_named(copy):
    shard = copy / "latents-00001-of-00003.array_record"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(CacheError, match=f"has {len(content) // 2} bytes; the manifest expects {len(content)} bytes"):
        LatentSource(copy)


def test_missing_shard_is_named(copy):
    (copy / "latents-00001-of-00003.array_record").unlink()
    with pytest.raises(CacheError, match="00001-of-00003.array_record is missing"):
        LatentSource(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "manifest.json is not JSON .* Delete it. Run the same eqjax cache-latents"),
        ("[]", "manifest.json holds list, expected an object"),
        ("[" * 9999, "manifest.json is not JSON .it is nested more than 64 deep"),
        ('{"format": "x"}', "manifest.json is damaged, as its checksum differs. Delete it. Run the same"),
    ],
)
def test_damaged_manifest_is_named(copy, content, message):
    (copy / "manifest.json").write_text(content)
    with pytest.raises(CacheError, match=message):
        LatentSource(copy)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", "x", "has format 'x' .*expected 'eqjax-latents-1'"),
        ("num_images", 10**15, "num_images is 1000000000000000, which no cache has"),
        ("num_images", 10**9, "does not list the shard latents-00000-of-12500000"),
        ("shard_size", 0, "shard_size is 0"),
        ("num_crops", True, "num_crops is True"),
        ("shape", [6], r"shape is \[6\]"),
        ("shape", [6, 9], "Record 0 of .* cannot be read"),
        ("dtype", ["x"], r"dtype is \['x'\]"),
        ("class_names", "abc", "class_names is 'abc'"),
        ("data", {}, "data is {}"),
        ("shards", [], "lists no shards, or no latent_scale"),
        ("latent_scale", -1.0, "lists no shards, or no latent_scale"),
    ],
)
def test_signed_manifests_of_other_types_or_numbers_are_refused_by_field(copy, name, value, message):
    path = str(copy / "manifest.json")
    write_cache_json(path, {**read_cache_json(path), name: value})
    with pytest.raises(CacheError, match=message):
        _ = LatentSource(copy)[0]


def records(root):
    source = LatentSource(root)
    read = [source.read(i, v) for i in range(len(source)) for v in range(source.spec.num_variants)]
    return source.spec, source.manifest, [(record["latents"].tobytes(), record["label"]) for record in read]


@pytest.mark.parametrize("name", ["manifest.json", "latents-00001-of-00003.array_record"])
def test_flipped_bits_of_a_cache_are_found_or_change_nothing(copy, name):
    spec, manifest, expected = records(copy)
    found = 0
    for place, bit in bit_flips.flipped(copy / name, 60):
        try:
            assert records(copy) == (spec, manifest, expected), f"bit {bit} of byte {place} of {name}"
        except CacheError:
            found += 1
    assert found > 20  # A shard has gaps between its blocks.


def test_missing_folder_is_named(copy):
    with pytest.raises(FileNotFoundError, match="is not a folder; expected a cache"):
        LatentSource(copy / "no_such")


def test_incomplete_cache_counts_its_complete_shards(copy):
    (copy / "manifest.json").unlink()
    (copy / "latents-00001-of-00003.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no manifest.json: .*\(complete shards: 2\).*Run the same"):
        LatentSource(copy)
