"""Checks of a cache against the tokenizer and the data of a run."""

import dataclasses

import jax
import numpy as np
import pytest

from eqjax import pretrained
from eqjax.data import CacheError, LatentSource
from eqjax.latent_cache import check
from eqjax.latent_cache.format import read_cache_json, write_cache_json


def test_cache_fits_a_tokenizer_with_another_decoder(caches, config, weights):
    source, params = LatentSource(caches / "train"), weights.params["tokenizer"]
    check.check_cache(source, weights, config, "mine")
    decoder = {**params, "decoder": jax.tree.map(lambda x: x + 1, params["decoder"])}
    check.check_cache(source, pretrained.Weights(weights.modules, {"tokenizer": decoder}), config, "mine")


def test_another_encoder_is_refused_with_both_fingerprints(caches, config, weights):
    source, params = LatentSource(caches / "train"), jax.tree.map(np.array, weights.params["tokenizer"])
    jax.tree.leaves(params["encoder"])[3].flat[0] += 1e-3
    other = pretrained.Weights(weights.modules, {"tokenizer": params})
    ours, theirs = source.spec.encoder_fingerprint[:16], check.encoder_fingerprint(params)[:16]
    with pytest.raises(CacheError, match=f"(?s)another tokenizer: .*{ours}….*mine is {theirs}….*weights are not"):
        check.check_cache(source, other, config, "mine")


def test_another_field_of_the_encoder_is_named(caches, config, weights):
    changed = pretrained.Weights({"tokenizer": weights.modules["tokenizer"].clone(posterior_std=1.0)}, weights.params)
    with pytest.raises(CacheError, match="posterior_std: cache 2.5, tokenizer 1.0"):
        check.check_cache(LatentSource(caches / "train"), changed, config, "mine")


def test_another_image_size_is_refused(caches, config, weights):
    config = config.copy_and_resolve_references()
    config.width = 32
    with pytest.raises(CacheError, match=r"16 × 32, but the cache .* crops of 16 × 24 pixels \(6 columns\)"):
        check.check_cache(LatentSource(caches / "train"), weights, config, "mine")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder_fingerprint", "0" * 64, "cache {copy} was made by another tokenizer"),
        ("class_names", ["coffee", "brick"], "cache {copy} has 2 classes .*train has 2, but .* in another order"),
    ],
)
def test_evaluation_cache_is_checked_too(caches, copy, config, weights, name, value, message):
    source = LatentSource(caches / "train")
    check.check_caches(source, LatentSource(caches / "eval"), weights, config, "mine")
    path = str(copy / "manifest.json")
    write_cache_json(path, {**read_cache_json(path), name: value})
    with pytest.raises(CacheError, match=message.format(copy=copy)):
        check.check_caches(source, LatentSource(copy), weights, config, "mine")


def test_scale_that_is_far_off_is_logged(caches, config, weights, caplog):
    source = LatentSource(caches / "train")
    measured = source.manifest["latent_scale"]
    check.check_cache(source, dataclasses.replace(weights, latent_scale=measured), config, "mine")
    assert not caplog.messages
    check.check_cache(source, dataclasses.replace(weights, latent_scale=None), config, "mine")
    assert f"multiplied by {measured:.5f}; training uses 0.05493 of the tokenizer mine (the published" in caplog.text
