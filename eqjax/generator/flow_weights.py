"""Weights of the flow head as functions for GPUs take them, and products whose sums are in parts.

Letters: R rows, K and N inputs and outputs of a layer, W flow width, S parts of a sum.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from eqjax.generator.gpu_sizes import LEAST, PROGRAMS
from eqjax.typing import Params

# Rows and columns of the tiles that XLA's products are assumed to have.
_TILE = 64
_MOST_PARTS = 8
EPSILON = 1e-6  # That of the norms of `FlowHead`.

# Kernels and biases.
Layer: TypeAlias = tuple[Float[jax.Array, "K N"], Float[jax.Array, "N"]]


class BlockWeights(NamedTuple):
    """Weights of a block.

    Attributes:
      norm: scale and bias, float32.
      mlp_in: its first layer.
      mlp_out: its second layer.
    """

    norm: tuple[Float[jax.Array, "W"], Float[jax.Array, "W"]]
    mlp_in: Layer
    mlp_out: Layer


class Weights(NamedTuple):
    """Weights of the flow head, in the compute dtype but for norms.

    Attributes:
      input_proj: layer before the blocks.
      blocks: those of the blocks.
      output_proj: layer behind the blocks.
      modulation: biases of the blocks' modulations.
      final_modulation: biases of the modulations before the last layer.
    """

    input_proj: Layer
    blocks: tuple[BlockWeights, ...]
    output_proj: Layer
    modulation: Float[jax.Array, "depth 3 W"]
    final_modulation: Float[jax.Array, "2 W"]

    @classmethod
    def from_params(cls, params: Params, dtype: DTypeLike) -> "Weights":
        """Returns the weights in the parameters of a `FlowHead`."""

        def layer(values: Any) -> Layer:
            return values["kernel"].astype(dtype), values["bias"].astype(dtype)

        def block(values: Any) -> BlockWeights:
            norm = values["norm"]["scale"], values["norm"]["bias"]
            return BlockWeights(norm, layer(values["mlp_in"]), layer(values["mlp_out"]))

        depth = sum(name.startswith("blocks_") for name in params)
        return cls(
            layer(params["input_proj"]),
            tuple(block(params[f"blocks_{i}"]) for i in range(depth)),
            layer(params["output_proj"]),
            params["modulation"]["bias"].astype(dtype),
            params["final_modulation"]["bias"].astype(dtype),
        )


def partial_products(
    left: Float[jax.Array, "R K"], layer: Layer
) -> tuple[Float[jax.Array, "S R N"], Float[jax.Array, "N"]]:
    """Returns a product in parts of its sum over K, float32, and the bias that is still to be added."""
    kernel, bias = layer
    (rows, depth), columns = left.shape, kernel.shape[1]
    parts = num_parts(rows, depth, columns)
    found = jax.lax.dot_general(
        left.reshape(rows, parts, depth // parts),
        kernel.reshape(parts, depth // parts, columns),
        (((2,), (1,)), ((1,), (0,))),
        preferred_element_type=jnp.float32,
    )
    return found, bias


def num_parts(rows: int, depth: int, columns: int) -> int:
    """Returns S: a power of 2, at least 2 if K is even, with which as many programs as run at once compute a product.

    Example:
      >>> num_parts(128, 1280, 1280), num_parts(512, 1280, 1280)
      (4, 2)
    """
    tiles, parts = -(-rows // _TILE) * -(-columns // _TILE), 2 - depth % 2
    while parts * tiles < PROGRAMS and parts < _MOST_PARTS and depth % (2 * LEAST * parts) == 0:
        parts *= 2
    return parts
