"""Which kernels compute a column while sampling: XLA's, or the fused ones for NVIDIA GPUs.

There are three kinds, of which "auto" takes each by itself:

    blocks    evaluations of the flow head, norms and biases inside of their products (`fused_flow`): few rows
    rows      the same with XLA's products, and one kernel for all between two of them (`fused_rows`): many rows
    layers    the transformer's decode step (`fused_layers`)

Where a program for GPUs has neither blocks nor rows, it has "sums": XLA's kernels, in another arrangement than on other
devices (`late_sums`, Ampere and newer).
"""

from collections.abc import Callable, Collection, Iterator
import contextlib
import contextvars
import functools
import importlib.util
from typing import Any, TypeAlias

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import sharding
from eqjax.generator import late_sums
from eqjax.generator.flow_weights import Weights
from eqjax.generator.generator import Condition, Generator
from eqjax.generator.layers import KVCache
from eqjax.precision import computing_in, is_true_float32
from eqjax.tracing import is_tracing

KINDS = ("blocks", "rows", "layers")
# "auto", "fused" or "plain"; or the kinds that are taken, on which several processes agreed.
Choice: TypeAlias = str | frozenset[str]
_PLUGINS = ("xla_cuda12", "xla_cuda13")
_PLATFORMS = ("gpu", "cuda")
# Rows up to which the kernels of blocks are predicted to be faster than those of rows: reading all rows for every tile
# then costs less than the kernels that are saved. True float32 has no tensor cores, and a tile has 16 rows at least: in
# size L, 24 products cost 48 µs as XLA's at 16 rows or less and about 90 as these, which have 25 kernels less (50 µs).
_MOST_BLOCK_ROWS, _MOST_FLOAT32_BLOCK_ROWS = 128, 16
# Rows up to which the kernels of layers are predicted to be faster than XLA's, for size L in bfloat16 and in float32:
# 45 to 106 and 104 to 189 µs a layer at 128 rows, 67 to 112 and 151 to 270 at 256; at 512 112 to 133 and 287 to 430,
# which is less than such a prediction can be wrong.
_MOST_LAYER_ROWS = 256
# Ampere: older GPUs have no bfloat16, less shared memory than the kernels take, and no Triton.
_LEAST_CAPABILITY = 8.0
# Slots of the KV cache in the comparison, at most.
_SLOTS = 16
# What was agreed on for the function that is traced.
_agreed: contextvars.ContextVar[Choice | None] = contextvars.ContextVar("_agreed", default=None)
# Relative errors on this machine's GPU, of float32 and 16 bits; rounding explains a tenth of each.
_BOUNDS = {4: 1e-4, 2: 5e-2}


@functools.cache
def cuda_is_installed() -> bool:
    """Returns whether JAX's CUDA plugin is installed, with which programs for NVIDIA GPUs can be compiled."""
    if importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(f"jax_plugins.{name}") for name in _PLUGINS)


def missing(generator: Generator, kinds: Collection[str] = KINDS) -> str | None:
    """Returns what kernels lack for a generator; None: nothing, if its program is compiled for a GPU.

    Args:
      generator: the module.
      kinds: the kinds of kernels, all of which are wanted.
    """
    if not cuda_is_installed():
        return "an NVIDIA GPU and JAX's CUDA plugin"
    compiler = _missing_compiler()
    if compiler is not None:
        return compiler
    from eqjax.generator import fused_flow, fused_layers

    if jnp.dtype(generator.dtype).itemsize not in (2, 4):
        return f"floats of 16 or 32 bits, not {jnp.dtype(generator.dtype)}"
    if {"blocks", "rows"} & set(kinds) and not fused_flow.supports(generator.flow_width, generator.latent_dim):
        return f"multiples of 16 for flow_width={generator.flow_width} and latent_dim={generator.latent_dim}"
    if "layers" in kinds and not fused_layers.supports(generator.width, generator.num_heads):
        return (
            f"a multiple of 16 for width={generator.width}, and heads of at most {fused_layers.MOST_HEAD} channels, "
            f"not {generator.head_dim}"
        )
    return None


@functools.cache
def _missing_compiler() -> str | None:
    """Returns what kernels lack with this version of JAX; None: it lowers one.

    From 0.11 on JAX warns that a later version will not, which Python shows only on demand. Where warnings are errors,
    that is a refusal.
    """
    try:
        from eqjax.generator import fused_tiles

        fused_tiles.lower_one()
    except Exception as error:  # Of any type: a module, a name or an argument may be gone.
        return f"Pallas with its Triton compiler, which jax {jax.__version__} lacks ({_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    """Returns an error as one line."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@functools.cache
