"""FLOPs counted by hand: products, loops, convolutions, what is not used."""

import jax
import numpy as np

from eqjax.perf import flops


def test_flops_by_hand():
    a, b = np.ones((4, 8), np.float32), np.ones((8, 6), np.float32)
    assert flops.count(lambda a, b: a @ b, a, b) == 2 * 4 * 8 * 6

    def loop_of_three(a):
        return jax.lax.scan(lambda x, _: (x @ np.ones((8, 8), np.float32), None), a, None, length=3)[0]

    assert flops.count(jax.jit(loop_of_three), a) == 3 * 2 * 4 * 8 * 8
    image, kernel = np.ones((1, 5, 5, 3), np.float32), np.ones((3, 3, 3, 7), np.float32)
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))  # noqa: E731
    assert flops.count(conv, image, kernel) == 2 * 9 * 7 * 27

    def half_used(a, b):
        """A step may write down two gradients where one is wanted; the other is never computed."""
        return jax.vjp(jax.jit(lambda a, b: a @ b), a, b)[1](np.ones((4, 6), np.float32))[0]

    assert flops.count(half_used, a, b) == 2 * 4 * 8 * 6

    def strided(image):
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).sum()

    image = np.ones((1, 9, 9, 3), np.float32)
    one = 2 * 4 * 4 * 7 * 27
    # Forward is not needed for the gradient of a linear function; that one covers the borders too.
    assert one < flops.count(jax.grad(strided), image) < 1.5 * one
