"""Data: sources of pictures (built-in photographs, class folders) and deterministic, resumable batches of them."""

from eqjax.data.config import check_config, default_config
from eqjax.data.evaluation import EvalBatches, eval_batches
from eqjax.data.folder import FolderSource
from eqjax.data.photos import PHOTOS, PhotoGrid, PhotoSource
from eqjax.data.pipeline import BatchIterator, make_iterator, make_source

__all__ = [
    "PHOTOS",
    "BatchIterator",
    "EvalBatches",
    "FolderSource",
    "PhotoGrid",
    "PhotoSource",
    "check_config",
    "default_config",
    "eval_batches",
    "make_iterator",
    "make_source",
]
