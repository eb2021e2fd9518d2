"""The transformer block of the generator: windowed causal self-attention, cross-attention, MLP.

Letters: B batch, L columns, T condition tokens, E width, H heads, R cache slots.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.2; pre-norm transformer blocks:
arXiv 1706.03762.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from eqjax import sharding
from eqjax.generator.rope import rotate

xavier = nn.initializers.xavier_uniform()


def layer_norm(epsilon, dtype, **kwargs):
    """LayerNorm with float32 statistics, in the variance's accurate two-pass form."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, **kwargs)


def window_mask(length, window):
    """Which column sees which: [length, length] booleans, query i sees i − window + 1 … i.

    Args:
      length: number of columns L.
      window: columns seen, the own one included; None: all that came before.
    """
    distance = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


@flax.struct.dataclass
class KVCache:
    """Keys and values of the last columns, in slots column mod R, per layer.

    Attributes:
      keys, values: [depth, B, R, H, head_dim]; keys are rotated.
    """

    keys: jax.Array
    values: jax.Array


def attend(query, key, value, mask, weights_fn=lambda weights: weights):
    """Multi-head attention; scores and softmax in float32.

    Args:
      query: [B, Q, H, d]; key, value: [B, K, H, d].
      mask: booleans that broadcast to [B, H, Q, K], or None.
      weights_fn: applied to the attention weights (dropout).
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = weights_fn(jax.nn.softmax(scores, axis=-1)).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


class Block(nn.Module):
    """One layer. Condition tokens pass its MLP alone, so they depend on the class and nothing else.

    `condition` is that path, and gives the keys and values that columns attend to; `columns` takes
    all columns of a sequence at once, `column` one column after those held in a cache.
    """

    width: int
    num_heads: int
    dropout_rate: float = 0.0
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        heads = (self.num_heads, self.width // self.num_heads)
        linear = dict(dtype=self.dtype, kernel_init=xavier)

        def norm(epsilon):
            return layer_norm(epsilon, self.dtype)

        def project(features, axis=-1):
            return nn.DenseGeneral(features, axis=axis, **linear)

        self.self_norm = norm(1e-6)
        # Query, key and value are one matrix, as its Xavier bound depends on it.
        self.self_qkv = project((3, *heads))
        self.self_out = project(self.width, (-2, -1))
        self.cross_norm, self.cross_condition_norm = norm(1e-5), norm(1e-5)
        self.cross_query, self.cross_key, self.cross_value = (project(heads) for _ in range(3))
        self.cross_out = project(self.width, (-2, -1))
        self.mlp_norm = norm(1e-6)
        self.mlp_in, self.mlp_out = project(4 * self.width), project(self.width)
        self.dropout = nn.Dropout(self.dropout_rate)

    def condition(self, condition, deterministic):
        """Condition tokens [B, T, E] → the next layer's, and this layer's (keys, values) [B, T, H, d]."""
        x = self.cross_condition_norm(condition)
        keys_values = self.cross_key(x), self.cross_value(x)
        return self._mlp(condition, deterministic), keys_values

    def columns(self, x, keys_values, angles, mask, deterministic):
        """All columns [B, L, E] → [B, L, E]."""
        drop = lambda weights: self.dropout(weights, deterministic=deterministic)  # noqa: E731
        x = sharding.constrain(x, "batch", None, None)
        query, key, value = self._self_projections(x, angles)
        x = x + drop(self.self_out(attend(query, key, value, mask, drop)))
        x = x + drop(self.cross_out(self._cross(x, keys_values, angles, drop)))
        return self._mlp(x, deterministic), None

    def column(self, x, cache, keys_values, angles, cross_angles, slot, mask):
        """The column at cache slot `slot`: [B, 1, E] → [B, 1, E], and the layer's cache with it inside."""
        query, key, value = self._self_projections(x, angles)
        cache = KVCache(
            jax.lax.dynamic_update_slice_in_dim(cache.keys, key, slot, axis=1),
            jax.lax.dynamic_update_slice_in_dim(cache.values, value, slot, axis=1),
        )
        x = x + self.self_out(attend(query, cache.keys, cache.values, mask))
        x = x + self.cross_out(self._cross(x, keys_values, cross_angles))
        return self._mlp(x, True), cache

    def _self_projections(self, x, angles):
        query, key, value = jnp.moveaxis(self.self_qkv(self.self_norm(x)), -3, 0)
        return rotate(query, angles), rotate(key, angles), value

    def _cross(self, x, keys_values, angles, weights_fn=lambda weights: weights):
        # As published: queries are rotated by their absolute position, condition keys are not.
        query = rotate(self.cross_query(self.cross_norm(x)), angles)
        return attend(query, *keys_values, None, weights_fn)

    def _mlp(self, x, deterministic):
        h = nn.gelu(self.mlp_in(self.mlp_norm(x)), approximate=False)
        h = self.mlp_out(self.dropout(h, deterministic=deterministic))
        return x + self.dropout(h, deterministic=deterministic)


def remat_policy(name):
    """What the backward pass keeps, by the name of a recomputation policy.

    Args:
      name: "none", "full", "dots" or "projections"; False and True are "none" and "full".

    Returns:
      Keyword arguments for nn.remat, or None for no recomputation.

    Raises:
      ValueError: another name.
    """
    policies = {
        "full": None,
        "dots": jax.checkpoint_policies.dots_saveable,
        "projections": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    name = {False: "none", True: "full"}.get(name, name)
    if name == "none":
        return None
    if name not in policies:
        raise ValueError(f"remat={name!r} is not one of {['none', *policies]}.")
    return dict(prevent_cse=False, policy=policies[name])


def stacked_blocks(depth, remat, **fields):
    """`depth` blocks with parameters stacked along a leading axis, each method scanned over layers.

    Compile time does not grow with depth. With `remat` (see `remat_policy`) the backward pass
    computes blocks anew instead of keeping all their activations.
    """
    block, options = Block, remat_policy(remat)
    if options is not None:
        # The number of `deterministic` among the arguments; `self` does not count in this form.
        block = nn.remat(
            block,
            methods={
                "condition": dict(options, static_argnums=(1,)),
                "columns": dict(options, static_argnums=(4,)),
            },
        )
    # What a look inside captures (`capture_intermediates`) is stacked as the parameters are.
    axes = {"params": 0, "intermediates": 0}
    over = dict(variable_axes=axes, split_rngs={"params": True, "dropout": True}, length=depth)
    same = nn.broadcast
    scanned = nn.scan(
        block,
        methods={
            "condition": dict(over, in_axes=(same,)),
            "columns": dict(over, in_axes=(0, same, same, same)),
            "column": dict(over, in_axes=(0, 0, same, same, same, same)),
        },
    )
    return scanned(**fields)
