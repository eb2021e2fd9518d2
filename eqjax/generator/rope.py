"""Rotary position embedding over columns, in interleaved pairs.

Pair k of a head, channels (2k, 2k + 1), is rotated by position · 10000^(−2k / head_dim). Scores of
rotated queries and keys depend on the distance of their positions alone.

Source: RoFormer, arXiv 2104.09864, section 3.2.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from eqjax.typing import AnyArray

_BASE = 10000.0

# Cosines and sines of rotation angles, [..., head_dim / 2] each.
Angles: TypeAlias = tuple[Float[jax.Array, "*positions half"], Float[jax.Array, "*positions half"]]


def rope_angles(positions: Int[AnyArray, "*positions"], head_dim: int) -> Angles:
    """Returns cosines and sines of the rotation angles of integer positions, float32.

    Angles are counted in units of 2⁻³² turns, in integers that wrap around: two columns at a given distance
    differ by the same angle at any position, whereas position · frequency in float32 would lose precision far out.

    Args:
      positions: integers.
      head_dim: channels per attention head, even.
    """
    frequencies = _BASE ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = np.round(frequencies / (2 * np.pi) * 2.0**32).astype(np.uint32)
    phases = jnp.asarray(positions).astype(jnp.uint32)[..., None]
    phases = phases * jax.lax.broadcast_to_rank(turns, phases.ndim)
    angles = jax.lax.bitcast_convert_type(phases, jnp.int32).astype(jnp.float32) * np.float32(2 * np.pi / 2.0**32)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[AnyArray, "*batch L H d"], angles: Angles) -> Float[jax.Array, "*batch L H d"]:
    """Rotates queries or keys by the `rope_angles` of their positions [L]; computes in float32.

    Args:
      x: queries or keys, [..., L, H, d].
      angles: of positions [L].
    """
    # Pairs swap places by a reversal, not by stacking, which a GPU's compiler would not fuse with what follows.
    pairs = jnp.asarray(x, jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = (jax.lax.broadcast_to_rank(a[..., None, :, None], pairs.ndim) for a in angles)  # [..., L, 1, d / 2, 1]
    signs = jax.lax.broadcast_to_rank(np.array([-1, 1], np.float32), pairs.ndim)
    return (pairs * cos + pairs[..., ::-1] * (sin * signs)).reshape(x.shape).astype(x.dtype)
