"""Frozen networks of training objectives and metrics: LPIPS, DINO, DINOv2, Inception."""

from eqjax.nets.download import FrozenWeightsError, load
from eqjax.nets.inception import Inception, InceptionFeatures, inception_features
from eqjax.nets.lpips import LPIPS, lpips
from eqjax.nets.resize import resize
from eqjax.nets.vgg import VGG16
from eqjax.nets.vit import DINO_S16, DINOV2_B14, ViT, dino_features, dino_resize, dinov2_targets

__all__ = [
    "DINOV2_B14",
    "DINO_S16",
    "LPIPS",
    "VGG16",
    "FrozenWeightsError",
    "Inception",
    "InceptionFeatures",
    "ViT",
    "dino_features",
    "dino_resize",
    "dinov2_targets",
    "inception_features",
    "load",
    "lpips",
    "resize",
]
