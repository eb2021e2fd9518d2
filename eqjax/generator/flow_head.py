"""The flow head: an MLP that gives the velocity of one column's latent under its context.

What it computes splits in two. The modulations (shift, scale and gate of every block) depend on
time and context and not on the state of the flow, so a sampler computes those of all its steps
in one product, before the loop over steps; `denoise` is what remains inside the loop.

Source: Autoregressive Image Generation without Vector Quantization, arXiv 2406.11838, section 4;
adaptive norms: DiT, arXiv 2212.09748, section 3.2.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from eqjax.generator.layers import layer_norm, remat_policy, xavier

TIME_FEATURES = 256


@flax.struct.dataclass
class Modulations:
    """What time and context tell the blocks.

    Attributes:
      blocks: shift, scale and gate per block, [..., depth, 3, W].
      final: shift and scale before the last projection, [..., 2, W].
    """

    blocks: jax.Array
    final: jax.Array


def time_features(time):
    """Sinusoidal features [cos, sin] of times in [0, 1], not rescaled: [...] → float32 [..., 256]."""
    half = TIME_FEATURES // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = time.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def modulate(x, shift, scale):
    """x · (1 + scale) + shift, in float32."""
    return x.astype(jnp.float32) * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)


class FlowBlock(nn.Module):
    """x + gate · mlp(modulated norm of x); the residual stream is float32."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, modulation):
        """x [..., W], modulation [..., 3, W] → [..., W]."""
        shift, scale, gate = jnp.moveaxis(modulation, -2, 0)
        h = modulate(layer_norm(1e-6, jnp.float32, name="norm")(x), shift, scale).astype(self.dtype)
        h = nn.Dense(self.width, dtype=self.dtype, kernel_init=xavier, name="mlp_in")(h)
        h = nn.Dense(self.width, dtype=self.dtype, kernel_init=xavier, name="mlp_out")(nn.silu(h))
        return x + gate.astype(jnp.float32) * h.astype(jnp.float32)


class FlowHead(nn.Module):
    """Velocity of a column's latent.

    Attributes:
      width: W, of the hidden layers.
      depth: residual blocks.
      latent_dim: D.
      dtype: compute dtype of the products; norms, modulation sums and time are float32.
      remat: as the generator's; any recomputation does blocks anew here.
    """

    width: int
    depth: int
    latent_dim: int
    dtype: jnp.dtype = jnp.float32
    remat: bool | str = False

    def setup(self):
        def dense(features, init=xavier):
            return nn.DenseGeneral(features, dtype=self.dtype, kernel_init=init)

        small, zeros = nn.initializers.normal(0.02), nn.initializers.zeros
        self.input_proj = dense(self.width)
        self.time_in, self.time_out = dense(self.width, small), dense(self.width, small)
        self.context_proj = dense(self.width)
        # One matrix for the modulations of all blocks: they read the same input.
        self.modulation = dense((self.depth, 3, self.width), zeros)
        self.final_modulation = dense((2, self.width), zeros)
        options = remat_policy(self.remat)
        block = FlowBlock if options is None else nn.remat(FlowBlock, **{**options, "prevent_cse": True})
        self.blocks = [block(self.width, self.dtype) for _ in range(self.depth)]
        self.final_norm = layer_norm(1e-6, jnp.float32, use_bias=False, use_scale=False)
        self.output_proj = dense(self.latent_dim, zeros)

    def __call__(self, x_t, time, context):
        """x_t [..., D], time [...], context [..., E] → velocity, float32 [..., D]."""
        return self.denoise(self.embed(x_t), self.modulations(time, context))

    def modulations(self, time, context):
        """`Modulations` for times and contexts that broadcast against each other: [...], [..., E]."""
        time = self.time_out(nn.silu(self.time_in(time_features(time))))  # [..., W]
        hidden = time.astype(jnp.float32) + self.context_proj(context).astype(jnp.float32)
        hidden = nn.silu(hidden).astype(self.dtype)  # [..., W]
        return Modulations(self.modulation(hidden), self.final_modulation(hidden))

    def embed(self, x_t):
        """The state of the flow [..., D] → float32 [..., W]."""
        return self.input_proj(x_t).astype(jnp.float32)

    def denoise(self, x, modulations):
        """An embedded state [..., W] under modulations → velocity, float32 [..., D]."""
        for i, block in enumerate(self.blocks):
            x = block(x, modulations.blocks[..., i, :, :])
        shift, scale = jnp.moveaxis(modulations.final, -2, 0)
        x = modulate(self.final_norm(x), shift, scale)
        return self.output_proj(x.astype(self.dtype)).astype(jnp.float32)
