"""Weights from those of several files: what a joined model holds, and values between two models."""

import jax
import numpy as np
import pytest

from eqjax import combining, pretrained
from tests.random_params import random_params
from tests.test_pretrained import GENERATOR, TOKENIZER


@pytest.fixture(scope="module")
def weights():
    modules = {"tokenizer": TOKENIZER, "generator": GENERATOR}
    params = {name: random_params(module) for name, module in modules.items()}
    return pretrained.Weights(modules, params, 0.25, ("cat", "dog", "eel"), "made by a test")


def test_a_later_part_takes_precedence_and_keeps_what_it_does_not_say(weights):
    later = pretrained.Weights(
        {"tokenizer": TOKENIZER}, {"tokenizer": random_params(TOKENIZER, 1)}, None, notes="later"
    )
    joined = combining.join([weights, later], "both")
    assert joined.params["tokenizer"] is later.params["tokenizer"]
    assert joined.params["generator"] is weights.params["generator"]
    assert (joined.latent_scale, joined.class_names, joined.notes) == (0.25, weights.class_names, "both")


def test_weights_between_two_are_means_of_what_they_have_in_common(weights):
    other = pretrained.Weights({"tokenizer": TOKENIZER}, {"tokenizer": random_params(TOKENIZER, 1)}, notes="trained on")
    found = combining.interpolate(weights, other, 0.25)
    expected = jax.tree.map(lambda x, y: 0.75 * x + 0.25 * y, weights.params["tokenizer"], other.params["tokenizer"])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), found.params["tokenizer"], expected
    )
    assert found.params["generator"] is weights.params["generator"]
    assert (found.class_names, found.latent_scale) == (weights.class_names, weights.latent_scale)
    assert found.notes == "0.75 of:\nmade by a test\n0.25 of:\ntrained on"
    for fraction, end in ((0, weights), (1, other)):
        ends = combining.interpolate(weights, other, fraction).params["tokenizer"]
        jax.tree.map(np.testing.assert_array_equal, ends, end.params["tokenizer"])


def test_there_is_nothing_between_weights_of_different_kinds(weights):
    def of(module, name="tokenizer", scale=None):
        return pretrained.Weights({name: module}, {name: random_params(module)}, scale)

    with pytest.raises(pretrained.WeightsError, match="hold tokenizer, generator, the second head"):
        combining.interpolate(weights, of(TOKENIZER, "head"), 0.5)
    with pytest.raises(pretrained.WeightsError, match=r"two architectures:\n.*embed_dim.*4.*8"):
        combining.interpolate(weights, of(TOKENIZER.clone(embed_dim=8)), 0.5)
    with pytest.raises(pretrained.WeightsError, match=r"latent scales are 0\.25 and 0\.5"):
        combining.interpolate(weights, of(TOKENIZER, scale=0.5), 0.5)
    with pytest.raises(TypeError, match="fraction='half'"):
        combining.interpolate(weights, of(TOKENIZER), "half")
