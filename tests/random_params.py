"""Parameters for small models from numpy: compiling an initializer takes longer than most tests run."""

import jax
import numpy as np

from eqjax import pretrained


def random_params(module, seed=0, gain=1.0):
    """Returns normal kernels that keep a signal's size (times `gain`), and vectors of 0.5 with noise (none is zero)."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if leaf.ndim < 2:
            return 0.5 + 0.1 * noise
        return gain * noise / np.sqrt(np.float32(np.prod(leaf.shape[:-1])))

    return jax.tree.map(draw, pretrained.abstract_params(module))
