"""The device mesh, and the sharding of parameters, optimizer state and batches over it.

    data    splits batches; parameters are copied
    fsdp    splits batches and parameters, which are gathered where a layer needs them
    tensor  splits heads and hidden channels; batches are copied

A table of rules maps a parameter's path to logical axes, and `MESH_AXES` maps logical axes to mesh axes. EMA weights
and optimizer moments share their parameter's path suffix, so the same rules apply to them.
"""

from collections.abc import Sequence
import math
import re
from typing import Any, TypeAlias

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from eqjax.typing import AnyArray, Tree

# Pairs of a pattern, searched for in a parameter's path, and the logical axes of the parameter; see `spec_for`.
Rules: TypeAlias = Sequence[tuple[str, Sequence[str | None]]]

AXES = ("data", "fsdp", "tensor")
# Mesh axes that split batches.
BATCH_AXES = ("data", "fsdp")
# Mesh axes of every logical axis. Other logical axes, and None, are not split.
MESH_AXES: dict[str | None, str | tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
}
# Arrays without a rule are split if they have at least this many values.
SMALLEST_SPLIT = 4096

# ── Mesh ────────────────────────────────────────────────────────────────────────────────────────


def parse_mesh(text: str, num_devices: int) -> dict[str, int]:
    """Parses the sizes of the mesh axes from "data:4,fsdp:2,tensor:1".

    Args:
      text: names and sizes; other axes have size 1, and one size may be -1 for the remaining devices.
      num_devices: number of devices.

    Returns:
      {"data": size, "fsdp": size, "tensor": size}.

    Raises:
      ValueError: an axis is unknown or named twice, a size is not a number, or the sizes do not multiply to the number
        of devices.

    Example:
      >>> parse_mesh("data:-1,tensor:2", num_devices=8)
      {'data': 4, 'fsdp': 1, 'tensor': 2}
    """
    sizes: dict[str, int] = {}
    for item in filter(None, text.replace(" ", "").split(",")):
        name, _, size = item.partition(":")
        if name not in AXES:
            raise ValueError(f"mesh={text!r} has an unknown axis {name!r}; the axes are {', '.join(AXES)}.")
        if not re.fullmatch(r"-1|[1-9]\d*", size):
            raise ValueError(f"mesh={text!r}: {item!r} needs a size of at least 1, or -1 for the remaining devices.")
        if name in sizes:
            raise ValueError(f"mesh={text!r} names {name!r} twice; give every axis once.")
        sizes[name] = int(size)
    sizes = {name: sizes.get(name, 1) for name in AXES}
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"mesh={text!r}: only one axis may be -1, not {open_axes}.")
    known = math.prod(size for size in sizes.values() if size != -1)
    if open_axes and num_devices % known == 0:
        sizes[open_axes[0]] = num_devices // known
    if math.prod(sizes.values()) != num_devices:
        raise ValueError(
            f"mesh={text!r} multiplies to {known}{' · n' if open_axes else ''}, but there are {num_devices} devices; "
            "change its sizes, or set one of them to -1."
        )
    return sizes


def make_mesh(devices: Sequence[Any] | None = None, shape: str = "data:-1") -> Mesh:
    """Makes a mesh with the axes data, fsdp and tensor.

    Args:
      devices: JAX devices of the mesh; None: all devices of all processes.
      shape: sizes of the axes; see `parse_mesh`.

    Raises:
      ValueError: the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = parse_mesh(shape, len(devices))
    # Auto axes: with the Explicit axes that jax ≥ 0.8 makes by default, jit would require the sharding of every
    # intermediate.
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of values that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def spans_processes(mesh: Mesh) -> bool:
    """Returns whether devices of a mesh belong to several processes."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def mesh_of(tree: Tree) -> Mesh:
    """Returns the mesh of a tree's first array that has one; a mesh of all devices if none has."""
    for leaf in jax.tree.leaves(tree):
        where = getattr(leaf, "sharding", None)
        if isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh):
            return where.mesh
    return make_mesh()


