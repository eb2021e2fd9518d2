"""The published objective against recorded arrays: terms, adaptive weight, all gradients, spectral vectors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import convert, nets
from eqjax.tokenizer import losses
from eqjax.tokenizer.augment import diff_augment
from eqjax.tokenizer.discriminator import FeatureDiscriminator
from eqjax.training.adversary import FeatureJudge
from eqjax.training.objective import Objective, RandomDraws
from tests import frozen_network_cases
from tests.golden_cases import recorded_tokenizer, relative_error
from tests.reference_weights import image, state_dict

META, RECORDED = frozen_network_cases.objective()
HEAD_LAYERS = {"0.0": "conv_in", "1.fn.0": "conv", "2": "conv_out"}


@functools.cache
def case():
    """(objective, trainable parameters, discriminator's variables, frozen parameters)."""
    tokenizer = recorded_tokenizer(META["tokenizer"], META["semantic"], META["embed_dim"])
    networks = {
        "lpips": frozen_network_cases.lpips_case(),
        "dino": frozen_network_cases.dino_case(),
        "dinov2": frozen_network_cases.dinov2_case(),
    }
    modules = {name: module for name, (module, _) in networks.items()}
    heads = FeatureDiscriminator(META["disc"]["embed"], 5, META["disc"]["kernel"])
    objective = Objective(
        tokenizer,
        kl_weight=0.01,
        perceptual_weight=1.0,
        semantic_weight=5.0,
        adversarial_weight=0.5,
        lpips=lambda frozen, x, y: nets.lpips(frozen["lpips"], x, y, modules["lpips"]),
        semantic_targets=lambda frozen, x: nets.dinov2_targets(frozen["dinov2"], x, modules["dinov2"]),
        judge=FeatureJudge(modules["dino"], heads),
    )
    params = convert.tokenizer_params(state_dict(META["tokenizer_parameters"]), tokenizer)
    variables = convert.discriminator_variables(state_dict(META["disc_parameters"], salt="disc."), heads)
    return objective, params, variables, {name: params for name, (_, params) in networks.items()}


@functools.cache
def passes():
    """Results of the generator's and the discriminator's pass on the recorded batch."""
    objective, params, discriminator, frozen = case()
    images = image("obj", (2, 256, 256, 3))
    numbers = RECORDED["objective/rand01"][:, :, 0, 0].T
    noise = RECORDED["objective/noise"] * RECORDED["objective/noise_scale"][:, None, None]
    draws = RandomDraws(jnp.asarray(noise), jnp.asarray(numbers), jnp.asarray(numbers))

    @jax.jit
    def run(params, discriminator, frozen):
        on = {"semantic": True, "adversarial": True}
        out = objective.tokenizer_grads(params, {}, discriminator, frozen, images, draws, on)
        fakes = objective.reconstruct(params, images, noise)[0].images
        after = {**discriminator, "spectral": out[2]}
        return out, objective.discriminator_grads(after, frozen, images, fakes, draws)

    return run(params, discriminator, frozen)


def test_augmentation():
    out = diff_augment(RECORDED["diffaug/image"], RECORDED["diffaug/rand01"][:, :, 0, 0].T)
    # Means over images: jaxlib 0.7 adds up in another order, and is 1.3e-6 away.
    assert relative_error(out, RECORDED["diffaug/out"]) < (1e-6 if jax.__version_info__ >= (0, 8) else 2e-6)


@pytest.mark.parametrize("name", ["hinge", "vanilla"])
def test_discriminator_losses(name):
    loss = losses.DISCRIMINATOR_LOSSES[name](RECORDED["gan/real"], RECORDED["gan/fake"])
    assert relative_error(loss, RECORDED[f"gan/{name}"]) < 1e-6


def test_first_training_forward():
    objective, _, discriminator, frozen = case()
    images = image("disc", (2, 224, 224, 3))
    logits, spectral = jax.jit(objective.judge.__call__)(frozen, discriminator, images, None)
    assert relative_error(logits, RECORDED["disc/logits"]) < 1e-5
    for theirs, ours in HEAD_LAYERS.items():
        for i in range(5):
            recorded = RECORDED[f"disc/after/heads.{i}.{theirs}.weight_u"]
            assert relative_error(spectral["heads"][ours]["u"][i], recorded) < 1e-5


@pytest.mark.slow
def test_terms():
    (_, terms, _), (_, more, _) = passes()
    recorded = {k.split("/")[-1]: RECORDED[k] for k in RECORDED if k.startswith(("objective/gen", "objective/disc/"))}
    recorded |= {name: RECORDED[f"objective/discriminator/{name}"] for name in more}
    recorded["loss"] = recorded.pop("total_loss")
    assert recorded.pop("logvar") == 0
    recorded |= {f"{n}_grad_norm_last_layer": RECORDED[f"objective/{n}_grad_norm_last_layer"] for n in ("nll", "g")}
    for name, value in recorded.items():
        assert relative_error((terms | more)[name], value) < 1e-4, name


@pytest.mark.slow
def test_tokenizer_gradients():
    objective, _, _, _ = case()
    (grads, _, _), _ = passes()
    norms = {k: np.linalg.norm(v) for k, v in convert.tokenizer_state_dict(grads, objective.tokenizer).items()}
    recorded = {k.split("/")[-1]: RECORDED[k] for k in RECORDED if k.startswith("objective/grad_norm/")}
    assert len(recorded) > 200 and recorded.keys() <= norms.keys()
    scale = max(recorded.values())
    # A bias before a norm over its own group, or added to all keys alike, has a true gradient of 0: what is recorded is
    # rounding, bounded against the largest gradient.
    far = {k: (norms[k], v) for k, v in recorded.items() if abs(norms[k] - v) > 1e-3 * v + 1e-6 * scale}
    assert not far
    assert sum(v > 1e-3 * scale for v in recorded.values()) > 100


@pytest.mark.slow
def test_discriminator_gradients():
    _, (grads, _, _) = passes()
    layers = {"0.0": "conv_in", "0.1": "norm_in", "1.fn.0": "conv", "1.fn.1": "norm", "2": "conv_out"}
    leaves = {"weight_orig": "kernel", "weight": "scale", "bias": "bias"}
    recorded = {k.split("/")[-1]: RECORDED[k] for k in RECORDED if k.startswith("objective/disc_grad_norm/")}
    assert len(recorded) == 50
    scale = max(recorded.values())
    for name, value in recorded.items():
        _, head, rest = name.split(".", 2)
        layer, leaf = rest.rsplit(".", 1)
        norm = np.linalg.norm(grads["heads"][layers[layer]][leaves[leaf]][int(head)])
        assert abs(norm - value) < 1e-3 * value + 1e-6 * scale, name


@pytest.mark.slow
def test_switched_off_terms_are_zero_and_cost_nothing():
    objective, params, discriminator, frozen = case()
    objective = dataclasses.replace(objective, lpips=None)
    images, draws = jnp.zeros((1, 256, 16, 3)), RandomDraws(jnp.zeros((1, 1, 16)), jnp.zeros((1, 7)), jnp.zeros((1, 7)))

    def run(on):
        switches = {"semantic": on, "adversarial": on}
        return objective.tokenizer_grads(params, {}, discriminator, frozen, images, draws, switches)

    text = str(jax.make_jaxpr(run)(False))
    assert "cond" in text
    off = jax.eval_shape(run, False)
    assert set(off[1]) == set(passes()[0][1]) - {"lpips"}
