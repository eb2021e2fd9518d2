"""Which kernels evaluate the flow head while sampling: XLA's, or the fused ones for NVIDIA GPUs of `fused_flow`."""

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from eqjax.generator.flow_head import FlowHead
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
# Relative errors on this machine's GPU, of float32 and 16 bits; rounding explains a tenth of each.
_BOUNDS = {4: 1e-4, 2: 5e-2}


@functools.cache
def cuda_is_installed() -> bool:
    """Returns whether JAX's CUDA plugin is installed, with which programs for NVIDIA GPUs can be compiled."""
    if importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(f"jax_plugins.{name}") for name in _PLUGINS)


def missing(width: int, latent_dim: int, dtype: DTypeLike) -> str | None:
    """Returns what the fused kernels lack for a flow head; None: nothing, if its program is compiled for a GPU.

    Args:
      width: of the flow head.
      latent_dim: channels of a latent.
      dtype: compute dtype.
    """
    if not cuda_is_installed():
        return "an NVIDIA GPU and JAX's CUDA plugin"
    try:
        from eqjax.generator import fused_flow
    except ImportError as error:
        return f"Pallas with its Triton compiler, which jax {jax.__version__} lacks ({error})"
    if not fused_flow.supports(width, latent_dim, dtype):
        return f"multiples of 16 for flow_width={width} and latent_dim={latent_dim}, and floats of 16 or 32 bits"
    return None


def check(
    choice: str, width: int, latent_dim: int, dtype: DTypeLike, arrays: Any = (), mesh: jax.sharding.Mesh | None = None
) -> str:
    """Checks a choice against where a computation will run; returns it, "plain" if "auto" can only be that.

    Inside of `jax.jit` it is not known where: on all devices of the process, if there are several.

    Args:
      choice: "auto", "fused" or "plain".
      width: of the flow head.
      latent_dim: channels of a latent.
      dtype: compute dtype.
      arrays: arrays of the computation.
      mesh: devices to which it will move them.

    Raises:
      ValueError: the fused kernels are demanded, and there are none.
    """
    if choice == "plain" or (choice == "auto" and not cuda_is_installed()):
        return "plain"
    lacking = missing(width, latent_dim, dtype)
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
    raise ValueError(f"flow_kernels='fused' needs {lacking}: choose 'auto' or 'plain'.")


def _place(arrays: Any, mesh: jax.sharding.Mesh | None) -> tuple[str, int]:
    """Returns the platform of a computation, and its number of devices."""
    if is_tracing(arrays):
        return "cuda", jax.device_count()
    leaves = [leaf for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)]
    devices = {device for leaf in leaves for device in leaf.sharding.device_set} if mesh is None else mesh.devices.flat
    platforms = {device.platform for device in devices} or {jax.default_backend()}
    return platforms.pop(), max(len(devices), 1)


def is_worthwhile(rows: int, width: int, latent_dim: int, dtype: DTypeLike) -> bool:
    """Returns whether "auto" takes the fused kernels, where `check` allowed them.

    It does where they are predicted to be faster, and where a GPU is at hand only if they are right there: once per
    process and size they are compared with the plain path.

    Args:
      rows: rows of a batch, those of the null class included.
      width: of the flow head.
      latent_dim: channels of a latent.
      dtype: compute dtype.
    """
    version: Any = jax.__version_info__
    if version[:2] >= _DEPRECATED or missing(width, latent_dim, dtype) is not None:
        return False
    precision: Any = jax.config
    has_tensor_cores = jnp.dtype(dtype).itemsize == 2 or precision.jax_default_matmul_precision in (
        "tensorfloat32",
        "bfloat16",
    )
    if rows > (_MOST_ROWS if has_tensor_cores else _MOST_FLOAT32_ROWS):
        return False
    if jax.default_backend() != "gpu":
        return True  # The program is compiled for a GPU that is elsewhere.
    return error_here(rows, width, latent_dim, jnp.dtype(dtype).name) <= _BOUNDS[jnp.dtype(dtype).itemsize]


@functools.cache
def error_here(rows: int, width: int, latent_dim: int, dtype: str, interpret: bool = False) -> float:
    """Returns the error of the fused kernels on this process's first device, with random weights of one block.

    Args:
      rows: rows of a batch.
      width: of the flow head.
      latent_dim: channels of a latent.
      dtype: compute dtype.
      interpret: emulates the kernels.

    Returns:
      The largest difference from the plain path in units of its largest value; infinity if they cannot be run.
    """
    from eqjax.generator import fused_flow

    capability = getattr(jax.local_devices()[0], "compute_capability", None)
    if not interpret and (capability is None or float(capability) < _LEAST_CAPABILITY):
        return float("inf")
    head = FlowHead(width=width, depth=1, latent_dim=latent_dim, dtype=jnp.dtype(dtype))
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def both(params: Any, z: jax.Array, times: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        modulations: Any = head.apply({"params": params}, times, context, method="modulations")
        weights = fused_flow.Weights.from_params(params, head.dtype)
        given = z.astype(head.dtype), modulations, jnp.ones(1, jnp.int32)
        fused = fused_flow.velocity(weights, *given, interpret=interpret)
        x: Any = head.apply({"params": params}, z, method="embed")
        at = jax.tree.map(lambda leaf: leaf[1], modulations)
        plain: Any = head.apply({"params": params}, jnp.tile(x, (rows // len(z), 1)), at, method="denoise")
        return fused, plain

    states = rows // 2 if rows % 2 == 0 else rows
    shapes: Any = jax.eval_shape(
        head.init, jax.random.key(0), np.zeros((1, latent_dim)), np.zeros(1), np.zeros((1, 16))
    )
    params = jax.tree.map(lambda leaf: random(*leaf.shape) / np.sqrt(np.float32(leaf.shape[0])), shapes["params"])
    arguments = params, random(states, latent_dim), np.array([[0.9], [0.4]], np.float32), random(1, rows, 16)
    try:
        # This may be called while another program is traced, of which a call of a jitted function would become a part.
        with computing_in("highest"):
            compiled = jax.jit(both).lower(*arguments).compile()
        fused, plain = (np.asarray(leaf) for leaf in compiled(*arguments))
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError):
        return float("inf")
    error = float(np.abs(fused - plain).max() / np.abs(plain).max())
    return error if np.isfinite(error) else float("inf")
