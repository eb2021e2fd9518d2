"""The windowed causal generator: from the last few columns to the distribution of the next.

Letters: B batch, L columns, T condition tokens, E width, D latent size.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.2.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import flow, sharding
from eqjax.generator.flow_head import FlowHead
from eqjax.generator.layers import KVCache, layer_norm, remat_policy, stacked_blocks, window_mask, xavier
from eqjax.generator.rope import rope_angles

_normal = nn.initializers.normal(0.02)


@flax.struct.dataclass
class Condition:
    """What a class contributes, computed once per class.

    Attributes:
      keys, values: of the condition tokens in every layer, [depth, B, T, H, head_dim].
      first: the context of the first column, [B, E].
    """

    keys: jax.Array
    values: jax.Array
    first: jax.Array


def column_weights(num_columns, columns):
    """What the columns' losses count in a training on some of them: float32 [num_columns], of sum 1.

    Columns whose loss does not count are still seen by those whose loss does.

    Args:
      num_columns: L.
      columns: numbers of the columns whose loss counts.

    Raises:
      ValueError: columns that do not exist, or none.
    """
    columns = sorted(set(columns))
    if not columns or not set(columns) <= set(range(num_columns)):
        raise ValueError(f"columns={columns} must be some of 0 … {num_columns - 1}.")
    return np.isin(np.arange(num_columns), columns) / np.float32(len(columns))


def mean_loss(losses, columns=None):
    """The mean of columns' losses [L], over all of them or over those of the numbers `columns`."""
    return jnp.mean(losses) if columns is None else losses @ column_weights(len(losses), columns)