def _log_once(text: str) -> None:
    """Logs a warning the first time that it is given."""
    logging.warning("%s", text)


def check(choice: str, generator: Generator, arrays: Any = (), mesh: jax.sharding.Mesh | None = None) -> Choice:
    """Checks a choice against where a computation will run; returns it, "plain" if "auto" can only be that.

    Inside of `jax.jit` it is not known where: on all devices of the process, if there are several; inside of
    `jax.shard_map` on each by itself. Inside of `as_agreed` it returns what was agreed on.

    Args:
      choice: "auto", "fused" or "plain".
      generator: the module.
      arrays: arrays of the computation.
      mesh: devices to which it will move them, rows of their own to each.

    Raises:
      ValueError: the fused kernels are demanded, and there are none.
    """
    if (agreed := _agreed.get()) is not None:
        return agreed
    # There "auto" follows from what all processes know alike; what one of them lacks, `agree` tells the others.
    is_shared = mesh is not None and sharding.spans_processes(mesh)
    if choice == "plain" or (choice == "auto" and not is_shared and not cuda_is_installed()):
        return "plain"
    elsewhere = _elsewhere(arrays) if mesh is None else _elsewhere_on(mesh)
    if choice == "auto":
        if elsewhere is not None:
            if mesh is not None and mesh.devices.flat[0].platform in _PLATFORMS:
                _log_once(f"gpu_kernels='auto' leaves out the fused kernels: they need {elsewhere}.")
            return "plain"
        if (compiler := _missing_compiler()) is not None:
            _log_once(f"gpu_kernels='auto' leaves out the fused kernels: they need {compiler}.")
        return choice if is_shared or any(missing(generator, [kind]) is None for kind in KINDS) else "plain"
    lacking = missing(generator) or elsewhere
    if lacking is not None:
        raise ValueError(f"gpu_kernels='fused' needs {lacking}: choose 'auto' or 'plain'.")
    return choice


def agree(choice: Choice, generator: Generator, rows: int, mesh: jax.sharding.Mesh) -> Choice:
    """Returns a choice as all processes of a mesh take it: of "auto" the kinds that each found right on its own GPU.

    XLA divides the timing of kernels among processes, which may wait forever if their programs differ. All of them must
    call it together, while JAX traces nothing. For a mesh of one process it returns the choice, and asks nobody.

    Args:
      choice: what `check` returned for the mesh.
      generator: the module.
      rows: rows of a device, those of the null class included.
      mesh: the mesh.
    """
    if choice != "auto" or not sharding.spans_processes(mesh):
        return choice
    kinds = flow_kind(rows, generator), "layers"
    found = {kind: is_worthwhile(kind, rows, generator) for kind in kinds}
    # Every process asks about every kind, whatever it found itself.
    taken = frozenset(kind for kind in kinds if sharding.everywhere(found[kind]))
    for kind in {kind for kind in kinds if found[kind]} - taken:
        _log_once(f"gpu_kernels='auto' leaves out the fused kernels for {kind}: another process refuses them.")
    return taken


@contextlib.contextmanager
def as_agreed(choice: Choice | None) -> Iterator[None]:
    """Lets `check` return what `agree` returned, for a function that is traced for every device of a mesh by itself.

    Args:
      choice: the choice; None: nothing was agreed on.
    """
    token = _agreed.set(choice)
    try:
        yield
    finally:
        _agreed.reset(token)


def _elsewhere(arrays: Any) -> str | None:
    """Returns what kernels lack for a computation with arrays, or None."""
    if is_tracing(arrays):
        platform, devices = "cuda", 1 if _is_in_shard_map() else jax.device_count()
    else:
        leaves = [leaf for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)]
        used = {device for leaf in leaves for device in leaf.sharding.device_set}
        platform, devices = next((device.platform for device in used), jax.default_backend()), max(len(used), 1)
    if devices > 1 and platform in _PLATFORMS:
        return f"one device or a mesh, and this computation may have {devices}"
    return _wrong_platform(platform)


def _is_in_shard_map() -> bool:
    """Returns whether what is traced runs on every device of this process by itself, all of which are of one kind."""
    types = set(jax.sharding.get_abstract_mesh().axis_types)
    kinds = {device.device_kind for device in jax.devices()}
    return types == {jax.sharding.AxisType.Manual} and jax.process_count() == len(kinds) == 1


