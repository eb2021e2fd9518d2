"""Index shifts: whether the generator treats a column in the same way wherever in the image it stands.

The same columns, moved by k places along the panorama, should get the same context, the same velocity of the flow, and
from the same noise the same next columns. Self-attention sees relative positions, but in the published generator the
queries of cross-attention are rotated by their absolute position and its keys are not, so it is not exactly so.

Letters: B images, S shifts, L columns, R columns of context, D latent size.

Source: rotary positions: RoFormer, arXiv 2104.09864, section 3.2; moving what is sampled by changing only where it is:
arXiv 2411.09174 (there by rotations of the state).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from eqjax import flow
from eqjax.generator import Generator
from eqjax.rules import Array, Instance, Integer, Items
from eqjax.sampling.latents import sample_latents
from eqjax.typing import AnyArray, Params, PRNGKey

# Time of the flow at which velocities are compared: half noise, half latents.
_TIME = 0.5


@dataclasses.dataclass(frozen=True)
class IndexShiftErrors:
    """How far a generator's outputs move when the index of all columns is shifted.

    Attributes:
      shifts: shifts in columns.
      context: distance between the contexts of a column, over the norm of the unshifted ones; the first column's
        context, which has no position, is left out.
      velocity: the same of the flow's velocity, at half noise and half latents.
    """

    shifts: Int[np.ndarray, "S"]
    context: Float[np.ndarray, "S L"]
    velocity: Float[np.ndarray, "S L"]


def index_shift_errors(
    generator: Any, params: Params, latents: Any, labels: Any, shifts: Any, *, key: PRNGKey
) -> IndexShiftErrors:
    """Compares contexts and velocities of columns at shifted indices with those at their own.

    Args:
      generator: an `eqjax.Generator`.
      params: its parameters.
      latents: scaled latents [B, L, D], L ≥ 2.
      labels: classes [B], integers in 0 … num_classes.
      shifts: shifts in columns, each ≥ 0.
      key: random key of the noise.

    Raises:
      TypeError: an argument is of another type.
      ValueError: the latents do not fit the generator, or a shift is negative.

    Example:
      >>> generator = Generator(width=16, depth=1, num_heads=2, latent_dim=4, flow_width=8, flow_depth=1)
      >>> params = jax.jit(generator.init_params)(jax.random.key(0))
      >>> latents = jax.random.normal(jax.random.key(1), (2, 6, 4))
      >>> found = index_shift_errors(generator, params, latents, [7, 8], [0, 4], key=jax.random.key(2))
      >>> float(found.context[0].max()), bool(found.context[1].max() > 0)
      (0.0, True)
    """
    Instance(Generator, "an eqjax.Generator").check("generator", generator)
    latents = Array(("images", "columns", generator.latent_dim)).check("latents", latents)
    steps = Items(Integer(least=0), least=1).check("shifts", shifts)
    if latents.shape[1] < 2:
        raise ValueError("latents have one column; its context has no position: give 2 or more.")
    labels = jnp.asarray(Array((latents.shape[0],), "integer").check("labels", np.asarray(labels)), jnp.int32)
    noise = jax.random.normal(key, latents.shape, jnp.float32)
    outputs = [_outputs(generator, params, jnp.asarray(latents), labels, noise, jnp.int32(k)) for k in (0, *steps)]
    (context, velocity), *moved = [tuple(np.asarray(x, np.float64) for x in pair) for pair in outputs]
    return IndexShiftErrors(
        np.array(steps),
        np.stack([_column_errors(other, context) for other, _ in moved]),
        np.stack([_column_errors(other, velocity) for _, other in moved]),
    )


def sampler_shift_errors(
    generator: Any, params: Params, latents: Any, labels: Any, shifts: Any, *, key: PRNGKey, **options: Any
) -> Float[np.ndarray, "S C"]:
    """Compares columns sampled at shifted indices with those at their own: same noise, same columns before.

    The first columns of the latents are the context, `context_columns` of them; further to the left, where shifted
    indices need something, their last columns are repeated, which nothing that is compared depends on.

    Args:
      generator: an `eqjax.Generator` with a window.
      params: its parameters.
      latents: scaled latents [B, L, D]; those behind the context give the number C of sampled columns.
      labels: classes [B], integers in 0 … num_classes.
      shifts: shifts in columns, each ≥ 0.
      key: random key of the noise.
      **options: fields of `eqjax.sampling.options.SamplingOptions`, such as num_flow_steps=8; the schedule "linear" of
        guidance depends on the index itself, so the default here is "constant".

    Returns:
      Distance between the sampled columns, over the norm of the unshifted ones, [S, C].

    Raises:
      TypeError: an argument is of another type, or unknown.
      ValueError: the generator has no window, so that every column sees all before it; the latents are too short; an
        option is out of its range.

    Source: arXiv 2411.09174.

    Example:
      >>> generator = Generator(width=16, depth=1, num_heads=2, latent_dim=4, flow_width=8, flow_depth=1)
      >>> params = jax.jit(generator.init_params)(jax.random.key(0))
      >>> latents = jax.random.normal(jax.random.key(1), (1, 6, 4))
      >>> arguments = dict(key=jax.random.key(2), num_flow_steps=2)
      >>> sampler_shift_errors(generator, params, latents, [7], [0, 4], **arguments).shape
      (2, 2)
      >>> bool(sampler_shift_errors(generator, params, latents, [7], [4], **arguments, max_position=0).max() < 1e-5)
      True
    """
    Instance(Generator, "an eqjax.Generator").check("generator", generator)
    Instance(Mapping, "a mapping of parameters, such as Model.generator_params").check("params", params)
    latents = np.asarray(Array(("images", "columns", generator.latent_dim)).check("latents", latents), np.float32)
    steps: Sequence[int] = Items(Integer(least=0), least=1).check("shifts", shifts)
    context = context_columns(generator)
    sampled = latents.shape[1] - context
    if sampled < 1:
        raise ValueError(
            f"latents have {latents.shape[1]} columns; {generator.depth} layers with a window of "
            f"{generator.window_size} see {context}, so give at least {context + 1}."
        )
    options = {"guidance_schedule": "constant", **options}
    noise = np.asarray(jax.random.normal(key, (latents.shape[0], sampled, latents.shape[2]), jnp.float32), np.float32)

    def sample(shift: int) -> Float[np.ndarray, "B C D"]:
        prefix = latents[:, np.arange(-shift, context) % context]
        source = np.concatenate([np.zeros_like(prefix), noise], axis=1)  # Only the last columns are sampled.
        made = sample_latents(
            generator, params, labels, num_columns=source.shape[1], noise=source, prefix=prefix, **options
        )
        return np.asarray(made, np.float64)[:, -sampled:]

    reference = sample(0)
    norms = np.sqrt(np.square(reference).sum((0, 2)))
    return np.stack([np.sqrt(np.square(sample(k) - reference).sum((0, 2))) / norms for k in steps])


def context_columns(generator: Generator) -> int:
    """Returns the number of columns before a column that its context depends on.

    Raises:
      ValueError: the generator has no window.

    Example:
      >>> context_columns(Generator(depth=2, window_size=4))
      7
    """
    if generator.window_size is None:
        raise ValueError(
            "this generator has no window (window_size=None): a column sees all columns before it, so columns cannot "
            "be moved with their context; give one with a window."
        )
    return generator.depth * (generator.window_size - 1) + 1


@functools.partial(jax.jit, static_argnums=0)
def _outputs(
    generator: Generator,
    params: Params,
    latents: Float[AnyArray, "B L D"],
    labels: Int[AnyArray, "B"],
    noise: Float[AnyArray, "B L D"],
    shift: Int[AnyArray, ""],
) -> tuple[jax.Array, jax.Array]:
    """Returns contexts and velocities of columns whose indices begin at a shift."""
    variables = {"params": params}
    context: Any = generator.apply(variables, latents, labels, rope_shift=shift, method="context")
    time = jnp.full(latents.shape[:2], _TIME)
    state = flow.interpolate(latents, noise, time)
    velocity: Any = generator.apply(variables, state, time, context, method="velocity")
    return context[:, 1:], velocity[:, 1:]


def _column_errors(moved: Float[np.ndarray, "B L E"], reference: Float[np.ndarray, "B L E"]) -> Float[np.ndarray, "L"]:
    distances, norms = (np.sqrt(np.square(x).sum((0, 2))) for x in (moved - reference, reference))
    # Columns of zeros, such as velocities of a generator at its start, have moved if anything is there now.
    return np.divide(distances, norms, out=np.where(distances > 0, np.inf, 0).astype(norms.dtype), where=norms > 0)
