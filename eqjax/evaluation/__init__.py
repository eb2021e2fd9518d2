"""Evaluation: metrics of generated and reconstructed images, and the paper's analysis of a model."""

from eqjax.evaluation.features import Extractor, FeatureNetwork, Features
from eqjax.evaluation.generation import GenerationEvaluator, GenerationOptions, generate
from eqjax.evaluation.image_sets import ImageSet
from eqjax.evaluation.reconstruction import evaluate_reconstruction
from eqjax.evaluation.roughness import BorderRoughness, border_roughness
from eqjax.evaluation.sample_folder import SampleFolder
from eqjax.evaluation.statistics import Statistics, StatisticsError, compare

__all__ = [
    "BorderRoughness",
    "Extractor",
    "FeatureNetwork",
    "Features",
    "GenerationEvaluator",
    "GenerationOptions",
    "ImageSet",
    "SampleFolder",
    "Statistics",
    "StatisticsError",
    "border_roughness",
    "compare",
    "evaluate_reconstruction",
    "generate",
]