def _elsewhere_on(mesh: jax.sharding.Mesh) -> str | None:
    """Returns what kernels lack for a computation on a mesh, or None; the same on all processes.

    All devices run the same program, whose kernels one of them per process, its first, compares with the plain path.
    """
    devices = list(mesh.devices.flat)
    count = len({device.process_index for device in devices})
    if 1 < count < jax.process_count():  # Those without a device of the mesh would not come to agree.
        return f"devices of one process or of all {jax.process_count()}, and those of this mesh belong to {count}"
    if len(kinds := sorted({device.device_kind for device in devices})) > 1:
        return f"devices of one kind, and those of this mesh are {', '.join(kinds)}"
    return _wrong_platform(devices[0].platform)


def _wrong_platform(platform: str) -> str | None:
    """Returns what kernels lack on a platform, or None."""
    return None if platform in _PLATFORMS else f"an NVIDIA GPU, and this computation runs on a {platform}"


def flow_kind(rows: int, generator: Generator) -> str:
    """Returns the kind of kernels that are predicted to be the faster ones for the flow head, "blocks" or "rows".

    Args:
      rows: rows of a batch, those of the null class included.
      generator: the module.
    """
    most = _MOST_FLOAT32_BLOCK_ROWS if is_true_float32(generator.dtype) else _MOST_BLOCK_ROWS
    return "blocks" if rows <= most else "rows"


def is_worthwhile(kind: str, rows: int, generator: Generator) -> bool:
    """Returns whether "auto" takes a kind of fused kernels, where `check` allowed them.

    It does where they are predicted to be faster, and where a GPU is at hand only if they are right there: once per
    process and size they are compared with the plain path.

    Args:
      kind: one of `KINDS`; of the flow head's, that of `flow_kind`.
      rows: rows of a batch, those of the null class included.
      generator: the module.
    """
    if missing(generator, [kind]) is not None:
        return False
    if kind == "layers" and rows > _MOST_LAYER_ROWS:
        return False
    if jax.default_backend() != "gpu":
        return True  # The program is compiled for a GPU that is elsewhere.
    # Sizes of the kernels. Two layers and blocks: one is the first, and the other is read at its place.
    reduced: Any = generator.clone(
        parent=None, name=None, depth=2, flow_depth=2, num_classes=1, dtype=jnp.dtype(generator.dtype)
    )
    error, bound = error_here(kind, rows, reduced), _BOUNDS[jnp.dtype(generator.dtype).itemsize]
    if bound < error < float("inf"):
        _log_once(
            f"gpu_kernels='auto' leaves out the fused kernels for {kind}: on this GPU they differ from XLA's by "
            f"{error:.0e} of the largest value, more than {bound:.0e}."
        )
    return error <= bound


