"""Precision of products of float32 numbers: what it may be, and contexts in which JAX computes in it.

JAX's own default is not float32 on accelerators: NVIDIA GPUs round the factors of products to TensorFloat-32, TPUs to
bfloat16. Everything here computes in float32 unless it is told otherwise.
"""

from collections.abc import Iterator
import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from eqjax.module_fields import PRECISION

# JAX's name of each.
_JAX_NAMES = {"highest": "highest", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}


@contextlib.contextmanager
def computing_in(precision: Any) -> Iterator[None]:
    """Returns a context in which JAX computes products of float32 numbers in a precision, in this thread.

    It has to surround the call of a jitted function, or the body of one that is traced.

    Args:
      precision: "highest", float32; "tf32", TensorFloat-32 on NVIDIA GPUs and three passes of bfloat16 on TPUs;
        "bfloat16", the fastest of the device: one pass of bfloat16 on TPUs, TensorFloat-32 on GPUs. CPUs compute all of
        them in float32.

    Raises:
      ValueError, TypeError: it is none of these.

    Example:
      >>> with computing_in("tf32"):
      ...     jax.config.jax_default_matmul_precision
      'tensorfloat32'
    """
    with jax.default_matmul_precision(jax_name(precision)):
        yield


def jax_name(precision: Any) -> str:
    """Returns JAX's name of a precision, for `jax.default_matmul_precision`.

    Raises:
      ValueError, TypeError: there is no such precision.

    Example:
      >>> jax_name("tf32")
      'tensorfloat32'
    """
    return _JAX_NAMES[PRECISION.check("precision", precision)]


def is_true_float32(dtype: DTypeLike) -> bool:
    """Returns whether GPUs compute products of such numbers in float32, without tensor cores, in JAX's precision now.

    Example:
      >>> with computing_in("highest"):
      ...     is_true_float32("float32"), is_true_float32("bfloat16")
      (True, False)
    """
    config: Any = jax.config
    rounding = _JAX_NAMES["tf32"], _JAX_NAMES["bfloat16"]
    return jnp.dtype(dtype) == jnp.float32 and config.jax_default_matmul_precision not in rounding


class Float32Products(nn.Module):
    """A module whose products of float32 numbers are true float32 on every device, unless JAX is told otherwise.

    So is whatever is differentiated through it. `computing_in`, `jax.default_matmul_precision` and
    JAX_DEFAULT_MATMUL_PRECISION tell otherwise.
    """

    @nn.nowrap
    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Applies a method to variables, as `flax.linen.Module.apply` does."""
        config: Any = jax.config
        if config.jax_default_matmul_precision is not None:
            return super().apply(*args, **kwargs)
        with computing_in("highest"):
            return super().apply(*args, **kwargs)
