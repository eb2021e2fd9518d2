"""Sampling: latents column by column, and images."""

from eqjax.sampling.autoregressive import sample_latents
from eqjax.sampling.images import Model

__all__ = ["Model", "sample_latents"]
