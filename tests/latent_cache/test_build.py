"""Building a cache: its records, its completion after a kill, and training on it."""

import contextlib
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import photos_generator
from eqjax import pixels, pretrained
from eqjax.data import CacheError, LatentSource, datasets, make_iterator
from eqjax.io import atomic_write
from eqjax.latent_cache import build, check, writer
from eqjax.latent_cache.encode import noise_mean_square
from eqjax.training import generator
from tests.latent_cache.tiny_cache import OPTIONS, cache_config


def _contents(root):
    return {path.name: path.read_bytes() for path in pathlib.Path(root).iterdir()}


@pytest.mark.parametrize("index", [0, 79, 80, 199])
def test_records_are_the_encoded_crops(caches, config, weights, index):
    source = LatentSource(caches / "train")
    tokenizer, params = weights.modules["tokenizer"], weights.params["tokenizer"]
    encode = jax.jit(lambda x: tokenizer.apply({"params": params}, pixels.from_uint8(x), method="encode").mode())
    image, crops = datasets.make_source(config)[index], []
    for number in range(2):
        crop = datasets.random_crop(config)(image, np.random.default_rng((3, index, number)))["image"]
        crops += [crop, crop[:, ::-1]]
    records = [source.read(index, variant) for variant in range(4)]
    stored = np.stack([record["latents"] for record in records]).astype(np.float32)
    np.testing.assert_allclose(stored, encode(np.stack(crops)), rtol=2**-8, atol=1e-5)
    assert {record["label"] for record in records} == {index % 2}
    assert source.class_names == ("brick", "coffee") and len(source) == 200


def _run_config(data, weights_path):
    run = photos_generator.get_config("tiny")
    run.data = data
    run.generator.num_classes = 2
    run.update(tokenizer_weights=str(weights_path), batch_size=16, eval_images=32)
    return run


@pytest.mark.slow
def test_training_from_a_cache_equals_training_from_images(caches, config, weights, tmp_path):
    """The same draws give the same loss, and the step accepts batches of the cache."""
    path = tmp_path / "tokenizer.safetensors"
    pretrained.save(path, weights)
    from_images = generator.GeneratorTrainer(_run_config(config, path), "")
    data = cache_config(config, caches / "train", eval_root=str(caches / "eval"))
    run = _run_config(data, path)
    from_cache = generator.GeneratorTrainer(run, "")
    state = jax.jit(from_images.init_state)(jax.random.key(1))
    expected = from_images.evaluate(state)["eval_loss"]
    assert from_cache.evaluate(state)["eval_loss"] == pytest.approx(expected, rel=2e-4)
    run.data.eval_root = str(caches / "train")  # Other crops.
    assert from_cache.evaluate(state)["eval_loss"] != pytest.approx(expected, rel=2e-4)
    with make_iterator(data, batch_size=16, seed=0) as iterator:
        batch = next(iterator)
    broken = {**batch, "latents": batch["latents"] * np.inf}
    assert from_cache.find_nonfinite(state, broken, jax.random.key(0)).startswith("latents")
    assert not from_cache.frozen and set(from_images.frozen) == {"encoder", "quant"}
    assert from_cache.tokenizer_fingerprint == check.encoder_fingerprint(weights.params["tokenizer"])
    assert batch["latents"].shape == (16, 6, 8) and batch["latents"].dtype == jnp.bfloat16 and "image" not in batch
    stepped, metrics = jax.eval_shape(from_cache.step, {}, state, batch, jax.random.key(0))
    assert stepped == jax.eval_shape(lambda: state) and metrics["loss"].dtype == jnp.float32
    for fields, message in (
        (dict(width=32), r"16 × 32, but the cache .* crops of 16 × 24 pixels \(6 columns\)"),
        (dict(root=str(tmp_path)), "no manifest.json"),
    ):
        run = _run_config(cache_config(data, data.root), path)
        run.data.update(fields)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            generator.GeneratorTrainer(run, "")


def test_latent_scale_includes_the_noise(caches):
    source = LatentSource(caches / "train")
    records = [source.read(i, v)["latents"].astype(np.float64) for i in range(200) for v in range(4)]
    expected = (np.mean(np.square(records)) + noise_mean_square(2.5)) ** -0.5
    assert source.manifest["latent_scale"] == pytest.approx(expected, rel=1e-9)
    assert source.manifest["num_records"] == 800


