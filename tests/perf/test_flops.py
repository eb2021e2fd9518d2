"""FLOP counts against counts by hand: products, loops, branches, convolutions, dead code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.perf import flops

A, B, SQUARE = (np.ones(shape, np.float32) for shape in ((4, 8), (8, 6), (8, 8)))
KERNEL = np.ones((3, 3, 3, 7), np.float32)


def _conv(image, stride):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(image, jnp.asarray(KERNEL), (stride, stride), "VALID", dimension_numbers=layout)


def test_a_matrix_product_counts_two_per_multiplication():
    assert flops.count(lambda a, b: a @ b, A, B) == 2 * 4 * 8 * 6


def test_a_loop_counts_its_body_once_per_iteration():
    def three_products(a):
        return jax.lax.scan(lambda x, _: (x @ SQUARE, None), a, None, length=3)[0]

    assert flops.count(jax.jit(three_products), A) == 3 * 2 * 4 * 8 * 8


def test_a_conditional_counts_its_most_expensive_branch():
    def branches(on, a):
        return jax.lax.cond(on, lambda a: a @ SQUARE @ SQUARE, lambda a: a @ SQUARE, a)

    assert flops.count(branches, jnp.asarray(True), A) == 2 * 2 * 4 * 8 * 8


def test_a_convolution_counts_every_tap_of_every_output():
    assert flops.count(lambda image: _conv(image, 1), np.ones((1, 5, 5, 3), np.float32)) == 2 * 9 * 7 * 27


def test_results_that_nothing_uses_are_not_counted():
    """The backward pass of a product computes two gradients; here only the first is returned."""

    def first_gradient(a, b):
        return jax.vjp(jax.jit(lambda a, b: a @ b), a, b)[1](np.ones((4, 6), np.float32))[0]

    assert flops.count(first_gradient, A, B) == 2 * 4 * 8 * 6


def test_the_gradient_of_a_strided_convolution_skips_the_zeros_of_its_dilated_input():
    forward = 2 * 4 * 4 * 7 * 27
    gradient = flops.count(jax.grad(lambda image: _conv(image, 2).sum()), np.ones((1, 9, 9, 3), np.float32))
    # The gradient of a linear function needs no forward pass; its convolution covers the borders too.
    assert forward < gradient < 1.5 * forward


@pytest.mark.parametrize("rematerialize", [False, True])
def test_rematerialization_adds_the_forward_pass_again(rematerialize):
    def layer(x):
        return jnp.sin(jnp.sin(x @ SQUARE) @ SQUARE)

    def loss(x):
        return (jax.checkpoint(layer) if rematerialize else layer)(x).sum()

    counted = flops.count(jax.value_and_grad(loss), A)
    # Two products forward and two backward; recomputing needs both forward products again.
    assert counted == (4 + 2 * rematerialize) * 2 * 4 * 8 * 8
