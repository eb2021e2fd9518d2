"""The flow head: an MLP that predicts the velocity of one column's latent, given its context.

The computation splits in two. The modulations (shift, scale and gate of every block) depend on time and
context and not on the state of the flow, so a sampler computes those of all its steps in one matrix product
before the loop over steps; only `denoise` remains inside the loop.

On a GPU every kernel of the loop has to wait for the one before, so their number decides. `denoise` is arranged so that
its compiler fuses each block into five: norm and modulation, product, bias and silu, product, sum with the state. Two
barriers tell it where to stop fusing; compilers for CPUs drop them. Programs for GPUs alone have four, see `late_sums`.

Letters: D latent size, E context size, W flow width.

Source: Autoregressive Image Generation without Vector Quantization, arXiv 2406.11838, section 4;
adaptive norms: DiT, arXiv 2212.09748, section 3.2.
"""

from collections.abc import Callable
import math

import flax.linen as nn
import flax.struct
import jax
from jax.nn.initializers import Initializer
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from eqjax.generator.layers import LayerNorm, remat_policy, xavier
from eqjax.typing import AnyArray

TIME_FEATURES = 256


@flax.struct.dataclass
class Modulations:
    """Adaptive-norm parameters of the flow head, computed from time and context, without biases.

    `FlowHead.denoise` adds the biases: in a pass of its own it would read and write all modulations once more.

    Attributes:
      blocks: shift, scale and gate per block.
      final: shift and scale before the output projection.
    """

    blocks: Float[jax.Array, "... depth 3 W"]
    final: Float[jax.Array, "... 2 W"]


def time_features(time: Float[AnyArray, "*batch"]) -> Float[jax.Array, "*batch 256"]:
    """Returns sinusoidal features [cos, sin] of times in [0, 1], without rescaling the times; float32."""
    half = TIME_FEATURES // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    time = jnp.asarray(time, jnp.float32)[..., None]
    angles = time * jax.lax.broadcast_to_rank(frequencies, time.ndim)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def modulate(
    x: Float[jax.Array, "... W"], shift: Float[jax.Array, "... W"], scale: Float[jax.Array, "... W"]
) -> Float[jax.Array, "... W"]:
    """Returns x · (1 + scale) + shift, in float32."""
    return x.astype(jnp.float32) * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)


class Modulation(nn.Module):
    """A projection to several modulations, whose bias can be added later.

    Attributes:
      features: shape of the modulations, their width last.
      dtype: compute dtype.
    """

    features: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        zeros, width = nn.initializers.zeros, self.features[-1]
        self.kernel = self.param("kernel", zeros, (width, *self.features), jnp.float32)
        self.bias = self.param("bias", zeros, self.features, jnp.float32)

    def __call__(self, hidden: Float[jax.Array, "... W"]) -> Float[jax.Array, "..."]:
        """Returns the modulations without bias."""
        return jnp.tensordot(hidden, self.kernel.astype(self.dtype), axes=1)

    def add_bias(self, modulations: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
        """Adds the bias."""
        return modulations + jax.lax.broadcast_to_rank(self.bias.astype(self.dtype), modulations.ndim)


class FlowBlock(nn.Module):
    """What a residual block adds to its input x: gate · mlp(modulated norm of x), float32.

    Attributes:
      width: W.
      dtype: compute dtype of the MLP.
    """

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "... W"], modulation: Float[jax.Array, "... 3 W"]
    ) -> Float[jax.Array, "... W"]:
        """Computes the sum's second term under one modulation per position."""
        shift, scale, gate = jnp.moveaxis(modulation, -2, 0)
        h = modulate(LayerNorm(1e-6, name="norm")(x), shift, scale).astype(self.dtype)
        h = nn.Dense(self.width, dtype=self.dtype, kernel_init=xavier, name="mlp_in")(h)
        h = nn.Dense(self.width, dtype=self.dtype, kernel_init=xavier, name="mlp_out")(nn.silu(h))
        return gate.astype(jnp.float32) * h.astype(jnp.float32)