@functools.cache
def error_here(kind: str, rows: int, generator: Generator, interpret: bool = False) -> float:
    """Returns the error of a kind of fused kernels on this process's first device, with random weights.

    Args:
      kind: one of `KINDS`.
      rows: rows of a batch.
      generator: the module, of few layers.
      interpret: emulates the kernels.

    Returns:
      The largest difference from the plain path in units of its largest value, of velocities, or of contexts, keys and
      values; infinity if the kernels cannot be run.
    """
    if not interpret and not _has_triton(jax.local_devices()[0]):
        return float("inf")
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    shapes: Any = jax.eval_shape(generator.init_params, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(functools.partial(_draw, random, generator.width), shapes)
    states = rows // 2 if rows % 2 == 0 else rows
    arguments = params, random(states, generator.latent_dim), random(1, rows, generator.width)
    if kind == "layers":
        head = generator.num_heads, generator.head_dim
        slots = min(generator.window_size or _SLOTS, _SLOTS)
        counts = generator.num_cond_tokens, slots
        arguments += tuple(random(2, generator.depth, rows, count, *head) for count in counts)
        both = functools.partial(_both_steps, generator, interpret)
    else:
        both = functools.partial(_both_velocities, kind, generator, interpret)
    try:
        # This may be called while another program is traced, of which a call of a jitted function would become a part.
        with computing_in("highest"):
            compiled = jax.jit(both).lower(*arguments).compile()
        pairs = zip(*(map(np.asarray, jax.tree.leaves(found)) for found in compiled(*arguments)), strict=True)
    except Exception as error:  # Whatever a compiler or a GPU refuses: XLA's kernels are there.
        _log_once(f"gpu_kernels='auto' leaves out the fused kernels for {kind}: {_first_line(error)}")
        return float("inf")
    error = max(float(np.abs(fused - plain).max() / np.abs(plain).max()) for fused, plain in pairs)
    if not np.isfinite(error):
        _log_once(f"gpu_kernels='auto' leaves out the fused kernels for {kind}: not all their values here are finite.")
        return float("inf")
    return error


def _has_triton(device: Any) -> bool:
    """Returns whether a device is an NVIDIA GPU for which XLA compiles with Triton."""
    capability = getattr(device, "compute_capability", None)
    return capability is not None and float(capability) >= _LEAST_CAPABILITY


def has_late_sums() -> bool:
    """Returns whether a program for GPUs has "sums" where it has neither blocks nor rows.

    Without Triton XLA makes three kernels of a norm, each of which would compute the state before it: for an older GPU
    95 an evaluation of the large size, and 82 as on other devices.
    """
    if jax.default_backend() != "gpu":
        return cuda_is_installed()  # The program is compiled for a GPU that is elsewhere.
    return all(map(_has_triton, jax.devices()))


def _draw(random: Callable[..., np.ndarray], width: int, path: tuple[Any, ...], leaf: Any) -> np.ndarray:
    """Returns random parameters: kernels that keep a signal's size, or make it smaller, and scales around 1."""
    values = random(*leaf.shape)
    if path[-1].key == "kernel":
        return values / np.sqrt(np.float32(max(leaf.shape[-2], width)))
    return np.float32(path[-1].key == "scale") + np.float32(0.1) * values


def velocity(kind: str, weights: Weights, interpret: bool = False) -> Callable[[jax.Array, Any], jax.Array]:
    """Returns the velocity along a kind of kernels, a function of states and of modulations.

    These are the modulations of one evaluation for "sums", and for the others those of several and an index [1].

    Args:
      kind: the flow head's kind, "blocks", "rows" or "sums".
      weights: weights of the flow head.
      interpret: emulates the kernels that are not XLA's.
    """
    if kind == "sums":
        return functools.partial(late_sums.velocity, weights, late_sums.join_biases(weights))
    from eqjax.generator import fused_flow, fused_rows

    function = {"blocks": fused_flow.velocity, "rows": fused_rows.velocity}[kind]
    return lambda z, read: function(weights, z, *read, interpret=interpret)


def _both_velocities(
    kind: str, generator: Generator, interpret: bool, params: Any, z: jax.Array, context: jax.Array
) -> tuple[Any, Any]:
    """Returns velocities with the fused kernels, and along the plain path."""
    apply: Any = functools.partial(generator.apply, {"params": params})
    dtype, rows = generator.dtype, context.shape[1]
    modulations = apply(jnp.array([[0.9], [0.4]]), context, method="flow_modulations")
    head = Weights.from_params(params["flow_head"], dtype)
    fused = velocity(kind, head, interpret)(z.astype(dtype), (modulations, jnp.ones(1, jnp.int32)))
    latents = jnp.tile(z, (rows // len(z), 1))
    at = jax.tree.map(lambda leaf: leaf[1], modulations)
    return fused, apply(apply(latents, method="flow_embed"), at, method="flow_denoise")


def _both_steps(
    generator: Generator, interpret: bool, params: Any, z: jax.Array, context: jax.Array, tokens: jax.Array,
    cache: jax.Array,
) -> tuple[Any, Any]:  # fmt: skip
    """Returns contexts and caches with the fused kernels, and along the plain path."""
    from eqjax.generator import fused_layers

    apply: Any = functools.partial(generator.apply, {"params": params})
    dtype, rows = generator.dtype, context.shape[1]
    latents = jnp.tile(z, (rows // len(z), 1))
    layers = functools.partial(
        fused_layers.decode_step,
        fused_layers.Weights.from_params(params["blocks"], dtype),
        cross_rope=generator.cross_rope,
        interpret=interpret,
    )
    keys, values = tokens.astype(dtype)
    condition = Condition(keys, values, context[0].astype(dtype))
    stored = KVCache(*cache.astype(dtype))

    def step(kernels: Any) -> Any:
        column = jnp.asarray(stored.keys.shape[2] + 1)  # The window is full.
        return apply(latents, column, stored, condition, None, kernels, method="decode_step")

    return step(layers), step(None)
