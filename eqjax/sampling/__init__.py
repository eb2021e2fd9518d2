"""Sampling: latents column by column, panoramas, and outpainting.

Import from the modules: `sampler` stands below `eqjax.model`, `panorama` and `outpainting` above it.
"""
