"""The training step and the sampler lower for TPU and CUDA on a CPU: nothing in them is bound to a platform."""

import functools
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import pretrained, sharding
from eqjax.generator import LOGICAL_AXES, Generator
from eqjax.latent_cache.encode import LatentEncoder, encoder_params
from eqjax.sampling.latents import sample_latents
from eqjax.tokenizer import Tokenizer
from eqjax.training import loop
from eqjax.training.generator import GeneratorStep, default_config

PLATFORMS = ("tpu", "cuda")
GENERATOR = Generator(
    width=16, depth=2, num_heads=2, latent_dim=8, num_classes=3, num_cond_tokens=2, flow_width=16, flow_depth=1,
    dtype=jnp.bfloat16, remat="projections",
)  # fmt: skip


TOKENIZER = Tokenizer(
    channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(8,), resolution=16,
    z_channels=8, embed_dim=8, square_downsamples=1, dtype=jnp.bfloat16,
)  # fmt: skip


@pytest.mark.parametrize("source", ["latents", "images"])
def test_training_step_lowers_for_every_platform(source):
    config = default_config()
    encode = LatentEncoder(TOKENIZER, 0.5)
    encoder = {} if source == "latents" else encoder_params(pretrained.abstract_params(TOKENIZER))
    step = GeneratorStep.from_config(config, GENERATOR, encode)
    mesh, key = sharding.make_mesh(shape="fsdp:2,tensor:2"), jax.random.key(0)
    state = loop.abstract_state(step.init_state, LOGICAL_AXES, mesh, key)
    batch = {"label": jax.ShapeDtypeStruct((8,), "int32")}
    if source == "latents":
        batch["latents"] = jax.ShapeDtypeStruct((8, 4, 8), "bfloat16")
    else:
        batch["image"] = jax.ShapeDtypeStruct((8, 16, 4 * TOKENIZER.column_width, 3), "uint8")
    compiled = loop.compile_step(jax.tree_util.Partial(step, encoder), LOGICAL_AXES, mesh, state, key)
    with jax.set_mesh(mesh):
        exported = jax.export.export(compiled.jitted, platforms=PLATFORMS)(compiled.step, state, batch)
    assert exported.platforms == PLATFORMS and exported.nr_devices == 4
    assert "Sharding" in exported.mlir_module() or "sdy.sharding" in exported.mlir_module()


def test_decoder_lowers_for_every_platform():
    @jax.jit
    def decode(params, latents):
        decoded: Any = TOKENIZER.apply({"params": params}, latents, method="decode")
        return decoded.images

    arguments = pretrained.abstract_params(TOKENIZER), jax.ShapeDtypeStruct((2, 4, 8), np.float32)
    exported = jax.export.export(decode, platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    assert exported.out_avals[0].shape == (2, 16, 4 * TOKENIZER.column_width, 3)


def test_sampler_lowers_for_every_platform():
    params = jax.eval_shape(GENERATOR.init_params, jax.random.key(0))
    sample = functools.partial(sample_latents, GENERATOR, num_columns=5, guidance_scale=2.0, num_flow_steps=3)
    noise = jax.ShapeDtypeStruct((2, 5, 8), np.float32)
    exported = jax.export.export(jax.jit(lambda p, y, n: sample(p, y, noise=n)), platforms=PLATFORMS)(
        params, jax.ShapeDtypeStruct((2,), np.int32), noise
    )
    assert exported.platforms == PLATFORMS and exported.out_avals[0].shape == (2, 5, 8)
