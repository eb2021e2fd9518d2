"""Sampling: latents column by column, images, endless panoramas, and continued photographs."""

from eqjax.sampling.autoregressive import sample_latents
from eqjax.sampling.classes import ClassSchedule
from eqjax.sampling.endless import Panorama, panorama
from eqjax.sampling.images import Model
from eqjax.sampling.photographs import continue_photograph

__all__ = ["ClassSchedule", "Model", "Panorama", "continue_photograph", "panorama", "sample_latents"]
