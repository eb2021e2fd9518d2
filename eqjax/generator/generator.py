"""The windowed causal generator: it predicts the distribution of the next column from the last few.

Letters: B batch, L columns, T condition tokens, E width, H heads, d head size, D latent size, M flow times per
column in training.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.2.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int
import numpy as np

from eqjax import flow, sharding
from eqjax.config_fields import checked
from eqjax.generator.flow_head import FlowHead, Modulations
from eqjax.generator.layers import KVCache, LayerNorm, stacked_blocks, window_mask, xavier
from eqjax.generator.rope import rope_angles
from eqjax.module_fields import GENERATOR
from eqjax.precision import Float32Products
from eqjax.typing import AnyArray, PRNGKey, Scalar

_normal = nn.initializers.normal(0.02)


@flax.struct.dataclass
class Condition:
    """Keys, values and first context that columns get from their class, computed once per class.

    Attributes:
      keys: keys of the condition tokens in every layer.
      values: values of the condition tokens in every layer.
      first: context of the first column.
    """

    keys: Float[jax.Array, "depth B T H d"]
    values: Float[jax.Array, "depth B T H d"]
    first: Float[jax.Array, "B E"]


def column_weights(num_columns: int, columns: Iterable[int]) -> Float[np.ndarray, "L"]:
    """Returns per-column loss weights, zero outside `columns` and summing to 1.

    Columns of weight zero remain visible to the others.

    Args:
      num_columns: L.
      columns: indices of the columns whose loss counts.

    Raises:
      ValueError: `columns` is empty, or has indices outside 0 … L − 1.

    Example:
      >>> column_weights(4, [1, 3]).tolist()
      [0.0, 0.5, 0.0, 0.5]
    """
    indices = sorted(set(columns))
    if not indices or not set(indices) <= set(range(num_columns)):
        raise ValueError(f"columns={indices} must be one or more indices from 0 … {num_columns - 1}.")
    return np.isin(np.arange(num_columns), indices) / np.float32(len(indices))


def mean_loss(losses: Float[AnyArray, "L"], columns: Iterable[int] | None = None) -> Float[jax.Array, ""]:
    """Returns the mean of per-column losses over `columns` (indices); None: over all columns."""
    return jnp.mean(losses) if columns is None else jnp.asarray(losses) @ column_weights(len(losses), columns)


class Generator(Float32Products):
    """Class-conditional transformer over column latents with a rectified-flow head.

    Latents are the tokenizer's, multiplied by the latent scale so that they have unit scale. Label
    `num_classes` is the null class. Losses draw from the flax random streams "flow" (times and noise), "rope"
    (position shift), "label", "dropout" and "context" (noise on the columns before); `rngs=key` serves all of them.

    Attributes:
      width: E.
      depth: number of layers.
      num_heads: heads of self-attention and cross-attention, H.
      latent_dim: D.
      num_classes: number of classes without the null class.
      num_cond_tokens: T.
      window_size: columns that a column attends to, itself included; None: all up to it.
      max_rope_shift: training shifts positions by 0 … max_rope_shift − 1, drawn per step.
      cross_rope: whether queries of cross-attention are rotated by the index of their column, as published. Keys of
        the condition are not, so a column then depends on where it is. Without, it depends on the columns before it
        and the class alone: the generator is exactly equivariant to shifts of the index, at any length.
      flow_width: width of the flow head.
      flow_depth: residual blocks of the flow head.
      flow_batch_mult: M, flow times drawn per column in training.
      dropout_rate: dropout on attention weights, attention outputs and in the MLP.
      label_dropout_rate: probability that training replaces a label by the null class.
      context_noise: training adds noise to the latents that columns attend to, not to those that are learned, of a
        standard deviation that is drawn from 0 … context_noise for every image; not published. A sample attends to
        columns that it has drawn itself, which are a little off; without noise, errors grow from column to column.
      remat: rematerialization policy, which trades recomputation in the backward pass for memory: "none" stores
        all activations, "full" only the inputs of blocks, "dots" the results of matrix products, "projections"
        the results of products with parameters (attention is recomputed). False and True mean "none" and "full".
      dtype: compute dtype; parameters, norms, softmax, RoPE and the flow's state are float32.

    Raises:
      TypeError: a field is of another type.
      ValueError: a field is out of range, or fields contradict each other.

    Example:
      >>> generator = Generator(width=32, depth=1, num_heads=4, latent_dim=8, flow_width=16, flow_depth=1)
      >>> params = jax.jit(generator.init_params)(jax.random.key(0))
      >>> latents, labels = jnp.zeros((1, 6, 8)), jnp.array([3])
      >>> context = jax.jit(lambda params: generator.apply({"params": params}, latents, labels, method="context"))
      >>> context(params).shape
      (1, 6, 32)
    """

    width: int = 1024
    depth: int = 32
    num_heads: int = 16
    latent_dim: int = 256
    num_classes: int = 1000
    num_cond_tokens: int = 16
    window_size: int | None = 4
    max_rope_shift: int = 16
    cross_rope: bool = True
    flow_width: int = 1280
    flow_depth: int = 12
    flow_batch_mult: int = 4
    dropout_rate: float = 0.1
    label_dropout_rate: float = 0.1
    context_noise: float = 0.0
    remat: bool | str = False
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        for name, value in checked(vars(self), GENERATOR).items():
            setattr(self, name, value)
        super().__post_init__()
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"width={self.width} must be a multiple of 2 · num_heads={2 * self.num_heads}: "
                "heads have an even number of channels, for the rotation of pairs."
            )

    def setup(self) -> None:
        self.class_embedding = self.param("class_embedding", _normal, (self.num_classes, self.width))
        self.null_embedding = self.param("null_embedding", _normal, (1, self.width))
        self.cond_positions = self.param("cond_positions", _normal, (self.num_cond_tokens, self.width))
        self.latent_proj = nn.Dense(self.width, dtype=self.dtype, kernel_init=xavier)
        self.input_norm = LayerNorm(1e-6, self.dtype)
        self.blocks = stacked_blocks(
            self.depth,
            self.remat,
            width=self.width,
            num_heads=self.num_heads,
            dropout_rate=self.dropout_rate,
            cross_rope=self.cross_rope,
            dtype=self.dtype,
        )
        self.output_norm = LayerNorm(1e-6, self.dtype)
        self.flow_head = FlowHead(self.flow_width, self.flow_depth, self.latent_dim, self.dtype, self.remat)

    @property
    def head_dim(self) -> int:
        """Channels per attention head, d."""
        return self.width // self.num_heads

    @nn.nowrap
    def init_params(self, key: PRNGKey) -> Mapping[str, Any]:
        """Returns random initial parameters, float32."""
        latents, labels = jnp.zeros((1, 2, self.latent_dim)), jnp.zeros(1, jnp.int32)
        return self.init({"params": key}, latents, labels)["params"]

    def __call__(self, latents: Float[AnyArray, "B L D"], labels: Int[AnyArray, "B"]) -> Float[jax.Array, "B L D"]:
        """Returns the velocity at the latents themselves and t = 1; it uses every parameter."""
        context = self.context(latents, labels)
        return self.velocity(latents, jnp.ones(latents.shape[:2]), context)

    def context(
        self,
        latents: Float[AnyArray, "..."],
        labels: Int[AnyArray, "B"],
        *,
        rope_shift: Scalar = 0,
        deterministic: bool = True,
    ) -> Float[jax.Array, "B L E"]:
        """Returns the context on which each column is conditioned.

        Row k depends on the class and on columns before k; a stack of layers reaches window_size − 1 columns
        further back per layer.

        Args:
          latents: scaled latents [B, L, D].
          labels: integers in 0 … num_classes; num_classes is the null class.
          rope_shift: added to all positions.
          deterministic: disables dropout.

        Raises:
          ValueError: the latents have another shape.
        """
        self._check_latents(latents)
        condition = self.condition(labels, deterministic=deterministic)
        # No column is conditioned on the last one.
        x = self._embed_latents(latents[:, :-1])  # [B, L-1, E]
        x, length = sharding.constrain(x, "batch", None, None), x.shape[1]
        angles = rope_angles(jnp.arange(length) + rope_shift, self.head_dim)
        mask = window_mask(length, self.window_size)
        keys_values = condition.keys, condition.values
        x, _ = self.blocks.columns(x, keys_values, angles, mask, deterministic)
        return jnp.concatenate([condition.first[:, None], self.output_norm(x)], axis=1)

    def velocity(
        self, x_t: Float[AnyArray, "... D"], time: Float[AnyArray, "..."], context: Float[AnyArray, "... E"]
    ) -> Float[jax.Array, "... D"]:
        """Returns the velocity of the flow at states x_t and times in [0, 1] under contexts, float32."""
        return self.flow_head(x_t, jnp.asarray(time), context)

    def loss(
        self,
        latents: Float[AnyArray, "..."],
        labels: Int[AnyArray, "B"],
        *,
        columns: Iterable[int] | None = None,
        time: Float[AnyArray, "rows"] | None = None,
        noise: Float[AnyArray, "rows D"] | None = None,
        rope_shift: Scalar | None = None,
        deterministic: bool = False,
    ) -> Float[jax.Array, ""]:
        """Returns the mean rectified-flow loss over `columns` (indices); None: over all columns.

        The other arguments are those of `column_losses`, whose mean this is.
        """
        losses = self.column_losses(
            latents, labels, time=time, noise=noise, rope_shift=rope_shift, deterministic=deterministic
        )
        return mean_loss(losses, columns)

    def column_losses(
        self,
        latents: Float[AnyArray, "..."],
        labels: Int[AnyArray, "B"],
        *,
        time: Float[AnyArray, "rows"] | None = None,
        noise: Float[AnyArray, "rows D"] | None = None,
        rope_shift: Scalar | None = None,
        deterministic: bool = False,
    ) -> Float[jax.Array, "L"]:
        """Returns the rectified-flow loss of every column, averaged over the batch, flow times and channels.

        Args:
          latents: scaled latents [B, L, D].
          labels: integers in 0 … num_classes.
          time: uniforms in [0, 1), [M · B · L]: all columns of the batch, M times over; None: drawn.
          noise: [M · B · L, D]; None: drawn.
          rope_shift: shift of the positions; None: drawn from 0 … max_rope_shift − 1.
          deterministic: disables dropout and label dropout.

        Raises:
          ValueError: the latents have another shape.
        """
        errors = self._squared_errors(
            latents, labels, time=time, noise=noise, rope_shift=rope_shift, deterministic=deterministic
        )
        return jnp.mean(errors, axis=(0, 1, 3))

    def per_image_losses(
        self, latents: Float[AnyArray, "..."], labels: Int[AnyArray, "B"], *, deterministic: bool = False
    ) -> Float[jax.Array, "B L"]:
        """Returns the rectified-flow loss of every column of every image, with drawn times, noise and shift.

        Args:
          latents: scaled latents [B, L, D].
          labels: integers in 0 … num_classes.
          deterministic: disables dropout and label dropout.

        Raises:
          ValueError: the latents have another shape.
        """
        return jnp.mean(self._squared_errors(latents, labels, deterministic=deterministic), axis=(0, 3))

    def _squared_errors(
        self,
        latents: Float[AnyArray, "..."],
        labels: Int[AnyArray, "B"],
        *,
        time: Float[AnyArray, "rows"] | None = None,
        noise: Float[AnyArray, "rows D"] | None = None,
        rope_shift: Scalar | None = None,
        deterministic: bool = False,
    ) -> Float[jax.Array, "M B L D"]:
        """Returns squared errors of the predicted velocity."""
        if rope_shift is None:
            rope_shift = jax.random.randint(self.make_rng("rope"), (), 0, self.max_rope_shift, jnp.int32)
        if self.label_dropout_rate and not deterministic:
            drop = jax.random.bernoulli(self.make_rng("label"), self.label_dropout_rate, labels.shape)
            labels = jnp.where(drop, self.num_classes, labels)
        before = latents if deterministic else self._with_context_noise(latents)
        context = self.context(before, labels, rope_shift=rope_shift, deterministic=deterministic)
        # The batch keeps its own axis: merged with others it could not be sharded.
        rows = (self.flow_batch_mult, *latents.shape[:2])
        shape = (*rows, self.latent_dim)
        if time is None:
            time = jax.random.uniform(self.make_rng("flow"), rows, jnp.float32)
        if noise is None:
            noise = jax.random.normal(self.make_rng("flow"), shape, jnp.float32)
        uniforms, normals = jnp.reshape(time, rows), jnp.reshape(noise, shape)
        times = flow.to_training_time(sharding.constrain(uniforms, None, "batch", None))
        normals = sharding.constrain(normals, None, "batch", None, None)
        latents = latents[None]  # [1, B, L, D]
        velocity = self.velocity(flow.interpolate(latents, normals, times), times, context)  # [M, B, L, D]
        return jnp.square(velocity - flow.velocity_target(latents, normals))

    def _with_context_noise(self, latents: Float[AnyArray, "B L D"]) -> Float[AnyArray, "B L D"]:
        """Returns the latents that columns attend to in training."""
        if not self.context_noise:
            return latents
        level_key, noise_key = jax.random.split(self.make_rng("context"))
        level = self.context_noise * jax.random.uniform(level_key, (len(latents), 1, 1), jnp.float32)
        return latents + level * jax.random.normal(noise_key, latents.shape, jnp.float32)

    def condition(self, labels: Int[AnyArray, "B"], *, deterministic: bool = True) -> Condition:
        """Computes the `Condition` of classes.

        Args:
          labels: integers in 0 … num_classes.
          deterministic: disables dropout.
        """
        table = jnp.concatenate([self.class_embedding, self.null_embedding])
        tokens = table[labels][:, None] + self.cond_positions[None]  # [B, T, E]
        tokens = self.input_norm(tokens.astype(self.dtype))
        tokens = sharding.constrain(tokens, "batch", None, None)
        tokens, (keys, values) = self.blocks.condition(tokens, deterministic)
        return Condition(keys, values, self.output_norm(tokens[:, -1]))

    @nn.nowrap
    def init_cache(self, batch_size: int, num_columns: int) -> KVCache:
        """Returns an empty `KVCache`.

        Args:
          batch_size: rows of the batch.
          num_columns: columns that will be sampled; a cache never needs more slots than this or the window.
        """
        slots = num_columns if self.window_size is None else min(self.window_size, num_columns)
        shape = (self.depth, batch_size, slots, self.num_heads, self.head_dim)
        return KVCache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))

    def decode_step(
        self,
        latent: Float[AnyArray, "B D"],
        column: Int[jax.Array, ""],
        cache: KVCache,
        condition: Condition,
        max_position: Scalar | None = None,
        layers: Callable[..., tuple[jax.Array, KVCache]] | None = None,
    ) -> tuple[Float[jax.Array, "B E"], KVCache]:
        """Processes one column and returns the context of the next.

        Args:
          latent: scaled latent of the column.
          column: index of the column; columns 0 … column − 1 are in the cache.
          cache: their `KVCache`.
          condition: `Condition` of the classes of column + 1.
          max_position: bounds the position that rotates queries of cross-attention, whose keys have no position;
            None: unbounded, as published. Without `cross_rope` it changes nothing.
          layers: function that does what `Block.decode_step` does in all layers, with other kernels.

        Returns:
          The context of column + 1, and the cache that contains this column.
        """
        x = self._embed_latents(latent)[:, None]  # [B, 1, E]
        angles = rope_angles(column[None], self.head_dim)
        cross_angles = angles
        if max_position is not None:
            cross_angles = rope_angles(jnp.minimum(column, max_position)[None], self.head_dim)
        slots = cache.keys.shape[2]
        mask = jnp.arange(slots) <= column  # Later slots have not been written yet.
        keys_values = condition.keys, condition.values
        step: Any = self.blocks.decode_step if layers is None else layers
        x, cache = step(x, cache, keys_values, angles, cross_angles, column % slots, mask)
        return self.output_norm(x[:, 0]), cache

    def flow_modulations(self, time: Float[AnyArray, "..."], context: Float[AnyArray, "... E"]) -> Modulations:
        """Returns the flow head's `Modulations` for times and contexts that broadcast against each other."""
        return self.flow_head.modulations(time, context)

    def flow_embed(self, x_t: Float[AnyArray, "... D"]) -> Float[jax.Array, "... W"]:
        """Projects the flow's state to the width of the flow head."""
        return self.flow_head.embed(x_t)

    def flow_denoise(self, x: Float[jax.Array, "... W"], modulations: Modulations) -> Float[jax.Array, "... D"]:
        """Returns the velocity at an embedded state under modulations, float32."""
        return self.flow_head.denoise(x, modulations)

    def _embed_latents(self, latents: Float[AnyArray, "... D"]) -> Float[jax.Array, "... E"]:
        """Projects scaled latents to the width of the transformer."""
        return self.input_norm(self.latent_proj(jnp.asarray(latents, self.dtype)))

    def _check_latents(self, latents: AnyArray) -> None:
        if latents.ndim != 3 or latents.shape[1] < 1 or latents.shape[2] != self.latent_dim:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}; this generator takes [batch, columns ≥ 1, "
                f"latent_dim={self.latent_dim}]."
            )
