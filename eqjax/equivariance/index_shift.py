"""Does a generator depend on the index of a column, beyond the columns before it? Checks of transformer and sampler.

With `Generator(cross_rope=False)` both errors are those of rounding. As published, queries of cross-attention are
rotated by the index, and they are not.

Letters: B batch, L columns, P prefix columns, D latent size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from eqjax.generator import Generator
from eqjax.rules import Array, Instance, Integer
from eqjax.sampling.latents import sample_latents
from eqjax.typing import AnyArray

_LATENTS = Array(("batch", "columns", "channels"))
_A_GENERATOR = Instance(Generator, "an eqjax.Generator")


def context_shift_errors(generator: Any, params: Any, latents: Any, labels: Any, shift: Any) -> Float[np.ndarray, "L"]:
    """Returns how much the contexts of columns change if the index of all columns grows by `shift`.

    Args:
      generator: a `Generator`.
      params: its parameters.
      latents: scaled latents [B, L, D].
      labels: integers [B].
      shift: columns, ≥ 0.

    Returns:
      Norm of the difference over the norm of the context, per column. The first column follows from the class alone,
      so its error is 0.

    Raises:
      TypeError: an argument is of another type.
      ValueError: the shift is negative, or the latents do not fit the generator.

    Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.2: all columns are one task.

    Example:
      >>> fields = dict(width=16, depth=1, num_heads=2, latent_dim=4, flow_width=8, flow_depth=1)
      >>> generator = Generator(**fields, cross_rope=False)
      >>> params = generator.init_params(jax.random.key(0))
      >>> latents = jax.random.normal(jax.random.key(1), (1, 6, 4))
      >>> bool((context_shift_errors(generator, params, latents, [3], 100) < 1e-5).all())
      True
    """
    _A_GENERATOR.check("generator", generator)
    latents, shift = _LATENTS.check("latents", latents), Integer(least=0).check("shift", shift)

    @jax.jit
    def context(shift: jax.Array) -> jax.Array:
        return generator.apply({"params": params}, latents, jnp.asarray(labels), rope_shift=shift, method="context")

    return _errors(context(jnp.asarray(shift)), context(jnp.asarray(0)))


def sample_shift_errors(
    generator: Any, params: Any, labels: Any, prefix: Any, *, shift: Any, num_columns: Any, key: Any, **options: Any
) -> Float[np.ndarray, "L"]:
    """Returns how much sampled columns change if the same panorama is `shift` columns further on.

    Two panoramas are sampled with the same noise: one begins with `prefix`; the other with `shift` other columns and
    then `prefix`. The prefix is long enough for nothing before it to matter, so a generator that is equivariant to
    shifts of the index continues both alike.

    Args:
      generator: a `Generator` with a window.
      params: its parameters.
      labels: classes [B].
      prefix: scaled latents [B, P, D], P > depth · (window_size − 1).
      shift: columns, ≥ 1.
      num_columns: columns to sample and compare.
      key: random key of the noise.
      **options: of `eqjax.sample_latents`; the guidance schedule "linear" depends on the index itself, so the default
        here is "constant".

    Returns:
      Norm of the difference over the norm of the latents, per sampled column.

    Raises:
      TypeError: an argument is of another type.
      ValueError: the generator sees all columns, or the prefix is too short.

    Source: arXiv 2503.18948, section 3.2; the same noise at another place: arXiv 2411.09174, section 3.

    Example:
      >>> fields = dict(width=16, depth=1, num_heads=2, latent_dim=4, flow_width=8, flow_depth=1, window_size=2)
      >>> generator = Generator(**fields, cross_rope=False)
      >>> params, prefix = generator.init_params(jax.random.key(0)), jnp.ones((1, 2, 4))
      >>> more = dict(shift=5, num_columns=2, key=jax.random.key(1), num_flow_steps=2)
      >>> bool((sample_shift_errors(generator, params, [3], prefix, **more) < 1e-4).all())  # doctest: +SKIP
      True
    """
    _A_GENERATOR.check("generator", generator)
    prefix = jnp.asarray(_LATENTS.check("prefix", prefix), jnp.float32)
    shift, count = Integer(least=1).check("shift", shift), Integer(least=1).check("num_columns", num_columns)
    if generator.window_size is None:
        raise ValueError(
            "window_size=None: this generator sees all columns before, so a longer panorama is another context. Only "
            "generators with a window can be compared at two places."
        )
    reach = generator.depth * (generator.window_size - 1)
    if prefix.shape[1] <= reach:
        raise ValueError(
            f"prefix has {prefix.shape[1]} columns, but depth={generator.depth} layers of "
            f"window_size={generator.window_size} reach {reach} columns back: give at least {reach + 1}."
        )
    options = {"guidance_schedule": "constant", **options}
    noise_key, filler_key = jax.random.split(key)
    batch, columns, dim = prefix.shape
    noise = jax.random.normal(noise_key, (batch, columns + count, dim))
    filler = jax.random.normal(filler_key, (batch, shift, dim))

    def sample(before: jax.Array) -> Float[AnyArray, "B L D"]:
        extra = before.shape[1] - columns
        padded = jnp.pad(noise, ((0, 0), (extra, 0), (0, 0)))
        total = before.shape[1] + count
        latents = sample_latents(generator, params, labels, num_columns=total, noise=padded, prefix=before, **options)
        return latents[:, -count:]

    return _errors(sample(jnp.concatenate([filler, prefix], axis=1)), sample(prefix))


def _errors(moved: Float[AnyArray, "B L D"], there: Float[AnyArray, "B L D"]) -> Float[np.ndarray, "L"]:
    moved, there = np.asarray(moved, np.float64), np.asarray(there, np.float64)
    return np.linalg.norm(moved - there, axis=(0, 2)) / np.linalg.norm(there, axis=(0, 2))
