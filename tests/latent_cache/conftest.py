"""A complete cache for training, one for evaluation, and a copy to damage."""

import pathlib
import shutil

import pytest

from eqjax.latent_cache import build
from tests.latent_cache import tiny_cache


@pytest.fixture(name="config", scope="package")
def _config():
    return tiny_cache.image_config()


@pytest.fixture(name="weights", scope="package")
def _weights():
    return tiny_cache.make_weights()


@pytest.fixture(name="caches", scope="package")
def _caches(tmp_path_factory, config, weights):
    """The folder of a training cache (200 images, 4 variants, 3 shards) and an evaluation cache."""
    root = tmp_path_factory.mktemp("caches")
    assert build.build_cache(root / "train", config, weights, **tiny_cache.OPTIONS)
    assert build.build_cache(root / "eval", config, weights, split="eval", dtype="float16", batch_size=30)
    return root


@pytest.fixture(name="copy")
def _copy(caches, tmp_path):
    """A copy of the training cache."""
    return pathlib.Path(shutil.copytree(caches / "train", tmp_path / "cache"))