def test_killed_cache_is_completed_without_duplicates_or_holes(copy, caches, config, weights, monkeypatch):
    whole = _contents(caches / "train")
    for name in ("manifest.json", "latents-00001-of-00003.array_record", "latents-00001-of-00003.json"):
        (copy / name).unlink()
    (copy / "latents-00002-of-00003.json").unlink()  # Killed between the shard and its statistics.
    (copy / "latents-00001-of-00003.array_record.tmp").write_bytes(b"half")
    kept = (copy / "latents-00000-of-00003.array_record").stat().st_mtime_ns
    # Killed again inside a shard: it must not count as complete.
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build.build_cache(copy, config, weights, **OPTIONS)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(FileNotFoundError, match=r"no manifest.json: .*\(complete shards: 1\).*Run the same"):
        LatentSource(copy)
    # The rest by two processes: 1 of 2 has shard 1, 0 of 2 has shards 0 and 2.
    assert not build.build_cache(copy, config, weights, process_index=1, process_count=2, **OPTIONS)
    assert build.build_cache(copy, config, weights, process_index=0, process_count=2, **OPTIONS)
    assert (copy / "latents-00000-of-00003.array_record").stat().st_mtime_ns == kept
    done = _contents(copy)
    assert done.keys() == whole.keys()
    for name in whole:
        if name.endswith(".json"):
            assert json.loads(done[name]) == json.loads(whole[name])
    first, second = LatentSource(copy), LatentSource(caches / "train")
    for image in range(60, 200):
        for variant in range(4):
            a, b = first.read(image, variant), second.read(image, variant)
            assert a["label"] == b["label"] and a["latents"].tobytes() == b["latents"].tobytes()


@pytest.mark.parametrize(("batch_size", "call_size", "images_of_call"), [(30, 28, 28), (3, 3, 4)])
def test_encoder_calls_are_bounded(config, weights, tmp_path, monkeypatch, batch_size, call_size, images_of_call):
    """A call holds whole images, unless one image has more variants than a call may hold."""
    sizes = []

    class Recorder:
        def __init__(self, weights, dtype, batch_size):
            del weights
            sizes.append(batch_size)
            self._dtype = dtype

        def __call__(self, images):
            return [np.full((len(images), 6, 8), len(images), self._dtype)]

    monkeypatch.setattr(build, "MeanEncoder", Recorder)
    assert build.build_cache(tmp_path, config, weights, **{**OPTIONS, "batch_size": batch_size})
    assert sizes == [call_size] and LatentSource(tmp_path)[0]["latents"][0, 0] == images_of_call


def test_two_processes_that_make_the_same_shard_do_no_harm(caches, config, weights, tmp_path, monkeypatch):
    """Both write at once, and the faster one completes the cache and removes the slower one's temporary file."""
    replacing, inside = atomic_write, []
    mean = lambda images: [images[:, 0, 0, 0, None, None] * np.ones((6, 8), "bfloat16")]  # noqa: E731
    monkeypatch.setattr(build, "MeanEncoder", lambda *_: mean)

    @contextlib.contextmanager
    def interrupted(path):
        with replacing(path) as temporary:
            yield temporary
            if not inside and str(path).endswith(".array_record"):
                inside.append(temporary)
                assert build.build_cache(tmp_path / "cache", config, weights, **OPTIONS)

    monkeypatch.setattr(writer, "atomic_write", interrupted)
    assert build.build_cache(tmp_path / "cache", config, weights, **OPTIONS)
    assert inside and _contents(caches / "train").keys() == _contents(tmp_path / "cache").keys()
    assert len(LatentSource(tmp_path / "cache").read(199, 3)["latents"]) == 6


def test_process_waits_for_the_others_if_told_to(caches, copy, config, weights, monkeypatch):
    (copy / "manifest.json").unlink()
    (copy / "latents-00001-of-00003.json").unlink()
    statistics = caches / "train" / "latents-00001-of-00003.json"
    monkeypatch.setattr(build.time, "sleep", lambda _: shutil.copy(statistics, copy))
    options = dict(OPTIONS, process_index=0, process_count=2)
    assert not build.build_cache(copy, config, weights, **options)
    assert build.build_cache(copy, config, weights, wait=True, **options)


def test_other_options_than_those_of_the_folder_are_refused(copy, config, weights):
    with pytest.raises(CacheError, match=r"with other options.*\n  num_crops: cache 2, this command 3$"):
        build.build_cache(copy, config, weights, **{**OPTIONS, "num_crops": 3})


def test_threads_and_flips_of_the_configuration_do_not_matter(copy, config, weights):
    config = config.copy_and_resolve_references()
    config.update(num_threads=0, flip=False)
    assert build.build_cache(copy, config, weights, **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_crops=0), "num_crops=0"),
        (dict(dtype="float32"), "dtype='float32' must be among"),
        (dict(split="test"), "split='test'"),
        (dict(process_index=2), "process_index=2 must be in"),
        (dict(batch_size=0), "batch_size=0 must be at least 1"),
    ],
)
def test_bad_options_are_named(tmp_path, config, weights, options, message):
    with pytest.raises(ValueError, match=message):
        build.build_cache(tmp_path, config, weights, **options)


def test_cache_of_a_cache_is_refused(copy, config, weights):
    with pytest.raises(ValueError, match="is already a cache"):
        build.make_spec(cache_config(config, copy), weights)
