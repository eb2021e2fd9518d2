"""Differentiable augmentation of a discriminator's inputs: shifts, colors and a covered square.

Real images and reconstructions go through the same operations, so the discriminator cannot memorize a
small training set, and gradients reach the reconstruction through them.

    translate → brightness → saturation → contrast → cutout

Source: Differentiable Augmentation for Data-Efficient GAN Training, arXiv 2006.10738, section 3.2.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from eqjax.typing import AnyArray

NUM_UNIFORMS = 7
TRANSLATION = 0.125  # Largest shift, as a fraction of height and width.
CUTOUT = 0.2  # Height and width of the covered square, as a fraction of theirs.


def diff_augment(images: Float[AnyArray, "B H W 3"], uniforms: Float[AnyArray, "B 7"]) -> Float[jax.Array, "B H W 3"]:
    """Augments every image of a batch with its own uniforms.

    Args:
      images: real images or reconstructions.
      uniforms: uniforms in [0, 1), per image: row and column shift, brightness, saturation, contrast,
        row and column of the covered square.

    Returns:
      The augmented images.
    """
    shift_y, shift_x, brightness, saturation, contrast, cut_y, cut_x = jnp.asarray(uniforms).T
    x = _translate(jnp.asarray(images), shift_y, shift_x)
    x = x + (brightness - 0.5)[:, None, None, None]
    x = _scale_about(jnp.mean(x, axis=3, keepdims=True), x, 2 * saturation)
    x = _scale_about(jnp.mean(x, axis=(1, 2, 3), keepdims=True), x, contrast + 0.5)
    covered = _covered(cut_y, x.shape[1])[:, :, None] & _covered(cut_x, x.shape[2])[:, None, :]
    return jnp.where(covered[..., None], 0.0, x)


def _scale_about(
    center: Float[jax.Array, "B _ _ _"], images: Float[jax.Array, "B H W 3"], factor: Float[jax.Array, "B"]
) -> Float[jax.Array, "B H W 3"]:
    return (images - center) * factor[:, None, None, None] + center


def _translate(
    images: Float[jax.Array, "B H W 3"], shift_y: Float[jax.Array, "B"], shift_x: Float[jax.Array, "B"]
) -> Float[jax.Array, "B H W 3"]:
    """Computes out(y, x) = in(y + ty, x + tx), 0 outside, |t| ≤ 12.5 % of the size."""
    _, height, width, channels = images.shape
    most_y, most_x = round(TRANSLATION * height), round(TRANSLATION * width)
    padded = jnp.pad(images, ((0, 0), (most_y, most_y), (most_x, most_x), (0, 0)))
    # Padding moves the origin by `most`, so the slice starts at t + most = floor(u · (2 · most + 1)).
    start_y = jnp.floor(shift_y * (2 * most_y + 1)).astype(jnp.int32)
    start_x = jnp.floor(shift_x * (2 * most_x + 1)).astype(jnp.int32)

    def cut(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (y, x, 0), (height, width, channels))

    return jax.vmap(cut)(padded, start_y, start_x)


def _covered(uniform: Float[jax.Array, "B"], size: int) -> Bool[jax.Array, "B {size}"]:
    """Returns which of `size` rows (or columns) the square covers."""
    length = round(CUTOUT * size)
    start = jnp.floor(uniform * (size + 1 - length % 2)).astype(jnp.int32) - length // 2
    index = jnp.arange(size)[None, :]
    return (index >= start[:, None]) & (index < start[:, None] + length)
