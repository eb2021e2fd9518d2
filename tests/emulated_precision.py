"""Emulates the precisions of accelerators on a CPU, and prints how far recorded arrays are from each.

    python -m tests.emulated_precision

CPUs compute products of float32 numbers in float32, whatever the precision. Here the factors of every product and
convolution are rounded to the mantissa of the other format, and products are summed in float32, as tensor cores do.
It is an emulation: the order of sums on a device is another one.
"""

from collections.abc import Callable, Iterator
import contextlib
from typing import Any

import jax
import jax.numpy as jnp

from eqjax.recorded.cases import outputs, relative_error
from eqjax.tables import markdown_table

# Of products, and of convolutions: bits of the mantissa, and products per product. JAX gives convolutions none of the
# modes of several products, but the default of the device, which is TF32 on GPUs.
MODES = {
    "highest": ((23, 1), (23, 1)),
    "tf32": ((10, 1), (10, 1)),
    "bfloat16": ((7, 1), (7, 1)),
    "TF32_TF32_F32_X3": ((10, 3), (10, 1)),
    "BF16_BF16_F32_X3": ((7, 3), (10, 1)),
    "BF16_BF16_F32_X6": ((7, 6), (10, 1)),
}

# Columns of the table.
CASES = {
    "tokenizer_tiny/32x32/mean": "latents of images",
    "tokenizer_tiny/32x32/images": "decoded images",
    "generator_tiny/context/12": "context",
    "generator_tiny/velocity": "velocity",
    "generator_tiny/loss": "loss",
    "generator_tiny/sample/0": "samples",
}


def split(x: jax.Array, bits: int, parts: int) -> list[jax.Array]:
    """Returns numbers of few bits whose sum is nearly x, the largest first."""
    found = []
    for _ in range(parts):
        found.append(jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits))
        x = x - found[-1]
    return found


@contextlib.contextmanager
def emulating(mode: str) -> Iterator[None]:
    """Rounds the factors of all products of float32 numbers that are traced, as a mode of `MODES` does."""
    jax.clear_caches()
    with contextlib.ExitStack() as stack:
        for primitive, (bits, products) in zip(
            (jax.lax.dot_general_p, jax.lax.conv_general_dilated_p), MODES[mode], strict=True
        ):
            primitive.bind = rounded(primitive.bind, bits, {1: 1, 3: 2, 6: 3}[products])
            stack.callback(delattr, primitive, "bind")
        yield
    jax.clear_caches()


def rounded(bind: Callable[..., Any], bits: int, parts: int) -> Callable[..., Any]:
    """Returns the function that binds a primitive to factors which are split into parts of some bits."""

    def replaced(x: Any, y: Any, **params: Any) -> Any:
        if bits == 23 or {x.dtype, y.dtype} != {jnp.dtype("float32")}:
            return bind(x, y, **params)
        xs, ys = split(x, bits, parts), split(y, bits, parts)
        pairs = [(i, n - i) for n in reversed(range(parts)) for i in range(n + 1)]  # The smallest terms first.
        terms = [bind(xs[i], ys[j], **params) for i, j in pairs]
        return sum(terms[1:], terms[0])

    return replaced


def errors() -> dict[str, float]:
    """Returns the relative errors of some of what is recorded from the original, by `CASES`."""
    return {CASES[case]: relative_error(run(), recorded) for case, run, recorded in outputs() if case in CASES}


def main() -> None:
    """Prints the table."""
    rows = {}
    for mode in MODES:
        with emulating(mode):
            rows[mode] = errors()
    names = list(rows["highest"])
    print(markdown_table(["precision", *names], [[m, *(f"{row[n]:.1e}" for n in names)] for m, row in rows.items()]))


if __name__ == "__main__":
    main()
