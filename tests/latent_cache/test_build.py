"""A cache of latents: the same latents as from images, whole after any kill, and refused where it does not fit."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import photos_generator
from eqjax import pixels, pretrained, sharding
from eqjax.data import CacheError, LatentSource, default_config, make_iterator, pipeline
from eqjax.io import atomic_write
from eqjax.latent_cache import build, check
from eqjax.latent_cache.format import PickVariant
from eqjax.tokenizer import Tokenizer
from eqjax.tokenizer.posterior import Posterior
from eqjax.training import generator
from tests import subprocesses
from tests.random_params import random_params

KWARGS = dict(num_crops=2, shard_size=80, batch_size=30, seed=3)


@pytest.fixture(name="config", scope="module")
def _config():
    """100 records of each of two photographs, 16 × 24 pixels: 6 columns."""
    config = default_config()
    config.update(height=16, width=24, num_threads=2, classes=("brick", "coffee"), min_scale=0.5)
    return config


@pytest.fixture(name="weights", scope="module")
def _weights():
    tokenizer = Tokenizer(
        channels=8,
        channel_multipliers=(1, 2, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        resolution=16,
        z_channels=8,
        embed_dim=8,
        square_downsamples=2,
    )
    return pretrained.Weights({"tokenizer": tokenizer}, {"tokenizer": random_params(tokenizer)}, latent_scale=0.4)


@pytest.fixture(name="caches", scope="module")
def _caches(tmp_path_factory, config, weights):
    """Folders of a finished training cache (200 images, 4 variants, 3 shards) and an evaluation cache."""
    root = tmp_path_factory.mktemp("caches")
    assert build.build_cache(root / "train", config, weights, **KWARGS)
    assert build.build_cache(root / "eval", config, weights, split="eval", dtype="float16", batch_size=30)
    return root


@pytest.fixture(name="copy")
def _copy(caches, tmp_path):
    """A cache to damage."""
    return pathlib.Path(shutil.copytree(caches / "train", tmp_path / "cache"))


def _contents(root):
    return {path.name: path.read_bytes() for path in pathlib.Path(root).iterdir()}


def _from_cache(config, root, **fields):
    config = config.copy_and_resolve_references()
    config.update(source="latents", root=str(root), **fields)
    return config


def test_records_are_the_encoded_crops(caches, config, weights):
    source = LatentSource(caches / "train")
    tokenizer, params = weights.modules["tokenizer"], weights.params["tokenizer"]
    encode = jax.jit(lambda x: tokenizer.apply({"params": params}, pixels.from_uint8(x), method="encode").mode())
    pictures = pipeline.make_source(config)
    for picture in (0, 79, 80, 199):
        crops = []
        for number in range(2):
            rng = np.random.default_rng((3, picture, number))
            crop = pipeline.random_crop(config)(pictures[picture], rng)["image"]
            crops += [crop, crop[:, ::-1]]
        records = [source.read(picture, variant) for variant in range(4)]
        stored = np.stack([record["latents"] for record in records]).astype(np.float32)
        np.testing.assert_allclose(stored, encode(np.stack(crops)), rtol=2**-8, atol=1e-5)
        assert {record["label"] for record in records} == {picture % 2}
    assert source.class_names == ("brick", "coffee") and len(source) == 200


def _run_config(data, weights_path):
    run = photos_generator.get_config("tiny")
    run.data = data
    run.generator.num_classes = 2
    run.update(tokenizer_weights=str(weights_path), batch_size=16, eval_images=32)
    return run


def test_training_from_a_cache_equals_training_from_images(caches, config, weights, tmp_path):
    """The same draws give the same loss; and the step takes batches of the cache."""
    path = tmp_path / "tokenizer.safetensors"
    pretrained.save(path, weights)
    from_images = generator.GeneratorTrainer(_run_config(config, path), "")
    data = _from_cache(config, caches / "train", eval_root=str(caches / "eval"))
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
    assert from_cache.tokenizer_fingerprint == check.tokenizer_hash(weights.params["tokenizer"])
    assert batch["latents"].shape == (16, 6, 8) and batch["latents"].dtype == jnp.bfloat16 and "image" not in batch
    stepped, metrics = jax.eval_shape(from_cache.step, {}, state, batch, jax.random.key(0))
    assert stepped == jax.eval_shape(lambda: state) and metrics["loss"].dtype == jnp.float32
    for fields, message in (
        (dict(width=32), r"16 × 32, but the cache .* crops of 16 × 24 pixels \(6 columns\)"),
        (dict(root=str(tmp_path)), "no manifest.json"),
    ):
        run = _run_config(_from_cache(data, data.root), path)
        run.data.update(fields)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            generator.GeneratorTrainer(run, "")


def test_scale_counts_the_noise(caches, weights):
    noise = Posterior(jnp.zeros((20000, 4, 4)), 2.5).sample(jax.random.key(0))
    assert check.noise_mean_square(2.5) == pytest.approx(float(jnp.mean(noise**2)), rel=0.02)
    source = LatentSource(caches / "train")
    records = [source.read(i, v)["latents"].astype(np.float64) for i in range(200) for v in range(4)]
    expected = (np.mean(np.square(records)) + check.noise_mean_square(2.5)) ** -0.5
    assert source.manifest["latent_scale"] == pytest.approx(expected, rel=1e-9)
    assert source.manifest["num_records"] == 800


def test_killed_cache_is_completed_without_duplicates_or_holes(copy, caches, config, weights, monkeypatch):
    whole = _contents(caches / "train")
    for name in ("manifest.json", "latents-00001-of-00003.array_record", "latents-00001-of-00003.json"):
        (copy / name).unlink()
    (copy / "latents-00002-of-00003.json").unlink()  # Killed between the shard and its statistics.
    (copy / "latents-00001-of-00003.array_record.tmp").write_bytes(b"half")
    kept = (copy / "latents-00000-of-00003.array_record").stat().st_mtime_ns
    # Cut off again inside a shard: nothing may count as finished.
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build.build_cache(copy, config, weights, **KWARGS)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(FileNotFoundError, match=r"no manifest.json: .*\(1 shards are\).*Run the same"):
        LatentSource(copy)
    # The rest by two processes: 1 of 2 has shard 1, 0 of 2 has shards 0 and 2.
    assert not build.build_cache(copy, config, weights, process_index=1, process_count=2, **KWARGS)
    assert build.build_cache(copy, config, weights, process_index=0, process_count=2, **KWARGS)
    assert (copy / "latents-00000-of-00003.array_record").stat().st_mtime_ns == kept
    done = _contents(copy)
    assert done.keys() == whole.keys()
    for name in whole:
        if name.endswith(".json"):
            assert json.loads(done[name]) == json.loads(whole[name])
    first, second = LatentSource(copy), LatentSource(caches / "train")
    for picture in range(60, 200):
        for variant in range(4):
            a, b = first.read(picture, variant), second.read(picture, variant)
            assert a["label"] == b["label"] and a["latents"].tobytes() == b["latents"].tobytes()


def test_calls_of_the_encoder_are_bounded(config, weights, tmp_path, monkeypatch):
    """Also where one image has more variants than a call takes."""
    sizes, make, make_mesh = [], build._make_encoder, sharding.make_mesh

    def recorded(weights, plan, batch_size):
        sizes.append(batch_size)
        return lambda images: [np.full((len(images), *plan.shape), len(images), plan.dtype)]

    monkeypatch.setattr(build, "_make_encoder", recorded)
    for batch_size, call, pictures in ((30, 28, 28), (3, 3, 4)):
        folder, options = tmp_path / str(batch_size), {**KWARGS, "batch_size": batch_size}
        assert build.build_cache(folder, config, weights, **options)
        assert sizes.pop() == call and LatentSource(folder).read(0, 0)["latents"][0, 0] == pictures
    monkeypatch.setattr(build.sharding, "make_mesh", lambda devices: make_mesh(devices[:1]))
    plan, _ = build.make_plan(config, weights, num_crops=2)
    encode, images = make(weights, plan, 3), np.zeros((4, 16, 24, 3), np.uint8)
    assert [len(part) for part in encode(images)] == [3, 3]


def test_two_that_make_the_same_shard_do_no_harm(caches, config, weights, tmp_path, monkeypatch):
    """Both at once, and the slower one's file cleared away by the other that finished the cache."""
    replacing, inside = atomic_write, []
    mean = lambda images: [images[:, 0, 0, 0, None, None] * np.ones((6, 8), "bfloat16")]  # noqa: E731
    monkeypatch.setattr(build, "_make_encoder", lambda *_: mean)

    @contextlib.contextmanager
    def interrupted(path):
        with replacing(path) as temporary:
            yield temporary
            if not inside and str(path).endswith(".array_record"):
                inside.append(temporary)
                assert build.build_cache(tmp_path / "cache", config, weights, **KWARGS)

    monkeypatch.setattr(build, "atomic_write", interrupted)
    assert build.build_cache(tmp_path / "cache", config, weights, **KWARGS)
    assert inside and _contents(caches / "train").keys() == _contents(tmp_path / "cache").keys()
    assert len(LatentSource(tmp_path / "cache").read(199, 3)["latents"]) == 6


