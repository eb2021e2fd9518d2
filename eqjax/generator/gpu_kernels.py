"""Which kernels compute a column while sampling: XLA's, or the fused ones for NVIDIA GPUs.

These are in `fused_flow`, for evaluations of the flow head, and in `fused_layers`, for the transformer's decode step.
"""

from collections.abc import Callable
import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eqjax.generator.generator import Condition, Generator
from eqjax.generator.layers import KVCache
from eqjax.precision import computing_in
from eqjax.tracing import is_tracing

_PLUGINS = ("xla_cuda12", "xla_cuda13")
# JAX from here on calls the compiler of the kernels deprecated: there they are taken on demand only.
_DEPRECATED = (0, 11)
# Rows up to which reading all of them for every tile costs less than the kernels that are saved: a prediction. True
# float32 has no tensor cores, and the kernels' products are then far from those of cuBLAS.
_MOST_ROWS, _MOST_FLOAT32_ROWS = 128, 16
# Ampere: older GPUs have no bfloat16, and less shared memory than the kernels take.
_LEAST_CAPABILITY = 8.0
# Slots of the KV cache in the comparison, at most.
_SLOTS = 16
# Relative errors on this machine's GPU, of float32 and 16 bits; rounding explains a tenth of each.
_BOUNDS = {4: 1e-4, 2: 5e-2}


@functools.cache
def cuda_is_installed() -> bool:
    """Returns whether JAX's CUDA plugin is installed, with which programs for NVIDIA GPUs can be compiled."""
    if importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(f"jax_plugins.{name}") for name in _PLUGINS)


def missing(generator: Generator) -> str | None:
    """Returns what the fused kernels lack for a generator; None: nothing, if its program is compiled for a GPU."""
    if not cuda_is_installed():
        return "an NVIDIA GPU and JAX's CUDA plugin"
    try:
        from eqjax.generator import fused_flow, fused_layers
    except ImportError as error:
        return f"Pallas with its Triton compiler, which jax {jax.__version__} lacks ({error})"
    if not fused_flow.supports(generator.flow_width, generator.latent_dim, generator.dtype):
        return (
            f"multiples of 16 for flow_width={generator.flow_width} and latent_dim={generator.latent_dim}, and floats "
            "of 16 or 32 bits"
        )
    if not fused_layers.supports(generator.width, generator.num_heads):
        return (
            f"a multiple of 16 for width={generator.width}, and heads of at most {fused_layers.MOST_HEAD} channels, "
            f"not {generator.head_dim}"
        )
    return None


def check(choice: str, generator: Generator, arrays: Any = (), mesh: jax.sharding.Mesh | None = None) -> str:
    """Checks a choice against where a computation will run; returns it, "plain" if "auto" can only be that.

    Inside of `jax.jit` it is not known where: on all devices of the process, if there are several.

    Args:
      choice: "auto", "fused" or "plain".
      generator: the module.
      arrays: arrays of the computation.
      mesh: devices to which it will move them.

    Raises:
      ValueError: the fused kernels are demanded, and there are none.
    """
    if choice == "plain" or (choice == "auto" and not cuda_is_installed()):
        return "plain"
    lacking = missing(generator)
    if lacking is None:
        platform, devices = _place(arrays, mesh)
        if platform not in ("gpu", "cuda"):
            lacking = f"an NVIDIA GPU, and this computation runs on a {platform}"
        elif devices > 1:
            lacking = f"one device, and this computation may have {devices}"
    if lacking is None:
        return choice
    if choice == "auto":
        return "plain"
    raise ValueError(f"gpu_kernels='fused' needs {lacking}: choose 'auto' or 'plain'.")


def _place(arrays: Any, mesh: jax.sharding.Mesh | None) -> tuple[str, int]:
    """Returns the platform of a computation, and its number of devices."""
    if is_tracing(arrays):
        return "cuda", jax.device_count()
    leaves = [leaf for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)]
    devices = {device for leaf in leaves for device in leaf.sharding.device_set} if mesh is None else mesh.devices.flat
    platforms = {device.platform for device in devices} or {jax.default_backend()}
    return platforms.pop(), max(len(devices), 1)


