"""Meshes from text, rules on paths, batches; training gives the same result on every mesh."""

import dataclasses
import re

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from eqjax import config_fields, pretrained, sharding
from eqjax.generator import LOGICAL_AXES, Generator
from eqjax.training import fields, loop, optim
from eqjax.training import generator as generator_training


def test_sizes_of_mesh_axes_are_parsed_from_text():
    assert sharding.parse_mesh("data:-1", 8) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert sharding.parse_mesh("fsdp:2, tensor:2,data:-1", 8) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert sharding.parse_mesh("tensor:4", 4) == {"data": 1, "fsdp": 1, "tensor": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:3", r"'data:3' multiplies to 3, but there are 4 devices"),
        ("data:-1,fsdp:3", r"multiplies to 3 · n, but there are 4"),
        ("model:4", r"unknown axis 'model'; the axes are data, fsdp, tensor"),
        ("data:-1,fsdp:-1", r"only one axis may be -1, not \['data', 'fsdp'\]"),
        ("data:0", r"'data:0' needs a size of at least 1"),
        ("data:2,data:4", r"'data:2,data:4' names 'data' twice"),
    ],
)
def test_impossible_meshes_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(shape=text)


def test_rules_place_parameters_and_moments():
    mesh = sharding.make_mesh(shape="fsdp:2,tensor:2")
    generator = Generator(width=64, depth=2, num_heads=4, latent_dim=8, num_classes=3, flow_width=32, flow_depth=2)
    params = pretrained.abstract_params(generator)
    optimizer, _ = optim.make_optimizer(config_fields.make(fields.OPTIMIZER), 10)
    tree = {"params": params, "opt_state": jax.eval_shape(optimizer.init, params)}
    specs = {
        sharding.path_name(path): sharding_.spec
        for path, sharding_ in jax.tree_util.tree_leaves_with_path(sharding.state_shardings(tree, mesh, LOGICAL_AXES))
    }
    hand = {
        "blocks/self_qkv/kernel": P(None, "fsdp", None, "tensor"),
        "blocks/self_out/kernel": P(None, "tensor", None, "fsdp"),
        "blocks/mlp_in/kernel": P(None, "fsdp", "tensor"),
        "blocks/mlp_out/kernel": P(None, "tensor", "fsdp"),
        "blocks/mlp_norm/scale": P(),
        "class_embedding": P(None, "fsdp"),
        "flow_head/modulation/kernel": P("fsdp", None, None, "tensor"),
        "flow_head/blocks_1/mlp_out/kernel": P("tensor", "fsdp"),
    }
    for name, spec in hand.items():
        found = {full: s for full, s in specs.items() if full.endswith(name)}
        assert len(found) == 3 and set(found.values()) == {spec}, name  # Parameter, both moments.
    # A rule whose pattern fits nothing is a typing mistake.
    for pattern, logical in LOGICAL_AXES:
        assert any(re.search(pattern, name) for name in specs), pattern
        sizes = {len(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(params)
                 if re.search(pattern, sharding.path_name(path))}  # fmt: skip
        assert sizes == {len(logical)}, pattern


def test_large_arrays_without_a_rule_are_split_over_fsdp():
    mesh = sharding.make_mesh(shape="fsdp:4")
    assert sharding.spec_for("conv/kernel", (3, 3, 64, 128), mesh) == P(None, None, None, "fsdp")
    assert sharding.spec_for("conv/kernel", (3, 3, 128, 65), mesh) == P(None, None, "fsdp")
    assert sharding.spec_for("spectral/u", (128,), mesh) == P()  # Too small to be worth it.
    assert sharding.spec_for("odd", (63, 65), mesh) == P()
    heads = [(r"heads$", ("embed", "heads"))]
    assert sharding.spec_for("heads", (8, 6), sharding.make_mesh(shape="tensor:4"), heads) == P()  # 6 / 4.


def test_batches_are_split_and_gathered():
    mesh = sharding.make_mesh(shape="data:2,tensor:2")
    batch = sharding.shard_batch({"x": np.arange(8).reshape(4, 2)}, mesh)
    assert batch["x"].sharding.spec == P(("data", "fsdp"))
    np.testing.assert_array_equal(sharding.gather(batch)["x"], np.arange(8).reshape(4, 2))
    with pytest.raises(ValueError, match="batch of 3 does not divide among 2 devices .* multiple of 2"):
        sharding.shard_batch({"x": np.zeros((3, 2))}, mesh)
    assert sharding.batch_shard(mesh) == (0, 1)


@pytest.mark.parametrize(
    ("batch_size", "parts", "message"),
    [
        (0, 1, "batch_size=0 and accumulation_steps=1 must be at least 1"),
        (8, 0, "accumulation_steps=0 must be at least 1"),
        (6, 1, "global batch of 6 does not divide among 4 devices .* multiple of 4"),
        (8, 4, "in accumulation_steps=4 microbatches makes 2 images per microbatch, .* 4 devices .* multiple of 16"),
    ],
)
def test_batches_that_do_not_divide_are_refused(batch_size, parts, message):
    mesh = sharding.make_mesh(shape="data:2,fsdp:2")
    sharding.check_batch(mesh, 16, 4)
    with pytest.raises(ValueError, match=message):
        sharding.check_batch(mesh, batch_size, parts)


def train_on(count, shape, steps=3):
    """Losses and parameters after a few steps with dropout, on a mesh."""
    generator = Generator(
        width=32, depth=2, num_heads=4, latent_dim=8, num_classes=3, num_cond_tokens=2, flow_width=16, flow_depth=1,
        dropout_rate=0.2,
    )  # fmt: skip
    config = generator_training.default_config()
    config.optimizer.update(learning_rate=1e-4)

    def encode(frozen, batch, key):
        noise = jax.random.normal(key, batch["latents"].shape)
        return batch["latents"] + frozen["std"] * noise, batch["label"]

    generator_step = generator_training.GeneratorStep.from_config(config, generator, encode)

    def init(key):
        state = generator_step.init_state(key)
        params = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(p.size), p.shape), state.params)
        return dataclasses.replace(state, params=params, ema_params=params)

    step = jax.tree_util.Partial(generator_step, {"std": np.float32(0.1)})
    mesh, root = sharding.make_mesh(jax.devices()[:count], shape), jax.random.key(0)
    state = loop.initial_state(init, LOGICAL_AXES, mesh, root)
    whole = max(jax.tree.leaves(state), key=lambda leaf: leaf.size)
    split = whole.size / whole.addressable_shards[0].data.size
    step_fn, losses = loop.compile_step(step, LOGICAL_AXES, mesh, state, root), []
    for i in range(steps):
        rows = np.random.default_rng(i)
        batch = {"latents": rows.normal(size=(8, 6, 8)).astype(np.float32), "label": np.arange(8, dtype=np.int32) % 3}
        state, metrics = jax.block_until_ready(step_fn(state, sharding.shard_batch(batch, mesh)))
        losses.append(metrics["column_loss"])
    kinds = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)}
    assert kinds == {count}
    return jax.device_get((losses, state.params, state.ema_params)), split


def check_meshes(meshes):
    expected, _ = train_on(1, "data:1")
    for count, shape, split in meshes:
        found, parts = train_on(count, shape)
        assert parts == split, shape  # The largest array is split into so many parts.
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
            if "cross_key/bias" in sharding.path_name(path):
                continue  # Its true gradient is 0; what rounding leaves of it Adam scales up.
            difference = np.linalg.norm(a - b) / np.linalg.norm(b)
            assert difference < 1e-5, (shape, sharding.path_name(path), difference)


@pytest.mark.slow
def test_training_does_not_depend_on_the_mesh():
    check_meshes([(4, "fsdp:2,tensor:2", 4)])


@pytest.mark.slow
def test_training_does_not_depend_on_the_mesh_of_eight_devices():
    """In a process of its own with eight devices: tests/eight_device_meshes.py."""
    from tests import subprocesses

    subprocesses.run("tests.eight_device_meshes", devices=8)
