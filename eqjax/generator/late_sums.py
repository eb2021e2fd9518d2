"""The flow head's evaluations for compilers of GPUs, in plain JAX: every sum is added up by those that need it.

Where `FlowHead.denoise` has five kernels a block, here are four, without kernels of our own:

    norm · product · silu and state · product

The state behind a block, x + gate · (sum of partial products + b), is computed twice: in the kernel of the next norm,
which cannot have two results, and in that of the next silu, which can, and writes it for the blocks behind. So
no kernel is left that only adds. It reads partial products twice, which costs less than a kernel.

Three arrangements make XLA's compiler do so, for jax 0.7 to 0.12 alike:

- Products are split by hand, as in `fused_rows`, or it would split them itself and add the parts in a kernel.
- A barrier ties the parts to the product behind them, or the two computations of the state would be one.
- It joins two kernels only if both read some array at the same place. These have one array of biases, which they read
  as integers: of floats it would see that each reads a row of its own.

Like `FlowHead.denoise` it rounds to the compute dtype before products; between them it rounds less often.

Letters: R rows, B states, D latent size, W flow width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from eqjax.generator.flow_head import Modulations, modulate
from eqjax.generator.flow_weights import EPSILON, Weights, partial_products
from eqjax.generator.layers import normalize


def join_biases(weights: Weights) -> Int[jax.Array, "sums 2 W"]:
    """Returns the biases that one kernel reads, the bits of float32: of a block's first product, and of the one before.

    Args:
      weights: weights of the flow head.
    """
    inner = [block.mlp_in[1] for block in weights.blocks]
    before = [weights.input_proj[1], *(block.mlp_out[1] for block in weights.blocks)]
    both = jnp.stack([jnp.stack([*inner, jnp.zeros_like(before[0])]), jnp.stack(before)], axis=1)
    return jax.lax.bitcast_convert_type(both.astype(jnp.float32), jnp.int32)


def velocity(
    weights: Weights, biases: Int[jax.Array, "sums 2 W"], z: Float[jax.Array, "B D"], modulations: Modulations
) -> Float[jax.Array, "R D"]:
    """Returns the velocity at a state, float32: that of `FlowHead`, within rounding.

    Args:
      weights: weights of the flow head.
      biases: those of `join_biases`, made outside of the loop over time.
      z: state of the flow, in the compute dtype.
      modulations: modulations, leaves [R, …], where R is a multiple of B: rows that share a state.
    """
    if len(modulations.final) == 1:
        twice = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), (z, modulations))
        return velocity(weights, biases, *twice)[:1]
    barrier = jax.lax.optimization_barrier
    blocks = barrier(modulations.blocks + weights.modulation[None])
    final = barrier(modulations.final + weights.final_modulation[None])
    added = jax.lax.bitcast_convert_type(biases, jnp.float32)

    def state(i: int, parts: jax.Array, x: jax.Array | None) -> Float[jax.Array, "R W"]:
        """Returns the state before block i."""
        total = jnp.sum(parts, axis=0) + added[i, 1][None]
        if x is None:
            return jnp.tile(total, (len(blocks) // len(z), 1))  # Rows of the classes, and those of the null class.
        return x + blocks[:, i - 1, 2].astype(jnp.float32) * total

    if len(z) == 1:  # A product of one row would be a sum, in kernels that the norm cannot be joined with.
        z = jnp.tile(z, (len(blocks), 1))
    x, (parts, _) = None, partial_products(z, weights.input_proj)
    for i, block in enumerate(weights.blocks):
        norm = normalize(EPSILON, jnp.float32, state(i, parts, x), *block.norm)
        h = barrier(modulate(norm, blocks[:, i, 0], blocks[:, i, 1]).astype(z.dtype))
        parts, (hidden, _) = barrier((parts, partial_products(h, block.mlp_in)))
        hidden = jax.nn.silu(jnp.sum(hidden, axis=0) + added[i, 0][None]).astype(z.dtype)
        x, hidden = barrier((state(i, parts, x), hidden))
        parts, _ = partial_products(hidden, block.mlp_out)
    norm = normalize(EPSILON, jnp.float32, state(len(weights.blocks), parts, x))
    kernel, bias = weights.output_proj
    h = modulate(norm, final[:, 0], final[:, 1]).astype(z.dtype)
    return jnp.dot(h, kernel).astype(jnp.float32) + bias.astype(jnp.float32)[None]