def test_waiting_for_the_others(caches, copy, config, weights, monkeypatch):
    (copy / "manifest.json").unlink()
    (copy / "latents-00001-of-00003.json").unlink()

    def other(seconds):
        shutil.copy(caches / "train" / "latents-00001-of-00003.json", copy)

    monkeypatch.setattr(build.time, "sleep", other)
    options = dict(KWARGS, process_index=0, process_count=2)
    assert not build.build_cache(copy, config, weights, **options)
    assert build.build_cache(copy, config, weights, wait=True, **options)


def test_command_with_nothing_but_its_number_and_told_to_stop(weights, tmp_path):
    pretrained.save(tmp_path / "tokenizer.safetensors", weights)
    command = ["eqjax.cli.cache_latents", "--config=configs/photos_generator.py:tiny", "--num_crops=500"]
    command += [f"--config.tokenizer_weights={tmp_path}/tokenizer.safetensors", f"--output={tmp_path}/cache"]
    command += ["--config.data.classes=('brick',)", "--config.data.num_threads=1", "--compilation_cache="]
    process = subprocesses.start(*command, NUM_PROCESSES="2", PROCESS_ID="0")
    while process.poll() is None and not (tmp_path / "cache" / "plan.json").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 75 and "the same command makes what is missing" in output, output
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["plan.json"]


