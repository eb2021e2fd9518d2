"""The device mesh, and how parameters, optimizer state and batches lie on it: rules as data.

    data    batches are split, parameters are copied
    fsdp    batches are split, and so are parameters, gathered where a layer needs them
    tensor  heads and hidden channels are split, batches are copied

A parameter's path is looked up in a table (path → logical axes), and each logical axis in `MESH_AXES`.
Averages and optimizer moments end in the path of their parameter, so the same rules place them.
"""

import math
import re

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

AXES = ("data", "fsdp", "tensor")
# What batches are split over.
BATCH_AXES = ("data", "fsdp")
# Where a logical axis lies. An axis that is not here, or None, is not split.
MESH_AXES = {"batch": BATCH_AXES, "embed": "fsdp", "heads": "tensor", "mlp": "tensor"}
# Values below which an array without a rule is not worth splitting.
SMALLEST_SPLIT = 4096


def parse_mesh(text, count):
    """Sizes of the mesh axes from "data:4,fsdp:2,tensor:1".

    Args:
      text: names and sizes; axes left out have size 1, and one may be -1: what remains.
      count: the number of devices.

    Returns:
      {"data": …, "fsdp": …, "tensor": …}.

    Raises:
      ValueError: an axis that is unknown or named twice, a size that is none, or sizes that do not multiply to `count`.
    """
    sizes = {}
    for item in filter(None, text.replace(" ", "").split(",")):
        name, _, size = item.partition(":")
        if name not in AXES:
            raise ValueError(f"mesh={text!r} has an unknown axis {name!r}; the axes are {', '.join(AXES)}.")
        if not re.fullmatch(r"-1|[1-9]\d*", size):
            raise ValueError(f"mesh={text!r}: {item!r} needs a size of at least 1, or -1 for what remains.")
        if name in sizes:
            raise ValueError(f"mesh={text!r} names {name!r} twice; give every axis once.")
        sizes[name] = int(size)
    sizes = {name: sizes.get(name, 1) for name in AXES}
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"mesh={text!r}: only one axis may be -1, not {open_axes}.")
    known = math.prod(size for size in sizes.values() if size != -1)
    if open_axes and count % known == 0:
        sizes[open_axes[0]] = count // known
    if math.prod(sizes.values()) != count:
        raise ValueError(
            f"mesh={text!r} multiplies to {known}{' · n' if open_axes else ''}, but there are {count} devices; "
            f"change its sizes, or leave one axis to -1."
        )
    return sizes


def make_mesh(devices=None, shape="data:-1"):
    """A mesh of the axes data × fsdp × tensor.

    Args:
      devices: the devices to use; None: all, of all processes.
      shape: see `parse_mesh`.

    Raises:
      ValueError: as `parse_mesh`.
    """
    devices = jax.devices() if devices is None else devices
    sizes = parse_mesh(shape, len(devices))
    # Auto axes: with the Explicit ones that jax ≥ 0.8 makes by default, jit would ask for a
    # sharding of every intermediate.
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def replicated(mesh):
    """The sharding of values that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


# ── State ───────────────────────────────────────────────────────────────────────────────────────


def path_name(path):
    """A key path of jax.tree_util as "params/blocks/self_qkv/kernel"."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def spec_for(name, shape, mesh, rules=()):
    """How one array is split.

    Args:
      name: its path, see `path_name`.
      shape: its shape.
      mesh: a mesh of `make_mesh`.
      rules: (pattern, logical axes) pairs; the first counts whose pattern is found in the name and
        that has as many axes as the array. Arrays of at least `SMALLEST_SPLIT` values without a rule
        are split over fsdp along their largest dimension that divides; others are not split.

    Returns:
      A PartitionSpec. A dimension that a mesh axis does not divide stays whole.
    """
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


