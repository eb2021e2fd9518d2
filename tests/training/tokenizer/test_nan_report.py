"""Which parameter or term of the tokenizer is named as the first that is not finite in a training step."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import photos_tokenizer
from eqjax import config_fields
from eqjax.tokenizer import Tokenizer
from eqjax.training import fields, optim, tokenizer
from eqjax.training.forward_order import forward_order
from eqjax.training.state import TokenizerState
from eqjax.training.tokenizer import nan_report
from eqjax.training.tokenizer.objective import Objective
from eqjax.training.tokenizer.step import TokenizerStep
from tests.training.tokenizer import two_products

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
    optimizer, schedule = optim.make_optimizer(config_fields.make(fields.OPTIMIZER), 10)
    step = TokenizerStep(objective, optimizer, optimizer, schedule, ema_decay=lambda _: 0.9)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    params: dict[str, Any] = {"quant": {"kernel": 0.1 * rng.standard_normal((192, 4), np.float32)}}
    params["decoder"] = {"conv_out": {"kernel": rng.standard_normal((4, 192), np.float32)}}

    def first(w=1.0, kernel=None, images=images, **frozen):
        frozen = {name: jnp.float32(frozen.get(name, value)) for name, value in DEFAULTS.items()}
        heads = {"w": jnp.float32(w)}
        variables = {"params": heads, "spectral": {}, "opt_state": optimizer.init(heads)}
        changed = params if kernel is None else {**params, "quant": {**params["quant"], "kernel": kernel(params)}}
        state = TokenizerState(jnp.int32(3), changed, params, optimizer.init(params), variables)
        return nan_report.first_nonfinite_term(step, frozen, state, images, jax.random.key(0))

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
def test_a_run_names_the_discriminator_whose_optimizer_diverges(tmp_path, monkeypatch):
    config = photos_tokenizer.get_config("tiny,gan")
    config.update(max_consecutive_nonfinite=2, log_every=1, image_every=None, eval_every=None)
    config.objective.adversarial_start = 2
    config.optimizer.name = "adamw"  # Compiles faster.
    config.discriminator_optimizer.learning_rate = 9.0
    make_optimizer = optim.make_optimizer

    def diverging(optimizer_config, *args):
        optimizer, schedule = make_optimizer(optimizer_config, *args)
        is_ours = optimizer_config.learning_rate == 9.0
        return (optax.chain(optimizer, optax.scale(float("inf"))) if is_ours else optimizer), schedule

    monkeypatch.setattr(optim, "make_optimizer", diverging)
    config.discriminator.update(channels=4, num_layers=1)
    with pytest.raises(FloatingPointError, match="from step 3 on, were .* the discriminator.s params"):
        tokenizer.train_and_evaluate(config, str(tmp_path))
