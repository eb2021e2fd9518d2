"""Integration of a column's flow with the fused kernels of the flow head (`eqjax.generator.fused_flow`).

They are for one NVIDIA GPU. Whether a program is compiled for one is known only when it is lowered, so "auto" leaves
the choice to that moment. Derivatives are those of the plain path.

Letters: B batch, R = B or 2B rows, D latent size, E width.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from eqjax import flow
from eqjax.generator import Modulations, flow_kernels
from eqjax.sampling.shortcuts import integrate
from eqjax.typing import AnyArray, Scalar

_INTERPRET = False  # Tests emulate the kernels on CPUs.


def takes_fused(sampler: Any, rows: int) -> bool:
    """Returns whether a column is integrated with the fused kernels, if its program is compiled for a GPU.

    Args:
      sampler: a `Sampler`.
      rows: R.
    """
    choice, head = sampler.shortcuts.flow_kernels, sampler.generator
    if choice == "plain" or sampler.shortcuts.window is not None:
        return False
    return choice == "fused" or flow_kernels.is_worthwhile(rows, head.flow_width, head.latent_dim, head.dtype)


def integrate_column(
    plain: Callable[..., Float[jax.Array, "B D"]],
    sampler: Any,
    context: Float[jax.Array, "R E"],
    noise: Float[jax.Array, "B D"],
    guidance_scale: Scalar,
    chunk_size: int,
) -> Float[jax.Array, "B D"]:
    """Returns the latents of a column.

    Args:
      plain: function of the next four arguments that does the same without the kernels.
      sampler: a `Sampler`.
      context: context of the column.
      noise: initial noise.
      guidance_scale: unused without guidance.
      chunk_size: evaluations whose modulations are in memory at once.
    """
    fused = jax.custom_jvp(functools.partial(_integrate_fused, chunk_size))
    fused.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    given = sampler, context, noise, guidance_scale
    if sampler.shortcuts.flow_kernels == "fused":
        return fused(*given)
    return jax.lax.platform_dependent(*given, cuda=fused, default=plain)


def _integrate_fused(
    chunk_size: int,
    sampler: Any,
    context: Float[jax.Array, "R E"],
    noise: Float[jax.Array, "B D"],
    guidance_scale: Scalar,
) -> Float[jax.Array, "B D"]:
    from eqjax.generator import fused_flow

    weights = fused_flow.Weights.from_params(sampler.params["flow_head"], sampler.generator.dtype)

    def modulations(times: Float[AnyArray, "n"]) -> Modulations:
        return sampler.apply(times[:, None], context[None], method="flow_modulations")

    def velocity(z: Float[jax.Array, "B D"], read: Any) -> Float[jax.Array, "B D"]:
        all_modulations, index = read
        found = fused_flow.velocity(weights, z, all_modulations, index, interpret=_INTERPRET)
        if not sampler.is_guided:
            return found
        conditional, unconditional = jnp.split(found, 2)
        return jnp.asarray(flow.classifier_free_guidance(conditional, unconditional, guidance_scale))

    dtype = sampler.generator.dtype
    found = integrate(
        sampler.shortcuts, velocity, noise, sampler.solver_table, modulations, chunk_size, dtype, in_place=True
    )
    return found[0]