def test_iterator_draws_variants_and_resumes(caches, config):
    config = _from_cache(config, caches / "train", num_threads=0)
    options = dict(batch_size=100, seed=0, process_index=0, process_count=1)
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
    pick = PickVariant(source, flip=False)
    drawn = [pick(5, np.random.default_rng(i))["latents"].tobytes() for i in range(20)]
    assert {where[x] for x in drawn} == {(5, 0), (5, 2)}


def test_cache_of_another_tokenizer_is_refused(caches, config, weights):
    source = LatentSource(caches / "train")
    check.check_cache(source, weights, config, "mine")
    params = jax.tree.map(np.array, weights.params["tokenizer"])
    decoder = {**params, "decoder": jax.tree.map(lambda x: x + 1, params["decoder"])}
    check.check_cache(source, pretrained.Weights(weights.modules, {"tokenizer": decoder}), config, "mine")
    jax.tree.leaves(params["encoder"])[3].flat[0] += 1e-3
    other = pretrained.Weights(weights.modules, {"tokenizer": params})
    hashes = f"{source.plan.tokenizer_hash[:16]}….*mine {check.tokenizer_hash(params)[:16]}….*other weights"
    with pytest.raises(CacheError, match=f"another tokenizer: .*{hashes}"):
        check.check_cache(source, other, config, "mine")
    changed = pretrained.Weights({"tokenizer": weights.modules["tokenizer"].clone(posterior_std=1.0)}, weights.params)
    with pytest.raises(CacheError, match="posterior_std: cache 2.5, run 1.0"):
        check.check_cache(source, changed, config, "mine")


