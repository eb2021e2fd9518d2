"""What is the first that is not finite in a step of the tokenizer."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import photos_tokenizer
from eqjax.tokenizer.posterior import Posterior
from eqjax.tokenizer.tokenizer import Decoded
from eqjax.training import nan_report, objective, optim, tokenizer
from eqjax.training.config import optimizer_config
from eqjax.training.updates import TokenizerState, Updates

DEFAULTS = dict(root=1.0, offset=0.0, judge=0.0)


@dataclasses.dataclass(frozen=True)
class Linear:
    """A tokenizer of two products, in the place of one that takes long to compile."""

    column_width: int = 8
    embed_dim: int = 4
    posterior_std: float = 0.1

    def apply(self, variables, x, method):
        """As the module's."""
        kernels = variables["params"]["quant"]["kernel"], variables["params"]["decoder"]["conv_out"]["kernel"]
        if method == "encode":
            return Posterior(x.reshape(len(x), 1, -1) @ kernels[0], self.posterior_std)
        return Decoded(jnp.tanh(x @ kernels[1]).reshape(-1, 8, 8, 3), None)


def lpips(frozen, x, y):
    """A root, whose gradient at 0 is not finite; and what is not finite itself."""
    distance = jnp.mean(jnp.square(x - y), axis=(1, 2, 3))
    return jnp.sqrt(frozen["root"] * distance) + frozen["offset"] * distance


def judge(frozen, variables, images, key):
    """One number per image, not negative."""
    del key
    return variables["params"]["w"] * jnp.mean(jnp.square(images), axis=(1, 2, 3)) + frozen["judge"], {}


@pytest.fixture(name="first", scope="module")
def _first():
    """The diagnosis of a step, given what is to be changed in it."""
    terms = objective.Objective(
        Linear(),
        perceptual_weight=1.0,
        adversarial_weight=0.5,
        lpips=lpips,
        judge=judge,
        discriminator_loss=lambda real, fake: jnp.mean(jnp.sqrt(real)) + jnp.mean(fake),
    )
    optimizer, _ = optim.make_optimizer(optimizer_config(), 10)
    updates = Updates(terms, optimizer, optimizer, 1, 0, 0)
    draw = np.random.default_rng(0)
    images = draw.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    params = {"quant": {"kernel": 0.1 * draw.standard_normal((192, 4), np.float32)}}
    params["decoder"] = {"conv_out": {"kernel": draw.standard_normal((4, 192), np.float32)}}

    def first(w=1.0, kernel=None, images=images, **frozen):
        frozen = {name: jnp.float32(frozen.get(name, value)) for name, value in DEFAULTS.items()}
        judge = {"w": jnp.float32(w)}
        variables = {"params": judge, "spectral": {}, "opt_state": optimizer.init(judge)}
        changed = params if kernel is None else {**params, "quant": {**params["quant"], "kernel": kernel(params)}}
        state = TokenizerState(jnp.int32(3), changed, params, optimizer.init(params), variables)
        return nan_report.first_nonfinite_term(updates, (), frozen, state, images, jax.random.key(0))

    return first


def test_the_first_in_order_is_named(first):
    assert first().startswith("none when the step is done again")
    assert first(w=np.nan) == "the discriminator's params/w"
    assert first(kernel=lambda params: params["quant"]["kernel"] * np.nan, w=np.nan) == "parameter quant/kernel"
    assert first(kernel=lambda params: np.full_like(params["quant"]["kernel"], 3e38)) == "output of the encoder"
    assert first(images=np.full((2, 8, 8, 3), np.inf, np.float32)) == "output of the encoder"
    assert first(offset=np.nan, judge=np.nan) == "term lpips"
    assert first(kernel=lambda params: params["quant"]["kernel"] * 1e25) == "term kl_loss"
    assert first(judge=np.nan) == "term g_loss"
    assert re.match("gradient of [0-9]+ arrays of the tokenizer, decoder/", first(root=0.0))
    assert first(w=0.0) == "the discriminator's disc_grad_norm"


@pytest.mark.slow
def test_a_run_names_it(tmp_path):
    config = photos_tokenizer.get_config("tiny,gan")
    config.update(max_consecutive_nonfinite=2, log_every=1, image_every=None, eval_every=None)
    config.objective.adversarial_start = 2
    config.optimizer.name = "adamw"  # Compiles faster.
    config.discriminator_optimizer.learning_rate = float("inf")
    config.discriminator.update(channels=4, num_layers=1)
    with pytest.raises(FloatingPointError, match="from step 3 on, were .* the discriminator.s params"):
        tokenizer.train_and_evaluate(config, str(tmp_path))
