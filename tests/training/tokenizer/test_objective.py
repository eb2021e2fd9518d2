"""The published objective against recorded arrays: terms, adaptive weight, all gradients, spectral vectors."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import convert, nets
from eqjax.tokenizer import losses
from eqjax.tokenizer.augment import diff_augment
from eqjax.tokenizer.discriminator import FeatureDiscriminator
from eqjax.training.tokenizer import objective as objective_module
from eqjax.training.tokenizer.discriminator import DinoDiscriminator
from eqjax.training.tokenizer.draws import ActiveTerms, RandomDraws
from eqjax.training.tokenizer.objective import TERMS, Objective
from tests import frozen_network_cases
from tests.golden_cases import recorded_tokenizer, relative_error
from tests.reference_weights import image, state_dict
from tests.training.tokenizer import two_products

META, RECORDED = frozen_network_cases.objective()
# Names of the reference and ours.
METRIC_NAMES = {
    "total_loss": "loss",
    "rec_loss": "recon_loss",
    "g_loss": "gen_loss",
    "d_weight": "adaptive_weight",
    "disc_factor": "disc_active",
}
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
        discriminator=DinoDiscriminator(modules["dino"], heads),
    )
    params = convert.tokenizer_params(state_dict(META["tokenizer_parameters"]), tokenizer)
    variables = convert.discriminator_variables(state_dict(META["disc_parameters"], salt="disc."), heads)
    return objective, params, variables, {name: params for name, (_, params) in networks.items()}


@functools.cache
def passes():
    """Results of the generator's and the discriminator's pass on the recorded batch."""
    objective, params, discriminator, frozen = case()
    images = image("obj", (2, 256, 256, 3))
    uniforms = jnp.asarray(RECORDED["objective/rand01"][:, :, 0, 0].T)
    noise = RECORDED["objective/noise"] * RECORDED["objective/noise_scale"][:, None, None]
    draws = RandomDraws(jnp.asarray(noise), uniforms, uniforms)

    @jax.jit
    def run(params, discriminator, frozen):
        out = objective.tokenizer_grads(params, {}, discriminator, frozen, images, draws, ActiveTerms())
        fakes = objective.reconstruct(params, images, noise).images
        after = {**discriminator, "spectral": out[2]}
        return out, objective.discriminator_grads(after, frozen, images, fakes, draws)

    return run(params, discriminator, frozen)


def test_augmentation_equals_the_recorded_one():
    out = diff_augment(RECORDED["diffaug/image"], RECORDED["diffaug/rand01"][:, :, 0, 0].T)
    # Means over images: jaxlib 0.7 adds up in another order, and is 1.3e-6 away.
    assert relative_error(out, RECORDED["diffaug/out"]) < (1e-6 if jax.__version_info__ >= (0, 8) else 2e-6)


@pytest.mark.parametrize("name", ["hinge", "vanilla"])
def test_discriminator_losses_equal_the_recorded_ones(name):
    loss = losses.DISCRIMINATOR_LOSSES[name](RECORDED["gan/real"], RECORDED["gan/fake"])
    assert relative_error(loss, RECORDED[f"gan/{name}"]) < 1e-6


def test_the_discriminators_first_forward_equals_the_recorded_one():
    objective, _, discriminator, frozen = case()
    assert objective.discriminator is not None
    images = image("disc", (2, 224, 224, 3))
    logits, spectral = jax.jit(objective.discriminator)(frozen, discriminator, images, None)
    assert relative_error(logits, RECORDED["disc/logits"]) < 1e-5
    for theirs, ours in HEAD_LAYERS.items():
        for i in range(5):
            recorded = RECORDED[f"disc/after/heads.{i}.{theirs}.weight_u"]
            assert relative_error(spectral["heads"][ours]["u"][i], recorded) < 1e-5


@pytest.mark.slow
def test_terms_equal_the_recorded_ones():
    (_, terms, _), (_, more, _) = passes()
    recorded = {k.split("/")[-1]: RECORDED[k] for k in RECORDED if k.startswith(("objective/gen", "objective/disc/"))}
    recorded |= {name: RECORDED[f"objective/discriminator/{name}"] for name in more}
    for theirs, ours in METRIC_NAMES.items():
        recorded[ours] = recorded.pop(theirs)
    recorded["semantic_active"] = recorded.pop("semantic_factor") / 5.0  # Theirs is the weight.
    assert recorded.pop("logvar") == 0
    for theirs, ours in (("nll", "nll"), ("g", "gen")):
        recorded[f"{ours}_grad_norm_last_layer"] = RECORDED[f"objective/{theirs}_grad_norm_last_layer"]
    for name, value in recorded.items():
        assert relative_error((terms | more)[name], value) < 1e-4, name


@pytest.mark.slow
def test_tokenizer_gradients_equal_the_recorded_ones():
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
def test_discriminator_gradients_equal_the_recorded_ones():
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


# ── Terms that are off ──────────────────────────────────────────────────────────────────────────

SEMANTIC_DIM, NUM_LOGITS, BATCH = 1000, 2000, 2


def small_case(**changes):
    """An objective of small networks with all its terms, and the arguments of its gradients before `active`."""
    rng = np.random.default_rng(0)
    tokenizer = two_products.TwoProducts(semantic_dim=SEMANTIC_DIM)
    objective = Objective(
        tokenizer,
        l2_weight=0.5,
        seam_weight=0.1,
        spectrum_weight=0.5,
        perceptual_weight=1.0,
        semantic_weight=5.0,
        adversarial_weight=0.5,
        lpips=lambda frozen, x, y: frozen["lpips"] * jnp.mean(jnp.square(x - y), axis=(1, 2, 3)),
        semantic_targets=lambda frozen, x: x.reshape(BATCH, 1, 1, -1) @ frozen["dinov2"],
        discriminator=two_products.Discriminator(),
    )
    kernels = {"quant": (192, 4), "semantic_head": (4, SEMANTIC_DIM)}
    params: dict[str, Any] = {
        name: {"kernel": rng.standard_normal(shape, np.float32)} for name, shape in kernels.items()
    }
    params["decoder"] = {"conv_out": {"kernel": rng.standard_normal((4, 192), np.float32)}}
    variables = {"params": {"w": rng.standard_normal((192, NUM_LOGITS), np.float32)}, "spectral": {"u": jnp.ones(3)}}
    frozen = {"lpips": jnp.float32(2.0), "dinov2": rng.standard_normal((192, SEMANTIC_DIM), np.float32)}
    images = rng.uniform(-1, 1, (BATCH, 8, 8, 3)).astype(np.float32)
    draws = RandomDraws.from_key(jax.random.key(0), tokenizer, images.shape)
    return dataclasses.replace(objective, **changes), (params, {}, variables, frozen, images, draws)


def compiled(objective, arguments, active):
    """The compiled gradients; which terms are on is a constant of the program, as its branches see it at run time."""
    active = ActiveTerms(*map(jnp.bool_, active))
    return jax.jit(lambda *args: objective.tokenizer_grads(*args, active)).lower(*arguments).compile()


WITHOUT = {"semantic": dict(semantic_targets=None), "adversarial": dict(discriminator=None)}
# Parameters whose gradients the term changes.
REACHES = {"semantic": {"quant", "semantic_head"}, "adversarial": {"quant", "decoder"}}
METRICS = {
    "semantic": {"semantic_loss", "semantic_active"},
    "adversarial": {"gen_loss", "adaptive_weight", "disc_active"},
}


@pytest.mark.parametrize("term", ["semantic", "adversarial"])
def test_a_term_that_is_off_is_zero(term):
    objective, arguments = small_case()
    off = ActiveTerms(**{name: name != term for name in ActiveTerms._fields})
    on_grads, on_metrics, on_spectral = compiled(objective, arguments, ActiveTerms())(*arguments)
    grads, metrics, spectral = compiled(objective, arguments, off)(*arguments)
    for name in METRICS[term]:
        assert metrics[name] == 0 != on_metrics[name], name
    assert metrics["loss"] != on_metrics["loss"]
    # The rest is what an objective without the term gives.
    without, _ = small_case(**WITHOUT[term])
    expected_grads, expected, _ = compiled(without, arguments, ActiveTerms())(*arguments)
    assert METRICS[term].isdisjoint(expected) and expected.keys() < metrics.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-6), name
    for (path, leaf), other, on in zip(
        jax.tree_util.tree_leaves_with_path(grads), *map(jax.tree.leaves, (expected_grads, on_grads)), strict=True
    ):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, err_msg=str(path))
        # The two programs are compiled apart, so equal gradients may differ by rounding.
        assert (np.abs(leaf - on).max() > 1e-6 * np.abs(on).max()) == (path[0].key in REACHES[term]), path
    assert (spectral["u"] == 1).all() and (on_spectral["u"] == 1).all()


@pytest.mark.parametrize("term", ["semantic", "adversarial"])
def test_a_term_that_is_off_costs_nothing(term):
    objective, arguments = small_case()
    off = ActiveTerms(**{name: name != term for name in ActiveTerms._fields})
    without, _ = small_case(**WITHOUT[term])

    def flops(objective, active):
        cost: Any = compiled(objective, arguments, active).cost_analysis()
        return cost["flops"]

    forward = 2 * BATCH * 192 * {"semantic": SEMANTIC_DIM, "adversarial": NUM_LOGITS}[term]
    work = forward * {"semantic": 1, "adversarial": 2}[term]  # The discriminator is differentiated too.
    total, rest = flops(objective, ActiveTerms()), flops(objective, off)
    assert total - rest > 0.95 * work
    # What remains: zeros for the term, and their way through the sums.
    assert rest - flops(without, ActiveTerms()) < 0.05 * work


def test_every_metric_is_documented_and_the_terms_are_in_their_order():
    objective, arguments = small_case()
    _, metrics, _ = objective.tokenizer_grads(*arguments, ActiveTerms())
    _, more, _ = objective.discriminator_grads(arguments[2], *arguments[3:5], arguments[4], arguments[5])
    for name in (*metrics, *more):
        assert f"`{name}`" in (objective_module.__doc__ or ""), name
    assert tuple(name for name in metrics if name in TERMS) == TERMS
    # The terms decide the total; everything else derives from them, or weighs them.
    derived = {"psnr", "recon_loss", "nll_loss", "loss", "adaptive_weight", "semantic_active", "disc_active"}
    assert metrics.keys() - set(TERMS) == derived | {"nll_grad_norm_last_layer", "gen_grad_norm_last_layer"}