def test_cache_for_evaluation_is_checked_too(caches, copy, config, weights):
    source, evaluation = LatentSource(caches / "train"), LatentSource(caches / "eval")
    check.check_caches(source, evaluation, weights, config, "mine")
    for name, value, message in (
        ("tokenizer_hash", "0" * 64, f"cache {copy} was made by another tokenizer"),
        ("class_names", ["coffee", "brick"], f"cache {copy} has 2 classes, .*train 2, and not the same in the same"),
    ):
        manifest = json.loads((caches / "train" / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps({**manifest, name: value}))
        with pytest.raises(CacheError, match=message):
            check.check_caches(source, LatentSource(copy), weights, config, "mine")


def test_scale_that_does_not_fit_is_told(caches, config, weights, caplog):
    source = LatentSource(caches / "train")
    measured = source.manifest["latent_scale"]
    check.check_cache(source, dataclasses.replace(weights, latent_scale=measured), config, "mine")
    assert not caplog.messages
    check.check_cache(source, dataclasses.replace(weights, latent_scale=None), config, "mine")
    assert f"a scale of {measured:.5f}, the tokenizer mine states none: the published 0.05493" in caplog.text


def test_damaged_caches_say_what_to_do(copy, config, weights):
    shard = copy / "latents-00001-of-00003.array_record"
    content = shard.read_bytes()
    damaged = bytearray(content)
    first = content.index(LatentSource(copy).read(80, 0)["latents"].tobytes()[:32])
    damaged[first : first + 16] = bytes(16)
    shard.write_bytes(damaged)
    source = LatentSource(copy)
    with pytest.raises(CacheError, match="Record 0 of .*latents-00001-of-00003.array_record cannot be read .*Delete"):
        source[80]
    assert source[160]["label"] == 0
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(CacheError, match=f"has {len(content) // 2} bytes, the manifest says {len(content)}"):
        LatentSource(copy)
    shard.unlink()
    with pytest.raises(CacheError, match="00001-of-00003.array_record is missing"):
        LatentSource(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(CacheError, match="manifest.json is damaged"):
        LatentSource(copy)
    (copy / "manifest.json").write_text('{"format": "x"}')
    with pytest.raises(CacheError, match="has format 'x' .*expected 'eqjax-latents-1'"):
        LatentSource(copy)
    with pytest.raises(FileNotFoundError, match="is not a folder; expected a cache"):
        LatentSource(copy / "no_such")


def test_plans_that_do_not_fit(copy, caches, config, weights):
    with pytest.raises(CacheError, match="cache of another plan: num_crops: there 2, now 3. Give another folder"):
        build.build_cache(copy, config, weights, **{**KWARGS, "num_crops": 3})
    with pytest.raises(CacheError, match="flip=True, but the cache .* flips=False"):
        make_iterator(_from_cache(config, caches / "eval"), batch_size=4, seed=0, process_index=0, process_count=1)
    for options, message in (
        (dict(num_crops=0), "num_crops=0"),
        (dict(dtype="float32"), "dtype='float32' must be among"),
        (dict(split="test"), "split='test'"),
        (dict(process_index=2), "process_index=2 must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            build.build_cache(copy, config, weights, **options)
    with pytest.raises(ValueError, match="is a cache already"):
        build.make_plan(_from_cache(config, copy), weights)
