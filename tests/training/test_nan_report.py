"""Which module, parameter or term is named as the first that is not finite in a training step."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import photos_tokenizer
from eqjax.generator import Generator
from eqjax.tokenizer import Tokenizer
from eqjax.training import optim, tokenizer
from eqjax.training.config import generator_config, optimizer_config
from eqjax.training.forward_order import forward_order
from eqjax.training.generator import GeneratorStep
from eqjax.training.generator import nan_report as generator_report
from eqjax.training.state import TokenizerState
from eqjax.training.tokenizer import nan_report as tokenizer_report
from eqjax.training.tokenizer.objective import Objective
from eqjax.training.tokenizer.step import TokenizerStep
from tests.training import two_products

# ── The generator ───────────────────────────────────────────────────────────────────────────────

GENERATOR = Generator(
    width=8, depth=3, num_heads=2, latent_dim=4, num_classes=2, num_cond_tokens=1, flow_width=8, flow_depth=2
)


def generator_step(num_microbatches=1):
    config = generator_config()
    config.accumulation_steps = num_microbatches
    return GeneratorStep.from_config(config, GENERATOR, lambda _, batch, key: (batch["latents"], batch["label"]))


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
        return generator_report.first_nonfinite_module(step, params, {}, batch, jax.random.key(1))

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
    assert generator_report.nonfinite_names(tree, generator_order()) == [
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

    monkeypatch.setattr(generator_report, "_first_in_microbatch", look)
    batch = {"x": np.arange(12.0, dtype=np.float32) ** 2}
    report = generator_report.first_nonfinite_module
    assert report(generator_step(3), {}, {}, batch, key) == "microbatch 3"
    (total, uniform), _ = optim.accumulate_gradients(compute, batch, key, 3)
    np.testing.assert_allclose([sum(x) / 3 for x in zip(*seen, strict=True)], [total, uniform], rtol=1e-6)
    assert report(generator_step(), {}, {}, batch, key).startswith("none when the step is repeated")
    np.testing.assert_allclose(seen[3], compute(None, batch, key)[0])


# ── The tokenizer ───────────────────────────────────────────────────────────────────────────────

DEFAULTS = dict(root=1.0, offset=0.0, discriminator=0.0)


def lpips(frozen, x, y):
    """A root, whose gradient at 0 is not finite; and what is not finite itself."""
    distance = jnp.mean(jnp.square(x - y), axis=(1, 2, 3))
    return jnp.sqrt(frozen["root"] * distance) + frozen["offset"] * distance


class MeanOfSquares(two_products.Discriminator):
    """One number per image, not negative."""

    def __call__(self, frozen, variables, images, key):
        del key
        squares = jnp.mean(jnp.square(images), axis=(1, 2, 3))
        return variables["params"]["w"] * squares + frozen["discriminator"], {}


@pytest.fixture(name="first", scope="module")
def _first():
    """What is named in a step of the tokenizer, given changes in it."""
    objective = Objective(
        two_products.TwoProducts(),
        perceptual_weight=1.0,
        adversarial_weight=0.5,
        lpips=lpips,
        discriminator=MeanOfSquares(),
        discriminator_loss=lambda real, fake: jnp.mean(jnp.sqrt(real)) + jnp.mean(fake),
    )
    optimizer, schedule = optim.make_optimizer(optimizer_config(), 10)
    step = TokenizerStep(objective, optimizer, optimizer, schedule, ema_decay=lambda step: 0.9)
    draw = np.random.default_rng(0)
    images = draw.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    params = {"quant": {"kernel": 0.1 * draw.standard_normal((192, 4), np.float32)}}
    params["decoder"] = {"conv_out": {"kernel": draw.standard_normal((4, 192), np.float32)}}

    def first(w=1.0, kernel=None, images=images, **frozen):
        frozen = {name: jnp.float32(frozen.get(name, value)) for name, value in DEFAULTS.items()}
        heads = {"w": jnp.float32(w)}
        variables = {"params": heads, "spectral": {}, "opt_state": optimizer.init(heads)}
        changed = params if kernel is None else {**params, "quant": {**params["quant"], "kernel": kernel(params)}}
        state = TokenizerState(jnp.int32(3), changed, params, optimizer.init(params), variables)
        return tokenizer_report.first_nonfinite_term(step, frozen, state, images, jax.random.key(0))

    return first


def test_the_first_term_of_the_tokenizer_is_named(first):
    assert first().startswith("none when the step is repeated")
    assert first(w=np.nan) == "the discriminator's params/w"
    assert first(kernel=lambda params: params["quant"]["kernel"] * np.nan, w=np.nan) == "parameter quant/kernel"
    assert first(kernel=lambda params: np.full_like(params["quant"]["kernel"], 3e38)) == "output of the encoder"
    assert first(images=np.full((2, 8, 8, 3), np.inf, np.float32)) == "output of the encoder"
    assert first(offset=np.nan, discriminator=np.nan) == "term lpips"
    assert first(kernel=lambda params: params["quant"]["kernel"] * 1e25) == "term kl_loss"
    assert first(discriminator=np.nan) == "term gen_loss"
    assert re.match("gradient of [0-9]+ arrays of the tokenizer, decoder/", first(root=0.0))
    assert first(w=0.0) == "the discriminator's disc_grad_norm"


def test_the_tokenizers_order_is_that_of_its_computation():
    module = Tokenizer(
        channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(8,), resolution=16,
        z_channels=8, embed_dim=8, square_downsamples=1,
    )  # fmt: skip
    images = jnp.zeros((1, 16, 2 * module.column_width, 3))
    order = forward_order(lambda key: module.init(key, images), jax.random.key(0))
    assert [path for path in order if path and "/" not in path] == ["encoder", "quant", "post_quant", "decoder"]
    assert order[-1] == "" and order[0] == "encoder/conv_in"


@pytest.mark.slow
def test_a_run_names_the_discriminator_whose_optimizer_diverges(tmp_path):
    config = photos_tokenizer.get_config("tiny,gan")
    config.update(max_consecutive_nonfinite=2, log_every=1, image_every=None, eval_every=None)
    config.objective.adversarial_start = 2
    config.optimizer.name = "adamw"  # Compiles faster.
    config.discriminator_optimizer.learning_rate = float("inf")
    config.discriminator.update(channels=4, num_layers=1)
    with pytest.raises(FloatingPointError, match="from step 3 on, were .* the discriminator.s params"):
        tokenizer.train_and_evaluate(config, str(tmp_path))
