"""Which module of the generator is named as the first that is not finite in a training step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.generator import Generator
from eqjax.training import optim
from eqjax.training.config import generator_config
from eqjax.training.forward_order import forward_order
from eqjax.training.generator import GeneratorStep, nan_report

GENERATOR = Generator(
    width=8, depth=3, num_heads=2, latent_dim=4, num_classes=2, num_cond_tokens=1, flow_width=8, flow_depth=2
)


def generator_step(num_microbatches=1):
    config = generator_config()
    config.accumulation_steps = num_microbatches
    return GeneratorStep.from_config(config, GENERATOR, lambda _, batch, __: (batch["latents"], batch["label"]))


def generator_order():
    def loss(params):
        arguments = jnp.ones((2, 3, 4)), jnp.zeros(2, jnp.int32)
        return GENERATOR.apply({"params": params}, *arguments, method="loss", rngs=jax.random.key(0))

    return forward_order(loss, jax.eval_shape(GENERATOR.init_params, jax.random.key(0)))


@pytest.mark.slow
def test_the_first_module_of_the_generator_is_named():
    params = jax.jit(GENERATOR.init_params)(jax.random.key(0))
    latents, step = np.ones((2, 3, 4), np.float32), generator_step()

    def first(params, latents=latents):
        batch = {"latents": latents, "label": np.array([0, 1])}
        return nan_report.first_nonfinite_module(step, params, {}, batch, jax.random.key(1))

    kernel = params["blocks"]["mlp_out"]["kernel"]
    huge = {**params, "blocks": {**params["blocks"], "mlp_out": {**params["blocks"]["mlp_out"], "kernel": kernel}}}
    huge["blocks"]["mlp_out"]["kernel"] = kernel.at[1].set(3e38)
    assert first(huge) == "output of blocks/mlp_out, layer 1"
    huge["blocks"]["mlp_out"]["kernel"] = kernel.at[2, 0, 0].set(np.nan)
    assert first(huge) == "parameter blocks/mlp_out/kernel, layer 2"
    assert first(params, latents * np.inf).startswith("latents")
    head = params["flow_head"]
    kernel = jnp.full_like(head["input_proj"]["kernel"], 3e38)
    huge = {**params, "flow_head": {**head, "input_proj": {"kernel": kernel, "bias": head["input_proj"]["bias"]}}}
    assert first(huge) == "output of flow_head/input_proj"
    huge["flow_head"] = {**head, "output_proj": {**head["output_proj"], "bias": jnp.full(4, 1e20)}}
    assert first(huge).startswith("the loss itself")


def test_the_generators_order_is_that_of_its_computation():
    order = generator_order()
    top = list(dict.fromkeys(path.split("/")[0] for path in reversed(order)))[::-1]
    assert top == ["latent_proj", "input_norm", "blocks", "output_norm", "flow_head"]
    block = [path.removeprefix("blocks/") for path in order if path.startswith("blocks/")]
    assert block[:3] == ["cross_condition_norm", "cross_key", "cross_value"]
    assert block[3:9] == ["self_norm", "self_qkv", "self_out", "cross_norm", "cross_query", "cross_out"]
    assert block[9:12] == ["mlp_norm", "mlp_in", "mlp_out"]
    head = [path.removeprefix("flow_head/") for path in order if path.startswith("flow_head")]
    assert head[:6] == ["input_proj", "time_in", "time_out", "context_proj", "modulation", "final_modulation"]
    assert head[6:8] == ["blocks_0/norm", "blocks_0/mlp_in"] and "blocks_1/mlp_out" in head[8:]
    assert head[-3:] == ["final_norm", "output_proj", "flow_head"]
    # Every module that has parameters is in the order; the others are parameters of no module.
    paths = jax.tree_util.tree_leaves_with_path(jax.eval_shape(GENERATOR.init_params, jax.random.key(0)))
    modules = {"/".join(key.key for key in path[:-1]) for path, _ in paths}
    assert modules - set(order) == {""}


def test_names_come_in_the_order_of_the_forward_pass():
    layers = np.ones((3, 2), np.float32)
    layers[1] = np.nan
    names = ["input_proj", "time_in", "blocks_0/mlp_out", "blocks_1/norm", "blocks_1", "final_norm", "output_proj"]
    tree = {f"flow_head/{name}": np.float32(np.inf) for name in names} | {"flow_head": np.float32(np.nan)}
    tree |= {"latent_proj": np.float32(1), "output_norm": np.float32(np.nan), "class_embedding": np.float32(np.nan)}
    tree |= {"blocks/self_norm": layers[::-1], "blocks/cross_key": layers, "blocks/mlp_in": np.full((3, 2), np.inf)}
    assert nan_report.nonfinite_names(tree, generator_order()) == [
        "class_embedding",
        "blocks/mlp_in, layer 0",
        "blocks/cross_key, layer 1",
        "blocks/self_norm, layer 1",
        "output_norm",
        *(f"flow_head/{name}" for name in names),
        "flow_head",
    ]


def test_microbatches_are_repeated_one_by_one_with_their_own_keys(monkeypatch):
    key, seen = jax.random.key(3), []

    def compute(carry, rows, key):
        del carry
        return (rows["x"].sum(), jax.random.uniform(key)), None

    def look(step, params, encoder_params, rows, key):
        del step, params, encoder_params
        seen.append(compute(None, rows, key)[0])
        return f"microbatch {len(seen)}" if len(seen) == 3 else None

    monkeypatch.setattr(nan_report, "_first_in_microbatch", look)
    batch = {"x": np.arange(12.0, dtype=np.float32) ** 2}
    report = nan_report.first_nonfinite_module
    assert report(generator_step(3), {}, {}, batch, key) == "microbatch 3"
    (total, uniform), _ = optim.accumulate_gradients(compute, batch, key, 3)
    np.testing.assert_allclose([sum(x) / 3 for x in zip(*seen, strict=True)], [total, uniform], rtol=1e-6)
    assert report(generator_step(), {}, {}, batch, key).startswith("none when the step is repeated")
    np.testing.assert_allclose(seen[3], compute(None, batch, key)[0])
