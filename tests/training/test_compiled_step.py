"""The training step as a program: its keys, its arguments, what it donates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import sharding, xla_flags
from eqjax.training.compiled_step import abstract_state, compile_step, initial_state


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: jax.Array
    weights: jax.Array


def init(key):
    return State(jnp.zeros((), jnp.int32), jax.random.normal(key, (64, 128)))


def draw(frozen, state, batch, key):
    """A step whose metric is random."""
    del batch
    value = jax.random.uniform(key)
    return State(state.step + 1, state.weights + frozen), {"value": value}


@pytest.fixture(name="mesh")
def _mesh():
    return sharding.make_mesh(shape="fsdp:4")


def test_every_step_has_a_key_of_its_own(mesh):
    root, frozen = jax.random.key(7), np.ones((64, 128), np.float32)
    state = initial_state(init, (), mesh, root)
    step = compile_step(jax.tree_util.Partial(draw, frozen), (), mesh, state, root)
    for i in range(3):
        state, metrics = step(state, {})
        assert metrics["value"] == jax.random.uniform(jax.random.fold_in(root, i))
    assert int(state.step) == 3


def test_the_state_is_donated_and_keeps_its_shardings(mesh):
    root = jax.random.key(7)
    before = initial_state(init, (), mesh, root)
    expected = np.asarray(before.weights) + 1
    after, _ = compile_step(jax.tree_util.Partial(draw, jnp.float32(1)), (), mesh, before, root)(before, {})
    assert before.weights.is_deleted()
    np.testing.assert_array_equal(after.weights, expected)
    template = abstract_state(init, (), mesh, root)
    assert after.weights.sharding == template.weights.sharding
    assert after.weights.addressable_shards[0].data.size == after.weights.size // 4


def test_frozen_arrays_are_arguments_of_the_program(mesh):
    root, frozen = jax.random.key(7), np.full((64, 128), 0.123, np.float32)
    template = abstract_state(init, (), mesh, root)
    lowered = compile_step(jax.tree_util.Partial(draw, frozen), (), mesh, template, root).lower(template, {})
    assert len(jax.tree.leaves(lowered.args_info)) == 3  # The frozen array, the step's number and the weights.
    assert "0.123" not in lowered.as_text()


def test_products_are_float32_unless_asked_otherwise(mesh):
    def multiply(frozen, state, batch, key):
        del frozen, batch, key
        return State(state.step + 1, state.weights @ jnp.eye(128)), {"loss": jnp.zeros(())}

    root, state = jax.random.key(7), abstract_state(init, (), mesh, jax.random.key(7))
    step = jax.tree_util.Partial(multiply, np.ones(1, np.float32))
    with jax.default_matmul_precision("bfloat16"):
        default = compile_step(step, (), mesh, state, root).lower(state, {}).as_text()
        asked = compile_step(step, (), mesh, state, root, "tf32").lower(state, {}).as_text()
    assert "precision = [HIGHEST, HIGHEST]" in default and "precision = [HIGH, HIGH]" in asked


def test_the_compiler_gets_the_options_of_the_program(mesh, monkeypatch):
    asked = []

    def options(platform, **values):
        asked.append((platform, values))
        return {"xla_no_such_option": True}

    monkeypatch.setattr(xla_flags, "options", options)
    root, frozen = jax.random.key(7), np.ones((64, 128), np.float32)
    state = abstract_state(init, (), mesh, root)
    step = compile_step(jax.tree_util.Partial(draw, frozen), (), mesh, state, root, profiled=True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        step.lower(state, {}).compile()
    assert asked == [("cpu", {"num_devices": 4, "profiled": True})]
