"""A column on NVIDIA GPUs: with the fused kernels of the flow head and of the transformer, or with late sums.

They are in `eqjax.generator`, `fused_…` and `late_sums`. Whether a program is compiled for such a GPU is known only
when it is lowered, so the choice is left to that moment unless kernels are demanded. Derivatives are those of other
devices.

Letters: B batch, R = B or 2B rows, D latent size, E width.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from eqjax import flow
from eqjax.generator import Condition, KVCache, Modulations, gpu_kernels
from eqjax.generator.flow_weights import Weights
from eqjax.sampling.shortcuts import integrate
from eqjax.typing import AnyArray, Scalar

_INTERPRET = False  # Tests emulate the kernels on CPUs.


def flow_kind(sampler: Any, rows: int) -> str | None:
    """Returns the kind of kernels that integrates a column if its program is compiled for a GPU; None: as elsewhere.

    Args:
      sampler: a `Sampler`.
      rows: R.
    """
    kind = gpu_kernels.flow_kind(rows, sampler.generator)
    if _takes(kind, sampler, rows):
        return kind
    return "sums" if sampler.shortcuts.window is None and gpu_kernels.has_late_sums() else None


def takes_layers(sampler: Any, rows: int) -> bool:
    """Returns whether a column is fed with fused kernels, if its program is compiled for a GPU.

    Args:
      sampler: a `Sampler`.
      rows: R.
    """
    return _takes("layers", sampler, rows)


def _takes(kind: str, sampler: Any, rows: int) -> bool:
    choice = sampler.shortcuts.gpu_kernels
    if choice == "plain" or sampler.shortcuts.window is not None:
        return False
    if isinstance(choice, frozenset):
        return kind in choice
    return choice == "fused" or gpu_kernels.is_worthwhile(kind, rows, sampler.generator)


def agree(inputs: Any, images: int, mesh: jax.sharding.Mesh) -> Any:
    """Returns inputs with the kernels on which all processes of a mesh agree, see `gpu_kernels.agree`.

    Args:
      inputs: `SamplerInputs` for the mesh.
      images: images of each device.
      mesh: the mesh.
    """
    rows = images * (2 if inputs.is_guided else 1)
    kernels = gpu_kernels.agree(inputs.shortcuts.gpu_kernels, inputs.generator, rows, mesh)
    return dataclasses.replace(inputs, shortcuts=dataclasses.replace(inputs.shortcuts, gpu_kernels=kernels))


def integrate_column(
    plain: Callable[..., Float[jax.Array, "B D"]],
    sampler: Any,
    context: Float[jax.Array, "R E"],
    noise: Float[jax.Array, "B D"],
    guidance_scale: Scalar,
    chunk_size: int,
    kind: str,
) -> Float[jax.Array, "B D"]:
    """Returns the latents of a column.

    Args:
      plain: function of the next four arguments that does the same without the kernels.
      sampler: a `Sampler`.
      context: context of the column.
      noise: initial noise.
      guidance_scale: unused without guidance.
      chunk_size: evaluations whose modulations are in memory at once.
      kind: that of the kernels, see `flow_kind`.
    """
    fused = functools.partial(_integrate_fused, kind, chunk_size)
    return _choose(plain, fused, sampler, context, noise, guidance_scale)


def decode_step(
    plain: Callable[..., tuple[Float[jax.Array, "R E"], KVCache]],
    sampler: Any,
    latent: Float[jax.Array, "R D"],
    column: Int[jax.Array, ""],
    cache: KVCache,
    condition: Condition,
) -> tuple[Float[jax.Array, "R E"], KVCache]:
    """Feeds one column to the transformer; returns the context of the next, and the cache that contains this one.

    Args:
      plain: function of the next five arguments that does the same without the kernels, or of these and a function of
        what `Block.decode_step` gets.
      sampler: a `Sampler`.
      latent: latents of the column.
      column: its index.
      cache: the cache of the columns before it.
      condition: `Condition` of the classes of the next column.
    """

    def fused(sampler: Any, *given: Any) -> tuple[jax.Array, KVCache]:
        from eqjax.generator import fused_layers

        weights = fused_layers.Weights.from_params(sampler.params["blocks"], sampler.generator.dtype)
        options: dict[str, Any] = dict(cross_rope=sampler.generator.cross_rope, interpret=_INTERPRET)
        return plain(sampler, *given, functools.partial(fused_layers.decode_step, weights, **options))

    return _choose(plain, fused, sampler, latent, column, cache, condition)


def _choose(plain: Callable[..., Any], fused: Callable[..., Any], sampler: Any, *given: Any) -> Any:
    """Calls the function for GPUs; unless it is demanded, the other one where the program is not for an NVIDIA GPU."""
    with_kernels = jax.custom_jvp(fused)
    with_kernels.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    if sampler.shortcuts.gpu_kernels == "fused":
        return with_kernels(sampler, *given)
    return jax.lax.platform_dependent(sampler, *given, cuda=with_kernels, default=plain)


def _integrate_fused(
    kind: str,
    chunk_size: int,
    sampler: Any,
    context: Float[jax.Array, "R E"],
    noise: Float[jax.Array, "B D"],
    guidance_scale: Scalar,
) -> Float[jax.Array, "B D"]:
    weights = Weights.from_params(sampler.params["flow_head"], sampler.generator.dtype)
    evaluate = gpu_kernels.velocity(kind, weights, _INTERPRET)

    def modulations(times: Float[AnyArray, "n"]) -> Modulations:
        return sampler.apply(times[:, None], context[None], method="flow_modulations")

    def velocity(z: Float[jax.Array, "B D"], read: Any) -> Float[jax.Array, "B D"]:
        found = evaluate(z, read)
        if not sampler.is_guided:
            return found
        conditional, unconditional = jnp.split(found, 2)
        return jnp.asarray(flow.classifier_free_guidance(conditional, unconditional, guidance_scale))

    dtype = sampler.generator.dtype
    given = sampler.shortcuts, velocity, noise, sampler.solver_table, modulations, chunk_size, dtype
    return integrate(*given, in_place=kind != "sums")[0]
