"""Latent caches: the file format, building one, and checking that it fits a run."""
