"""A distance that shows whether reconstructions are rougher at some places of a column than their images are.

A decoder that writes patches leaves seams at their borders, which errors per pixel hardly see.

Letters: B batch, H height, W width, C channels, P period.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from eqjax.typing import AnyArray


def seam_distance(
    images: Float[AnyArray, "B H W C"], reconstructions: Float[AnyArray, "B H W C"], period: int
) -> Float[jax.Array, "B"]:
    """Returns the mean difference of two images' profiles of roughness, over both directions.

    A profile has the mean absolute difference of neighboring pixels at every place of a period, relative to its mean
    over all places: `eqjax.evaluation.border_roughness` measures the same along the width.

    Args:
      images: real images.
      reconstructions: images of the same size.
      period: pixels after which places repeat; the width of a column.

    Returns:
      Distances ≥ 0; 0 if the reconstruction is rough where its image is, in the same proportion.

    Example:
      >>> ramp = jnp.broadcast_to(jnp.arange(32.0)[None, None, :, None] / 16 - 1, (1, 32, 32, 3))
      >>> stairs = jnp.floor(ramp * 2) / 2  # Steps of 8 pixels.
      >>> bool(seam_distance(ramp, stairs, 16)[0] > 10 * seam_distance(ramp, 0.9 * ramp, 16)[0])
      True
    """
    distances = [jnp.abs(_profile(images, a, period) - _profile(reconstructions, a, period)) for a in (1, 2)]
    return jnp.mean(jnp.concatenate(distances, axis=1), axis=1)


def _profile(images: Float[AnyArray, "B H W C"], axis: int, period: int) -> Float[jax.Array, "B P"]:
    """Returns the relative roughness at every place of a period along an axis; place 0 is the border."""
    differences = jnp.abs(jnp.diff(jnp.asarray(images, jnp.float32), axis=axis))
    per_pixel = jnp.mean(differences, axis=tuple({1, 2, 3} - {axis}))  # [B, size - 1]
    places = np.arange(1, images.shape[axis]) % period  # Pixels i and i + 1 meet at place i + 1.
    is_at = (places[:, None] == np.arange(period)[None, :]).astype(np.float32)
    profile = per_pixel @ (is_at / np.maximum(is_at.sum(0, keepdims=True), 1))
    # A thousandth of the range: what is flat has no profile.
    return profile / (jnp.mean(profile, axis=1, keepdims=True) + 2e-3)
