"""Evaluation: metrics of generated and reconstructed images, and the paper's analysis of a model."""

from eqjax.evaluation.features import Extractor, Features, Network, compare
from eqjax.evaluation.generation import Samples, Settings, generate
from eqjax.evaluation.image_sets import ImageSet
from eqjax.evaluation.reconstruction import evaluate_reconstruction
from eqjax.evaluation.statistics import Statistics, StatisticsError

__all__ = [
    "Extractor",
    "Features",
    "ImageSet",
    "Network",
    "Samples",
    "Settings",
    "Statistics",
    "StatisticsError",
    "compare",
    "evaluate_reconstruction",
    "generate",
]
