"""Reads images from photographs, folders, archives, TFDS or latent caches in deterministic, resumable batches."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eqjax.data.batches import BatchIterator, EvalBatches, eval_batches, make_iterator
    from eqjax.data.config import check_config, default_config
    from eqjax.data.datasets import make_source
    from eqjax.data.folder import FolderSource
    from eqjax.data.photos import PHOTOS, PhotoGrid, PhotoSource
    from eqjax.data.tfds import TfdsSource
    from eqjax.data.webdataset import WebDatasetSource
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
    "WebDatasetSource",
    "check_config",
    "default_config",
    "eval_batches",
    "make_iterator",
    "make_source",
]

# Imported at first use: the sources import JAX and Grain, and command lines need the configuration alone.
_MODULES = {
    "PHOTOS": "eqjax.data.photos",
    "BatchIterator": "eqjax.data.batches",
    "CacheError": "eqjax.latent_cache.format",
    "EvalBatches": "eqjax.data.batches",
    "FolderSource": "eqjax.data.folder",
    "LatentSource": "eqjax.latent_cache.format",
    "PhotoGrid": "eqjax.data.photos",
    "PhotoSource": "eqjax.data.photos",
    "TfdsSource": "eqjax.data.tfds",
    "WebDatasetSource": "eqjax.data.webdataset",
    "check_config": "eqjax.data.config",
    "default_config": "eqjax.data.config",
    "eval_batches": "eqjax.data.batches",
    "make_iterator": "eqjax.data.batches",
    "make_source": "eqjax.data.datasets",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'eqjax.data' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