class FlowHead(nn.Module):
    """Predicts the velocity of a column's latent.

    Attributes:
      width: W, of the hidden layers.
      depth: number of residual blocks.
      latent_dim: D.
      dtype: compute dtype of the matrix products; norms, modulated sums and time are float32.
      remat: rematerialization policy of the generator; any but "none" recomputes whole blocks here.
    """

    width: int
    depth: int
    latent_dim: int
    dtype: DTypeLike = jnp.float32
    remat: bool | str = False

    def setup(self) -> None:
        def dense(features: int, init: Initializer = xavier) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, kernel_init=init)

        small = nn.initializers.normal(0.02)
        self.input_proj = dense(self.width)
        self.time_in, self.time_out = dense(self.width, small), dense(self.width, small)
        self.context_proj = dense(self.width)
        # One matrix for the modulations of all blocks: they read the same input.
        self.modulation = Modulation((self.depth, 3, self.width), self.dtype)
        self.final_modulation = Modulation((2, self.width), self.dtype)
        options = remat_policy(self.remat)
        block = FlowBlock if options is None else nn.remat(FlowBlock, **{**options, "prevent_cse": True})
        self.blocks = [block(self.width, self.dtype) for _ in range(self.depth)]
        self.final_norm = LayerNorm(1e-6, affine=False)
        self.output_proj = dense(self.latent_dim, nn.initializers.zeros)

    def __call__(
        self, x_t: Float[AnyArray, "... D"], time: Float[AnyArray, "..."], context: Float[AnyArray, "... E"]
    ) -> Float[jax.Array, "... D"]:
        """Returns the velocity at states x_t and times under contexts, float32."""
        return self._velocity(self.embed(x_t), self.modulations(time, context), lambda values: values)

    def modulations(self, time: Float[AnyArray, "..."], context: Float[AnyArray, "... E"]) -> Modulations:
        """Computes the modulations of all blocks.

        Args:
          time: times, of a shape that broadcasts against that of the contexts without their last axis.
          context: outputs of the transformer.
        """
        embedded_time = self.time_out(nn.silu(self.time_in(time_features(time)))).astype(jnp.float32)  # [..., W]
        embedded_context = self.context_proj(context).astype(jnp.float32)  # [..., W]
        rank = max(embedded_time.ndim, embedded_context.ndim)
        hidden = jax.lax.broadcast_to_rank(embedded_time, rank) + jax.lax.broadcast_to_rank(embedded_context, rank)
        hidden = nn.silu(hidden).astype(self.dtype)
        # Compilers for GPUs would join products that share an operand, and then copy all results apart again.
        return Modulations(self.modulation(hidden), self.final_modulation(jax.lax.optimization_barrier(hidden)))

    def embed(self, x_t: Float[AnyArray, "... D"]) -> Float[jax.Array, "... W"]:
        """Projects the state of the flow to the width of the blocks, float32."""
        return self.input_proj(x_t).astype(jnp.float32)

    def denoise(self, x: Float[jax.Array, "... W"], modulations: Modulations) -> Float[jax.Array, "... D"]:
        """Returns the velocity at an embedded state under modulations, float32, arranged for loops over time."""
        return self._velocity(x, modulations, jax.lax.optimization_barrier)

    def _velocity(
        self, x: Float[jax.Array, "... W"], modulations: Modulations, barrier: Callable[[jax.Array], jax.Array]
    ) -> Float[jax.Array, "... D"]:
        # One kernel reads an evaluation's modulations out of those of all: the norms' kernels cannot.
        blocks = barrier(self.modulation.add_bias(modulations.blocks))
        final = barrier(self.final_modulation.add_bias(modulations.final))
        for i, block in enumerate(self.blocks):
            # The state is written once per block, not computed anew from its terms.
            x = barrier(x) + block(x, blocks[..., i, :, :])
        shift, scale = jnp.moveaxis(final, -2, 0)
        x = modulate(self.final_norm(x), shift, scale)
        return self.output_proj(x.astype(self.dtype)).astype(jnp.float32)
