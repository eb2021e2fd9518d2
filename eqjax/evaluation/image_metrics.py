"""Metrics of reconstructed images against their originals: PSNR and SSIM.

Letters: B batch, H height, W width, C channels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from eqjax.typing import AnyArray

_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03
_VALUE_RANGE = 2  # Largest minus smallest value of images in [-1, 1].


def psnr(images: Float[AnyArray, "B H W C"], reconstructions: Float[AnyArray, "B H W C"]) -> Float[jax.Array, "B"]:
    """Returns the peak signal-to-noise ratio of each image in dB.

    Args:
      images: originals in [-1, 1].
      reconstructions: images to compare with them; clipped to [-1, 1].

    Example:
      >>> import numpy as np
      >>> images = np.zeros((1, 8, 8, 3), np.float32)
      >>> round(float(psnr(images, images + 0.2)[0]), 3)
      20.0
    """
    error = jnp.mean(jnp.square(jnp.clip(reconstructions, -1, 1) - images), axis=(1, 2, 3))
    return 10 * jnp.log10(4 / jnp.maximum(error, 1e-10))


def ssim(images: Float[AnyArray, "B H W C"], reconstructions: Float[AnyArray, "B H W C"]) -> Float[jax.Array, "B"]:
    """Returns the structural similarity of each image, in [-1, 1].

    The window is Gaussian, 11 pixels wide, with σ = 1.5. Channels are compared separately, and the result is the mean
    over all positions at which the window is inside the image.

    Args:
      images: originals in [-1, 1].
      reconstructions: images to compare with them; clipped to [-1, 1].

    Raises:
      ValueError: the images are smaller than the window.

    Source: Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et al., 2004),
    section III.
    """
    if min(images.shape[1:3]) < _SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {_SSIM_WINDOW} × {_SSIM_WINDOW} pixels, not {images.shape[1:3]}."
        )
    offsets = jnp.arange(_SSIM_WINDOW, dtype=jnp.float32) - _SSIM_WINDOW // 2
    weights = jnp.exp(-0.5 * jnp.square(offsets / _SSIM_SIGMA))
    weights /= weights.sum()

    def blur(x: jax.Array) -> jax.Array:
        for axis in (1, 2):
            length = x.shape[axis] - _SSIM_WINDOW + 1
            x = sum(
                (w * jax.lax.slice_in_dim(x, i, i + length, axis=axis) for i, w in enumerate(weights)),
                start=jnp.zeros(()),
            )
        return x

    x, y = jnp.asarray(images), jnp.clip(reconstructions, -1, 1)
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _VALUE_RANGE) ** 2, (_K2 * _VALUE_RANGE) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return jnp.mean(numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)), axis=(1, 2, 3))
