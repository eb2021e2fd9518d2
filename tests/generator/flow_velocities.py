"""Velocities of the flow head along kernels for GPUs, emulated on the CPU, and of the flow head itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eqjax.generator import FlowHead, Modulations, gpu_kernels
from eqjax.generator.flow_weights import Weights

EVALUATIONS, INDEX, LATENT = 3, 1, 16


def head_params(head, seed=0):
    """Returns parameters all of which matter: none is zero."""
    shapes = jax.eval_shape(head.init, jax.random.key(0), np.zeros((1, LATENT)), np.zeros(1), np.zeros((1, 8)))
    rng = np.random.default_rng(seed)

    def draw(leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        return values / np.sqrt(np.float32(leaf.shape[0])) if leaf.ndim > 1 else 0.5 + 0.1 * values

    return jax.tree.map(draw, shapes["params"])


def evaluate(kind, width, states, dtype="float32", depth=2, repeats=2, input_bias=0.0):
    """Returns the velocity along a kind of kernels, and that of the flow head in the dtype and in float32.

    The first layer's bias is moved by `input_bias`.
    """
    params = head_params(FlowHead(width, depth, LATENT))
    params["input_proj"]["bias"] = params["input_proj"]["bias"] + np.float32(input_bias)
    rng = np.random.default_rng(1)
    rows = repeats * states
    z = rng.normal(size=(states, LATENT)).astype(np.float32)
    modulations: Any = (
        0.3 * rng.normal(size=(EVALUATIONS, rows, depth, 3, width)).astype(np.float32),
        0.3 * rng.normal(size=(EVALUATIONS, rows, 2, width)).astype(np.float32),
    )

    def fused(params, z, modulations):
        z, *leaves = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (z, *modulations))
        modulations = Modulations(*leaves)
        here = jax.tree.map(lambda leaf: leaf[INDEX], modulations)
        read = here if kind == "sums" else (modulations, jnp.full(1, INDEX, jnp.int32))
        return gpu_kernels.velocity(kind, Weights.from_params(params, dtype), interpret=True)(z, read)

    def plain(params, z, modulations, dtype):
        head = FlowHead(width, depth, LATENT, jnp.dtype(dtype))
        x: Any = head.apply({"params": params}, z, method="embed")
        here = Modulations(*(jnp.asarray(leaf[INDEX], dtype) for leaf in modulations))
        return head.apply({"params": params}, jnp.concatenate([x] * repeats), here, method="denoise")

    plain = jax.jit(plain, static_argnums=3)
    given = params, z, modulations
    return (np.asarray(a) for a in (jax.jit(fused)(*given), plain(*given, dtype), plain(*given, "float32")))
