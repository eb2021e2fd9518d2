"""The training step and the sampler lower for TPU and CUDA on a CPU: nothing in them is bound to a platform."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import sharding
from eqjax.generator import LOGICAL_AXES, Generator
from eqjax.sampling import sample_latents
from eqjax.training import generator as generator_training
from eqjax.training import loop, optim

GENERATOR = Generator(
    width=16, depth=2, num_heads=2, latent_dim=8, num_classes=3, num_cond_tokens=2, flow_width=16, flow_depth=1,
    dtype=jnp.bfloat16, remat="projections",
)  # fmt: skip


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_training_step(platform):
    config = generator_training.default_config()
    optimizer, _ = optim.make_optimizer(config.optimizer, config.total_steps)
    encode = lambda frozen, batch, key: (batch["latents"], batch["label"])  # noqa: E731
    step = jax.tree_util.Partial(generator_training.make_steps(GENERATOR, optimizer, encode, config)[0], {})

    def init(key):
        params = GENERATOR.init_params(key)
        return generator_training.TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))

    stage = loop.Stage(init, step, None, None, None, LOGICAL_AXES)
    mesh, key = sharding.make_mesh(shape="fsdp:2,tensor:2"), jax.random.key(0)
    state = jax.eval_shape(init, key)
    shardings = sharding.state_shardings(state, mesh, LOGICAL_AXES)
    state = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), state, shardings)
    batch = {"latents": jax.ShapeDtypeStruct((8, 4, 8), "float32"), "label": jax.ShapeDtypeStruct((8,), "int32")}
    compiled = loop.compile_step(stage, mesh, state, key)
    with jax.set_mesh(mesh):
        exported = jax.export.export(compiled.jitted, platforms=[platform])(compiled.step, state, batch)
    assert exported.platforms == (platform,) and exported.nr_devices == 4
    assert "Sharding" in exported.mlir_module() or "sdy.sharding" in exported.mlir_module()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_sampler(platform):
    params = jax.eval_shape(GENERATOR.init_params, jax.random.key(0))
    sample = functools.partial(sample_latents, GENERATOR, num_columns=5, guidance_scale=2.0, num_flow_steps=3)
    noise = jax.ShapeDtypeStruct((2, 5, 8), np.float32)
    exported = jax.export.export(jax.jit(lambda p, y, n: sample(p, y, noise=n)), platforms=[platform])(
        params, jax.ShapeDtypeStruct((2,), np.int32), noise
    )
    assert exported.platforms == (platform,) and exported.out_avals[0].shape == (2, 5, 8)