def is_worthwhile(rows: int, generator: Generator) -> bool:
    """Returns whether "auto" takes the fused kernels, where `check` allowed them.

    It does where they are predicted to be faster, and where a GPU is at hand only if they are right there: once per
    process and size they are compared with the plain path.

    Args:
      rows: rows of a batch, those of the null class included.
      generator: the module.
    """
    version: Any = jax.__version_info__
    if version[:2] >= _DEPRECATED or missing(generator) is not None:
        return False
    precision: Any = jax.config
    itemsize = jnp.dtype(generator.dtype).itemsize
    has_tensor_cores = itemsize == 2 or precision.jax_default_matmul_precision in ("tensorfloat32", "bfloat16")
    if rows > (_MOST_ROWS if has_tensor_cores else _MOST_FLOAT32_ROWS):
        return False
    if jax.default_backend() != "gpu":
        return True  # The program is compiled for a GPU that is elsewhere.
    # Sizes of the kernels. Two layers, of which the second one is read at its place.
    reduced: Any = generator.clone(
        parent=None, name=None, depth=2, flow_depth=1, num_classes=1, dtype=jnp.dtype(generator.dtype)
    )
    return error_here(rows, reduced) <= _BOUNDS[itemsize]


@functools.cache
def error_here(rows: int, generator: Generator, interpret: bool = False) -> float:
    """Returns the error of the fused kernels on this process's first device, with random weights.

    Args:
      rows: rows of a batch.
      generator: the module, of few layers.
      interpret: emulates the kernels.

    Returns:
      The largest difference from the plain path in units of its largest value, of velocities, contexts, keys and
      values; infinity if the kernels cannot be run.
    """
    capability = getattr(jax.local_devices()[0], "compute_capability", None)
    if not interpret and (capability is None or float(capability) < _LEAST_CAPABILITY):
        return float("inf")
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    shapes: Any = jax.eval_shape(generator.init_params, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(functools.partial(_draw, random, generator.width), shapes)
    head = generator.num_heads, generator.head_dim
    tokens = random(2, generator.depth, rows, generator.num_cond_tokens, *head)
    slots = min(generator.window_size or _SLOTS, _SLOTS)
    cache = random(2, generator.depth, rows, slots, *head)
    states = rows // 2 if rows % 2 == 0 else rows
    arguments = params, random(states, generator.latent_dim), random(1, rows, generator.width), tokens, cache
    both = functools.partial(_both, generator, interpret)
    try:
        # This may be called while another program is traced, of which a call of a jitted function would become a part.
        with computing_in("highest"):
            compiled = jax.jit(both).lower(*arguments).compile()
        pairs = zip(*(map(np.asarray, jax.tree.leaves(found)) for found in compiled(*arguments)), strict=True)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError):
        return float("inf")
    error = max(float(np.abs(fused - plain).max() / np.abs(plain).max()) for fused, plain in pairs)
    return error if np.isfinite(error) else float("inf")


def _draw(random: Callable[..., np.ndarray], width: int, path: tuple[Any, ...], leaf: Any) -> np.ndarray:
    """Returns random parameters: kernels that keep a signal's size, or make it smaller, and scales around 1."""
    values = random(*leaf.shape)
    if path[-1].key == "kernel":
        return values / np.sqrt(np.float32(max(leaf.shape[-2], width)))
    return np.float32(path[-1].key == "scale") + np.float32(0.1) * values


def _both(
    generator: Generator, interpret: bool, params: Any, z: jax.Array, context: jax.Array, tokens: jax.Array,
    cache: jax.Array,
) -> tuple[Any, Any]:  # fmt: skip
    """Returns velocities, contexts and caches with the fused kernels, and along the plain path."""
    from eqjax.generator import fused_flow, fused_layers

    apply: Any = functools.partial(generator.apply, {"params": params})
    dtype, rows = generator.dtype, context.shape[1]
    modulations = apply(jnp.array([[0.9], [0.4]]), context, method="flow_modulations")
    head = fused_flow.Weights.from_params(params["flow_head"], dtype)
    fused = fused_flow.velocity(head, z.astype(dtype), modulations, jnp.ones(1, jnp.int32), interpret=interpret)
    latents = jnp.tile(z, (rows // len(z), 1))
    at = jax.tree.map(lambda leaf: leaf[1], modulations)
    plain = apply(apply(latents, method="flow_embed"), at, method="flow_denoise")
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

    return (fused, step(layers)), (plain, step(None))
