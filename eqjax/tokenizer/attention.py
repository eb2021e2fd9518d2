"""Attention over feature maps: global or within a window of columns, blockwise over queries.

Letters: B images, h and w rows and columns of the map, C channels; n and m columns of one block's
queries and keys.

Source: scaled dot-product attention, arXiv 1706.03762, section 3.2.1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from eqjax.typing import AnyArray, Scalar

# Queries per block. An image of up to this many positions is one block; a wider one is processed
# block by block, so that the score matrix is never larger than this times the number of keys.
MAX_BLOCK_POSITIONS = 1024


def column_attention(
    query: Float[AnyArray, "B h w C"],
    key: Float[AnyArray, "B h w C"],
    value: Float[AnyArray, "B h w C"],
    *,
    window: int | None = None,
    width: Scalar | None = None,
    circular: bool = False,
    max_block: int = MAX_BLOCK_POSITIONS,
) -> Float[jax.Array, "B h w C"]:
    """Computes single-head attention over all rows, and over all columns or those in a window.

    Scores and softmax are float32. The result does not depend on `max_block`, but memory does: the
    scores take max_block · h · w values, with a window max_block · h · (block + 2 window).

    Args:
      query, key, value: feature maps.
      window: a position attends to columns at most this far from its own; None: to all.
      width: columns of the map that belong to the image, which alone are attended to; None: all.
      circular: whether the image wraps around: the window of a position near one end continues at the other.
      max_block: queries processed at once (rounded down to whole columns, at least one).

    Returns:
      The attended values, in the dtype of `value`.
    """
    query, key, value = jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)
    _, h, w, _ = query.shape
    columns = max(1, max_block // h)
    if w <= columns:
        return _attend(query, key, value, 0, 0, w, window, width, circular)
    blocks = -(-w // columns)
    query = jnp.pad(query, ((0, 0), (0, 0), (0, blocks * columns - w), (0, 0)))
    span = w if window is None or circular else min(w, columns + 2 * window)

    @jax.checkpoint
    def block(first: jax.Array) -> jax.Array:
        # The last blocks' keys are moved left to stay inside; the mask knows true positions.
        start = jnp.clip(first - (window or 0), 0, w - span)
        q = jax.lax.dynamic_slice_in_dim(query, first, columns, axis=2)
        k, v = (jax.lax.dynamic_slice_in_dim(a, start, span, axis=2) for a in (key, value))
        return _attend(q, k, v, first, start, w, window, width, circular)

    out = jax.lax.map(block, jnp.arange(blocks) * columns)  # [blocks, B, h, columns, C]
    out = jnp.moveaxis(out, 0, 2)  # [B, h, blocks, columns, C]
    return out.reshape(*out.shape[:2], blocks * columns, -1)[:, :, :w]


def _attend(
    query: Float[jax.Array, "B h n C"],
    key: Float[jax.Array, "B h m C"],
    value: Float[jax.Array, "B h m C"],
    query_start: int | jax.Array,
    key_start: int | jax.Array,
    w: int,
    window: int | None,
    width: Scalar | None,
    circular: bool,
) -> Float[jax.Array, "B h n C"]:
    """Attends from one block of queries; the slices begin at columns `query_start` and `key_start`."""
    scores = jnp.einsum("bhqc,bgkc->bhqgk", query, key, preferred_element_type=jnp.float32)
    scores = scores * (query.shape[-1] ** -0.5)
    if window is not None or width is not None:
        q_pos, k_pos = query_start + jnp.arange(query.shape[2]), key_start + jnp.arange(key.shape[2])
        end = w if width is None else width
        # Queries behind the end see what the last one sees: without any key they would be NaN.
        distance = jnp.abs(jnp.minimum(q_pos, end - 1)[:, None] - k_pos[None, :])
        if circular:
            distance = jnp.minimum(distance, end - distance)
        near = (distance <= (w if window is None else window)) & (k_pos < end)[None, :]
        scores = jnp.where(near[None, None, :, None, :], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=(-2, -1)).astype(value.dtype)
    return jnp.einsum("bhqgk,bgkc->bhqc", weights, value)