def state_shardings(tree, mesh, rules=()):
    """Shardings of a state: any pytree of arrays or jax.ShapeDtypeStruct, see `spec_for`."""

    def place(path, leaf):
        return NamedSharding(mesh, spec_for(path_name(path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(place, tree)


def constrain(x, *logical):
    """Says inside a traced function how `x` is to lie; does nothing without a mesh, or inside shard_map.

    Args:
      x: an array.
      *logical: logical axes of its dimensions, in order; None for a dimension that is not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(mesh.axis_names) != set(AXES) or set(mesh.axis_types) != {AxisType.Auto}:
        return x

    def fits(axis, size):
        names = (axis,) if isinstance(axis, str) else axis or ()
        return axis if size % math.prod(mesh.shape[name] for name in names) == 0 else None

    axes = [fits(MESH_AXES.get(axis), size) for axis, size in zip(logical, x.shape, strict=True)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def put(tree, shardings):
    """Puts arrays, of the same values on every process, where `shardings` (a tree, or one for all) says."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def place(array, sharding):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree, shardings)


# ── Batches and results ─────────────────────────────────────────────────────────────────────────


def check_batch(mesh, batch_size, accumulation_steps=1):
    """Compares a configuration's batch with the devices that it is to be split over.

    Raises:
      ValueError: a size below 1, or a batch whose parts do not divide among the devices.
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
        # Parts that do not divide would be computed whole on every device.
        raise ValueError(
            f"batch_size={batch_size} in accumulation_steps={accumulation_steps} parts makes "
            f"{batch_size / accumulation_steps:g} images a part, which do not divide among {devices} devices "
            f"(data × fsdp); set batch_size to a multiple of {multiple}, or fewer parts."
        )


def batch_share(mesh):
    """Which share of every global batch this process reads: (index, number of shares).

    Processes that hold the same part of the batch, as they split tensors among them, read the same.

    Raises:
      ValueError: a process holds parts of the batch that overlap another's without being the same.
    """
    parts = {}
    for place, device in np.ndenumerate(mesh.devices):
        batch_place = int(np.ravel_multi_index(place[:2], mesh.devices.shape[:2]))
        parts.setdefault(device.process_index, set()).add(batch_place)
    shares = sorted({tuple(sorted(part)) for part in parts.values()})
    if sum(map(len, shares)) != mesh.shape["data"] * mesh.shape["fsdp"] or len(set(map(len, shares))) != 1:
        raise ValueError(
            f"mesh {dict(mesh.shape)} splits batches across the processes' borders ({shares}); "
            "make tensor a divisor, or a multiple, of the devices of a process."
        )
    return shares.index(tuple(sorted(parts[jax.process_index()]))), len(shares)


def shard_batch(batch, mesh):
    """Puts a process's share of a batch (arrays [b, …]) on its devices, split over data and fsdp.

    Raises:
      ValueError: the global batch does not divide among the devices.
    """
    sharding, count = NamedSharding(mesh, PartitionSpec(BATCH_AXES)), batch_share(mesh)[1]
    parts = mesh.shape["data"] * mesh.shape["fsdp"]

    def place(array):
        array = np.asarray(array)
        size = array.shape[0] * count
        if size % parts:
            raise ValueError(
                f"a global batch of {size} does not divide among {parts} devices (data × fsdp); "
                f"set batch_size to a multiple of {parts}."
            )
        return jax.make_array_from_process_local_data(sharding, array, (size, *array.shape[1:]))

    return jax.tree.map(place, batch)


def mesh_of(tree):
    """The mesh that a tree of arrays lies on: of its first leaf that has one, else of all devices."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(getattr(leaf, "sharding", None), NamedSharding):
            return leaf.sharding.mesh
    return make_mesh()


def gather(tree):
    """The values of arrays as numpy, on every process; all processes must ask together."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def local(tree):
    """What programs of one process alone may use: the arrays themselves, or numpy where there are several processes.

    All processes must ask together.
    """
    return tree if jax.process_count() == 1 else gather(tree)
