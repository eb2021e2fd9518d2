"""Reads images from photographs, class folders, TFDS or latent caches in deterministic, resumable batches."""

from eqjax.data.batches import BatchIterator, EvalBatches, eval_batches, make_iterator
from eqjax.data.config import check_config, default_config
from eqjax.data.datasets import make_source
from eqjax.data.folder import FolderSource
from eqjax.data.photos import PHOTOS, PhotoGrid, PhotoSource
from eqjax.data.tfds import TfdsSource
from eqjax.latent_cache.format import CacheError, LatentSource

__all__ = [
    "PHOTOS",
    "BatchIterator",
    "CacheError",
    "EvalBatches",
    "FolderSource",
    "LatentSource",
    "PhotoGrid",
    "PhotoSource",
    "TfdsSource",
    "check_config",
    "default_config",
    "eval_batches",
    "make_iterator",
    "make_source",
]
