"""Rotary position embedding over columns, in interleaved pairs.

Pair k of a head, channels (2k, 2k + 1), is rotated by position · 10000^(−2k / head_dim). Scores of
rotated queries and keys depend on the distance of their positions alone.

Source: RoFormer, arXiv 2104.09864, section 3.2.
"""

import jax
import jax.numpy as jnp
import numpy as np

_BASE = 10000.0


def rope_angles(positions, head_dim):
    """Cosines and sines for integer positions [...] → two float32 arrays [..., head_dim / 2].

    Angles are counted in 2⁻³² turns, in integers that wrap around: two columns at a distance differ by
    the same angle at any position, where position · frequency in float32 would lose it far out.
    """
    frequencies = _BASE ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = np.round(frequencies / (2 * np.pi) * 2.0**32).astype(np.uint32)
    phases = jnp.asarray(positions).astype(jnp.uint32)[..., None] * turns
    angles = jax.lax.bitcast_convert_type(phases, jnp.int32).astype(jnp.float32) * np.float32(2 * np.pi / 2.0**32)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, angles):
    """Rotates x [..., heads, head_dim] by `rope_angles` of its positions [...]; float32 inside."""
    cos, sin = (a[..., None, :] for a in angles)  # [..., 1, head_dim / 2]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
