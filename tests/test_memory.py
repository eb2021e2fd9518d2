"""Requests that do not fit into memory end in one sentence that says what was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import memory


def allocate_on_the_device():
    return jnp.zeros((2**44,), jnp.float32)


def allocate_on_the_host():
    return np.zeros((2**50,))


@pytest.mark.parametrize(
    ("allocate", "message"),
    [
        (
            allocate_on_the_device,
            "^out of memory of the device with a batch of 9 .64 TiB were asked for at once.: less.$",
        ),
        (allocate_on_the_host, "^out of memory with a batch of 9 .8.00 PiB were asked for at once.: less.$"),
    ],
)
def test_what_was_asked_for_is_said(allocate, message):
    with pytest.raises(memory.OutOfMemoryError, match=message), memory.explained("a batch of 9", "less"):
        allocate()


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.", "16 GiB"),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.48G hbm.", "20.50 G"),
        ("RESOURCE_EXHAUSTED: no figure", None),
        ("INTERNAL: Error preparing computation: Out of memory allocating 35184372088832 bytes.", "32 TiB"),
    ],
)
def test_figures_of_all_backends_are_found(text, amount):
    error = jax.errors.JaxRuntimeError(text)
    assert memory.is_out_of_memory(error)
    found = memory.describe(error, "it", "less")
    assert f"({amount} were asked for at once)" in found if amount else found.endswith("with it: less.")


def test_other_errors_pass_and_a_sentence_is_not_explained_twice():
    with pytest.raises(jax.errors.JaxRuntimeError, match="^INTERNAL"), memory.explained("it", "less"):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")
    inner = memory.OutOfMemoryError("the inner sentence")
    with pytest.raises(memory.OutOfMemoryError, match="^the inner sentence$"), memory.explained("it", "less"):
        raise inner
    assert memory.describe(inner, "it", "less") == "the inner sentence"