# ── State ───────────────────────────────────────────────────────────────────────────────────────


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a key path of jax.tree_util as text, such as "params/blocks/self_qkv/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def spec_for(name: str, shape: Sequence[int], mesh: Mesh, rules: Rules = ()) -> PartitionSpec:
    """Returns the sharding of one array.

    The first rule applies whose pattern occurs in the name and that has as many logical axes as the array. Arrays of
    at least `SMALLEST_SPLIT` values without a rule are split over fsdp, along the largest dimension that divides;
    other arrays are not split. A dimension that its mesh axis does not divide is not split either.

    Args:
      name: path of the array; see `path_name`.
      shape: shape of the array.
      mesh: a mesh of `make_mesh`.
      rules: (pattern, logical axes) pairs.

    Example:
      >>> mesh = make_mesh(jax.devices()[:1], "data:1")
      >>> tuple(spec_for("mlp/kernel", (512, 2048), mesh, [("mlp/kernel$", ("embed", "mlp"))]))
      ()
    """
    axes: list[Any]
    for pattern, logical in rules:
        if len(logical) == len(shape) and re.search(pattern, name):
            axes = [MESH_AXES.get(axis) for axis in logical]
            break
    else:
        axes = [None] * len(shape)
        divides = [i for i, size in enumerate(shape) if size % mesh.shape["fsdp"] == 0]
        if divides and math.prod(shape) >= SMALLEST_SPLIT:
            axes[max(divides, key=lambda i: shape[i])] = "fsdp"
    axes = [
        axis if axis in mesh.shape and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    ]
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def state_shardings(tree: Tree, mesh: Mesh, rules: Rules = ()) -> Tree:
    """Returns the shardings of a state, a tree of arrays or jax.ShapeDtypeStruct; see `spec_for`."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, spec_for(path_name(path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(place, tree)


def constrain(x: AnyArray, *logical: str | None) -> Any:
    """Constrains the sharding of `x` inside a traced function; returns `x` as is without a mesh or inside shard_map.

    Args:
      x: array.
      *logical: logical axis of every dimension, in order; None for a dimension that is not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(mesh.axis_names) != set(AXES) or set(mesh.axis_types) != {AxisType.Auto}:
        return x

    def fits(axis: Any, size: int) -> Any:
        names = (axis,) if isinstance(axis, str) else axis or ()
        return axis if size % math.prod(mesh.shape[name] for name in names) == 0 else None

    axes = [fits(MESH_AXES.get(axis), size) for axis, size in zip(logical, x.shape, strict=True)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def put(tree: Tree, shardings: Tree) -> Tree:
    """Moves arrays with the same values on every process to devices.

    Args:
      tree: tree of arrays. Those on devices of other processes too have to be on these already.
      shardings: tree of shardings, or one for all arrays.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def place(array: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, sharding)
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree, shardings)


def put_where(array: np.ndarray, where: jax.sharding.Sharding | None) -> jax.Array:
    """Moves an array to where results of a computation are; no program is compiled for its shape.

    Args:
      array: the array, with the same values on every process.
      where: the sharding of the results; None: the default device. Arrays on the default device stay uncommitted, so
        that they can be combined with arrays on others.
    """
    if where is None or where.device_set == jnp.zeros(()).devices():
        return jax.device_put(array)
    return put(array, where)


# ── Batches and results ─────────────────────────────────────────────────────────────────────────


def check_batch(mesh: Mesh, batch_size: int, accumulation_steps: int = 1) -> None:
    """Checks that a configuration's batches and microbatches divide among the devices.

    Raises:
      ValueError: an argument is below 1, or the batch or its microbatches do not divide.
    """
    if batch_size < 1 or accumulation_steps < 1:
        raise ValueError(f"batch_size={batch_size} and accumulation_steps={accumulation_steps} must be at least 1.")
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % devices:
        raise ValueError(
            f"batch_size={batch_size}: a global batch of {batch_size} does not divide among {devices} devices "
            f"(data × fsdp); split tensor instead, or set --config.batch_size to a multiple of {devices}."
        )
    multiple = devices * accumulation_steps
    if batch_size % multiple:
        # Microbatches that do not divide would be computed whole on every device.
        raise ValueError(
            f"batch_size={batch_size} in accumulation_steps={accumulation_steps} microbatches makes "
            f"{batch_size / accumulation_steps:g} images per microbatch, which do not divide among {devices} devices "
            f"(data × fsdp); set batch_size to a multiple of {multiple}, or accumulation_steps lower."
        )


def batch_shard(mesh: Mesh) -> tuple[int, int]:
    """Returns which shard of every global batch this process reads, as (index, number of shards).

    Processes that hold the same rows, because they split tensors among them, read the same shard.

    Raises:
      ValueError: two processes hold overlapping rows that are not the same.
    """
    rows: dict[int, set[int]] = {}
    for place, device in np.ndenumerate(mesh.devices):
        batch_place = int(np.ravel_multi_index(place[:2], mesh.devices.shape[:2]))
        rows.setdefault(device.process_index, set()).add(batch_place)
    shards = sorted({tuple(sorted(places)) for places in rows.values()})
    if sum(map(len, shards)) != mesh.shape["data"] * mesh.shape["fsdp"] or len(set(map(len, shards))) != 1:
        raise ValueError(
            f"mesh {dict(mesh.shape)} splits batches across the borders of processes ({shards}); "
            "make tensor a divisor, or a multiple, of the number of devices of a process."
        )
    return shards.index(tuple(sorted(rows[jax.process_index()]))), len(shards)


def shard_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Moves this process's shard of a batch to its devices, split over data and fsdp.

    Args:
      batch: tree of arrays [B, ...]; the global batch has B rows per shard of `batch_shard`.
      mesh: a mesh of `make_mesh`.

    Raises:
      ValueError: the global batch does not divide among the devices.
    """
    sharding, num_shards = NamedSharding(mesh, PartitionSpec(BATCH_AXES)), batch_shard(mesh)[1]
    devices = mesh.shape["data"] * mesh.shape["fsdp"]

    def place(array: AnyArray) -> jax.Array:
        array = np.asarray(array)
        size = array.shape[0] * num_shards
        if size % devices:
            raise ValueError(
                f"a global batch of {size} does not divide among {devices} devices (data × fsdp); "
                f"set batch_size to a multiple of {devices}."
            )
        return jax.make_array_from_process_local_data(sharding, array, (size, *array.shape[1:]))

    return jax.tree.map(place, batch)


def gather(tree: Tree) -> Tree:
    """Returns arrays as numpy on every process; all processes must call it together.

    Rows of arrays that are not on devices of several processes, such as numpy's, are those of all processes in order.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def to_host(tree: Tree) -> Tree:
    """Returns arrays as numpy; those with parts on devices of other processes are gathered.

    All processes that have a part must call it together. Arrays that this process has whole are sent to no other.
    """

    def read(array: AnyArray) -> Any:
        is_here = not isinstance(array, jax.Array) or array.is_fully_addressable
        return jax.device_get(array) if is_here else gather(array)

    return jax.tree.map(read, tree)


def everywhere(truth: bool) -> bool:
    """Returns whether something is true on all processes; all of them must ask together.

    Example:
      >>> everywhere(True)
      True
    """
    return bool(np.all(gather(np.array(truth))))


def local(tree: Tree) -> Tree:
    """Returns arrays that a program of one process can use: as they are, or as numpy if there are several processes.

    All processes must call it together.
    """
    return tree if jax.process_count() == 1 else gather(tree)
