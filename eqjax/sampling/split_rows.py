"""Chunks on the devices of a mesh, each of which samples images of its own with all parameters, and waits for none.

Divided by XLA, rows of classes and those of the null class would be sent between devices in every evaluation of the
flow head, and the fused kernels for GPUs could not be divided at all. Here every device runs the program of one device
on its rows: whole images, with guidance those of the null class too. Arrays of such rows, as the KV cache, then have
the class rows of the first device, its null rows, those of the second device, ….
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Int, Shaped

from eqjax import sharding
from eqjax.sampling.sampler import column_noise
from eqjax.typing import AnyArray

# Axes of the rows by the names of arrays; every device has all of the others.
_ROWS = {
    "inputs/labels": 0,
    "made/conditions/keys": 2,
    "made/conditions/values": 2,
    "made/conditions/first": 1,
    "state/context": 0,
    "state/cache/keys": 1,
    "state/cache/values": 1,
    "source": 0,
    "latents": 0,
}


def run(function: Callable[..., dict[str, Any]], mesh: Mesh | None, like: Any = None, **given: Any) -> dict[str, Any]:
    """Calls a traced function, on every device of a mesh by itself.

    Args:
      function: function of `given` by name, a dictionary of results. `_ROWS` has the names of arrays with rows.
      mesh: a mesh of `eqjax.sharding.make_mesh`, the batch being a multiple of its data axes; None: calls it as it is.
      like: a tree with the structure of the results, whatever its leaves are; None: the function is traced to find it,
        for all rows.
      **given: its arguments, arrays and trees of them.
    """
    if mesh is None:
        return function(**given)
    inputs, structure = jax.tree.flatten(given)
    results: Any = jax.eval_shape(function, **given) if like is None else like

    def local(*leaves: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jax.tree.leaves(function(**jax.tree.unflatten(structure, leaves))))

    # The check of replication would require marking every loop's state as varying among devices.
    found = jax.shard_map(
        local, mesh=mesh, in_specs=tuple(_specs(given)), out_specs=tuple(_specs(results)), check_vma=False
    )(*inputs)
    return jax.tree.unflatten(jax.tree.structure(results), found)


def _specs(tree: dict[str, Any]) -> list[PartitionSpec]:
    """Returns how each leaf is split."""
    names = [sharding.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    axes = [_ROWS.get(name) for name in names]
    whole = PartitionSpec()
    return [whole if axis is None else PartitionSpec(*[None] * axis, sharding.BATCH_AXES) for axis in axes]


def noise_of_chunk(
    source: Shaped[jax.Array, "..."], first: Int[AnyArray, ""], shape: tuple[int, int, int]
) -> Float[jax.Array, "B C D"]:
    """Returns the initial noise of a chunk's columns, the same for any number of devices.

    Args:
      source: a random key, or keys [B], see `column_noise`.
      first: index of the first column.
      shape: B, C, D.
    """
    batch_size, columns, size = shape
    draw = jax.vmap(lambda column: column_noise(source, column, (batch_size, size)), out_axes=1)
    return draw(first + jnp.arange(columns, dtype=first.dtype))