class Generator(nn.Module):
    """Class-conditional transformer over column latents with a rectified-flow head.

    Latents are those of the tokenizer times the latent scale, so that they have unit scale. Label
    `num_classes` is the null class. Randomness in `loss` is drawn from the flax streams "flow"
    (times and noise), "rope" (position shift), "label" and "dropout"; `rngs=key` serves them all.

    Attributes:
      width: E.
      depth: layers.
      num_heads: of both attentions.
      latent_dim: D.
      num_classes: without the null class.
      num_cond_tokens: T.
      window_size: columns that a column sees, itself included; None: all before it.
      max_rope_shift: positions are shifted by 0 … max_rope_shift − 1, drawn per training step.
      flow_width, flow_depth: of the flow head.
      flow_batch_mult: flow times drawn per column in training.
      dropout_rate: on attention weights, attention outputs and in the MLP.
      label_dropout_rate: probability that training replaces a label by the null class.
      remat: what the backward pass computes anew instead of storing it: "none", "full" (all but the
        inputs of blocks), "dots" (all but products) or "projections" (all but products with parameters;
        attention is computed anew). False and True are "none" and "full".
      dtype: compute dtype; parameters, norms, softmax, RoPE and the flow's state are float32.
    """

    width: int = 1024
    depth: int = 32
    num_heads: int = 16
    latent_dim: int = 256
    num_classes: int = 1000
    num_cond_tokens: int = 16
    window_size: int | None = 4
    max_rope_shift: int = 16
    flow_width: int = 1280
    flow_depth: int = 12
    flow_batch_mult: int = 4
    dropout_rate: float = 0.1
    label_dropout_rate: float = 0.1
    remat: bool | str = False
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        for name in ("width", "depth", "num_heads", "latent_dim", "num_classes", "num_cond_tokens", "max_rope_shift",
                     "flow_width", "flow_depth", "flow_batch_mult"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be ≥ 1.")
        if not (0 <= self.dropout_rate < 1 and 0 <= self.label_dropout_rate <= 1):
            raise ValueError(
                f"dropout_rate={self.dropout_rate} must lie in [0, 1), and "
                f"label_dropout_rate={self.label_dropout_rate} in [0, 1]."
            )
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"width={self.width} must be a multiple of 2 · num_heads={2 * self.num_heads}: "
                "heads have an even number of channels, for the rotation of pairs."
            )
        if self.window_size is not None and self.window_size < 1:
            raise ValueError(f"window_size={self.window_size} must be ≥ 1 (the own column), or None for all.")
        remat_policy(self.remat)

    def setup(self):
        self.class_embedding = self.param("class_embedding", _normal, (self.num_classes, self.width))
        self.null_embedding = self.param("null_embedding", _normal, (1, self.width))
        self.cond_positions = self.param("cond_positions", _normal, (self.num_cond_tokens, self.width))
        self.latent_proj = nn.Dense(self.width, dtype=self.dtype, kernel_init=xavier)
        self.input_norm = layer_norm(1e-6, self.dtype)
        self.blocks = stacked_blocks(
            self.depth,
            self.remat,
            width=self.width,
            num_heads=self.num_heads,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
        )
        self.output_norm = layer_norm(1e-6, self.dtype)
        self.flow_head = FlowHead(self.flow_width, self.flow_depth, self.latent_dim, self.dtype, self.remat)

    @property
    def head_dim(self):
        """Channels per attention head."""
        return self.width // self.num_heads

    @nn.nowrap
    def init_params(self, key):
        """Fresh parameters (float32)."""
        latents, labels = jnp.zeros((1, 2, self.latent_dim)), jnp.zeros(1, jnp.int32)
        return self.init({"params": key}, latents, labels)["params"]

    def __call__(self, latents, labels):
        """Velocity at the latents themselves and t = 1: [B, L, D]; touches every parameter."""
        context = self.context(latents, labels)
        return self.velocity(latents, jnp.ones(latents.shape[:2]), context)

    def context(self, latents, labels, *, rope_shift=0, deterministic=True):
        """What conditions each column: latents [B, L, D], labels [B] → [B, L, E].

        Row k depends on the class and on columns before k (in a stack of layers, window_size − 1
        columns further per layer).

        Args:
          latents: scaled latents.
          labels: in 0 … num_classes, the last one being the null class.
          rope_shift: added to all positions.
          deterministic: no dropout.

        Raises:
          ValueError: latents of another size.
        """
        self._check_latents(latents)
        condition = self.condition(labels, deterministic=deterministic)
        # The last column conditions none.
        x = self.input_norm(self.latent_proj(jnp.asarray(latents[:, :-1], self.dtype)))  # [B, L-1, E]
        x, length = sharding.constrain(x, "batch", None, None), x.shape[1]
        angles = rope_angles(jnp.arange(length) + rope_shift, self.head_dim)
        mask = window_mask(length, self.window_size)
        keys_values = condition.keys, condition.values
        x, _ = self.blocks.columns(x, keys_values, angles, mask, deterministic)
        return jnp.concatenate([condition.first[:, None], self.output_norm(x)], axis=1)

    def velocity(self, x_t, time, context):
        """Velocity of the flow: x_t [..., D], time [...], context [..., E] → float32 [..., D]."""
        return self.flow_head(x_t, jnp.asarray(time), context)

    def loss(self, latents, labels, *, columns=None, time=None, noise=None, rope_shift=None, deterministic=False):
        """The rectified-flow loss, a scalar: `mean_loss` of `column_losses`, which see, over all columns or some."""
        losses = self.column_losses(
            latents, labels, time=time, noise=noise, rope_shift=rope_shift, deterministic=deterministic
        )
        return mean_loss(losses, columns)

    def column_losses(self, latents, labels, *, time=None, noise=None, rope_shift=None, deterministic=False):
        """The rectified-flow loss of every column, [L].

        Args:
          latents: [B, L, D], scaled.
          labels: [B], integers.
          time: uniform numbers in [0, 1), [flow_batch_mult · B · L], the whole batch of columns
            again and again; drawn where None.
          noise: [flow_batch_mult · B · L, D]; drawn where None.
          rope_shift: drawn from 0 … max_rope_shift − 1 where None.
          deterministic: neither dropout nor label dropout.
        """
        options = dict(time=time, noise=noise, rope_shift=rope_shift, deterministic=deterministic)
        return jnp.mean(self._square_errors(latents, labels, **options), axis=(0, 1, 3))

    def per_image_losses(self, latents, labels, *, deterministic=False):
        """As `column_losses`, of every image: [B, L]."""
        return jnp.mean(self._square_errors(latents, labels, deterministic=deterministic), axis=(0, 3))

    def _square_errors(self, latents, labels, *, time=None, noise=None, rope_shift=None, deterministic=False):
        """Of the velocity, [M, B, L, D]."""
        if rope_shift is None:
            rope_shift = jax.random.randint(self.make_rng("rope"), (), 0, self.max_rope_shift)
        if self.label_dropout_rate and not deterministic:
            drop = jax.random.bernoulli(self.make_rng("label"), self.label_dropout_rate, labels.shape)
            labels = jnp.where(drop, self.num_classes, labels)
        context = self.context(latents, labels, rope_shift=rope_shift, deterministic=deterministic)
        # The batch keeps an axis of its own: merged with others it could not be split over devices.
        rows = (self.flow_batch_mult, *latents.shape[:2])
        time = jax.random.uniform(self.make_rng("flow"), rows) if time is None else jnp.reshape(time, rows)
        shape = (*rows, self.latent_dim)
        noise = jax.random.normal(self.make_rng("flow"), shape) if noise is None else jnp.reshape(noise, shape)
        time = flow.to_training_time(sharding.constrain(time, None, "batch", None))
        noise = sharding.constrain(noise, None, "batch", None, None)
        velocity = self.velocity(flow.interpolate(latents, noise, time), time, context)  # [M, B, L, D]
        return jnp.square(velocity - flow.velocity_target(latents, noise))

    def condition(self, labels, *, deterministic=True):
        """What the labels [B] contribute to every column, a `Condition`."""
        table = jnp.concatenate([self.class_embedding, self.null_embedding])
        tokens = table[labels][:, None] + self.cond_positions  # [B, T, E]
        tokens = sharding.constrain(self.input_norm(jnp.asarray(tokens, self.dtype)), "batch", None, None)
        tokens, (keys, values) = self.blocks.condition(tokens, deterministic)
        return Condition(keys, values, self.output_norm(tokens[:, -1]))

    @nn.nowrap
    def init_cache(self, batch, columns):
        """A `KVCache` before the first column, with the slots that `columns` columns need."""
        slots = columns if self.window_size is None else min(self.window_size, columns)
        shape = (self.depth, batch, slots, self.num_heads, self.head_dim)
        return KVCache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))

    def decode_step(self, latent, column, cache, condition, max_position=None):
        """Takes in one column and gives the context of the next.

        Args:
          latent: [B, D], scaled, of column number `column`.
          column: integer; columns 0 … column − 1 have been taken in.
          cache: their `KVCache`.
          condition: of the batch's labels.
          max_position: queries of cross-attention, whose keys have no position, are rotated by this
            position at most; None: by their own, as published.

        Returns:
          Context of column + 1, [B, E]; the cache with this column.
        """
        x = self.input_norm(self.latent_proj(jnp.asarray(latent, self.dtype)))[:, None]  # [B, 1, E]
        angles = rope_angles(column[None], self.head_dim)
        cross_angles = angles
        if max_position is not None:
            cross_angles = rope_angles(jnp.minimum(column, max_position)[None], self.head_dim)
        slots = cache.keys.shape[2]
        mask = jnp.arange(slots) <= column  # Slots not yet written hold nothing.
        keys_values = condition.keys, condition.values
        x, cache = self.blocks.column(x, cache, keys_values, angles, cross_angles, column % slots, mask)
        return self.output_norm(x[:, 0]), cache

    def flow_modulations(self, time, context):
        """`Modulations` of times [...] under contexts [..., E] that broadcast against each other."""
        return self.flow_head.modulations(time, context)

    def flow_embed(self, x_t):
        """The flow's state [..., D] → [..., flow_width]."""
        return self.flow_head.embed(x_t)

    def flow_denoise(self, x, modulations):
        """An embedded state under modulations → velocity, float32 [..., D]."""
        return self.flow_head.denoise(x, modulations)

    def _check_latents(self, latents):
        if latents.ndim != 3 or latents.shape[1] < 1 or latents.shape[2] != self.latent_dim:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}; this generator takes [batch, columns ≥ 1, "
                f"latent_dim={self.latent_dim}]."
            )
