"""Differentiable augmentation: what a discriminator sees is shifted, recolored and partly covered.

Real images and reconstructions go through the same operations, so the discriminator cannot learn the few
training images by heart, and gradients reach the reconstruction through them.

    translate → brightness → saturation → contrast → cutout

Source: Differentiable Augmentation for Data-Efficient GAN Training, arXiv 2006.10738, section 3.2.
"""

import jax
import jax.numpy as jnp

NUM_UNIFORMS = 7
TRANSLATION = 0.125  # Largest shift, as a share of height and width.
CUTOUT = 0.2  # Height and width of the covered square, as a share of theirs.


def diff_augment(images, numbers):
    """Augments a batch, every image by its own random numbers.

    Args:
      images: [B, H, W, 3].
      numbers: uniform in [0, 1), [B, 7]: row and column shift, brightness, saturation, contrast, row and
        column of the covered square.

    Returns:
      [B, H, W, 3].
    """
    shift_y, shift_x, brightness, saturation, contrast, cut_y, cut_x = numbers.T
    images = _translate(images, shift_y, shift_x)
    images = images + (brightness - 0.5)[:, None, None, None]
    images = _scale_about(jnp.mean(images, axis=3, keepdims=True), images, 2 * saturation)
    images = _scale_about(jnp.mean(images, axis=(1, 2, 3), keepdims=True), images, contrast + 0.5)
    covered = _covered(cut_y, images.shape[1])[:, :, None] & _covered(cut_x, images.shape[2])[:, None, :]
    return jnp.where(covered[..., None], 0.0, images)


def _scale_about(center, images, factor):
    return (images - center) * factor[:, None, None, None] + center


def _translate(images, shift_y, shift_x):
    """out(y, x) = in(y + ty, x + tx), 0 outside, |t| ≤ 12.5 % of the size."""
    _, height, width, channels = images.shape
    most_y, most_x = round(TRANSLATION * height), round(TRANSLATION * width)
    padded = jnp.pad(images, ((0, 0), (most_y, most_y), (most_x, most_x), (0, 0)))
    # Padding moves the origin by `most`, so the slice starts at t + most = floor(u · (2 · most + 1)).
    start_y = jnp.floor(shift_y * (2 * most_y + 1)).astype(jnp.int32)
    start_x = jnp.floor(shift_x * (2 * most_x + 1)).astype(jnp.int32)

    def cut(image, y, x):
        return jax.lax.dynamic_slice(image, (y, x, 0), (height, width, channels))

    return jax.vmap(cut)(padded, start_y, start_x)


def _covered(number, size):
    """Which of `size` rows (or columns) the square covers, [B, size]."""
    length = round(CUTOUT * size)
    start = jnp.floor(number * (size + 1 - length % 2)).astype(jnp.int32) - length // 2
    index = jnp.arange(size)
    return (index >= start[:, None]) & (index < start[:, None] + length)
