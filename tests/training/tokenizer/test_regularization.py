"""Regularizers in a training step: one transform for both updates, one program per choice, nothing when off."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import pixels, sharding
from eqjax.equivariance import StereoWindows, act_image
from eqjax.training import loop
from eqjax.training.tokenizer import nan_report
from eqjax.training.tokenizer import objective as objective_module
from eqjax.training.tokenizer.regularization import TransformChoice
from tests.compilations import count_compilations
from tests.training.tokenizer.column_products import (
    BATCH,
    HEIGHT,
    KINDS,
    WIDTH,
    batch,
    make_state,
    make_step,
    regularization,
)

KEY = jax.random.key(3)
HALF, WHOLE = (TransformChoice(Fraction(scale), implicit=True) for scale in ("1/2", "1"))
EXPLICIT = TransformChoice(Fraction(1), implicit=False)


# ── What the host chooses ───────────────────────────────────────────────────────────────────────


def test_a_choice_depends_on_the_seed_and_the_step_alone():
    """So all processes agree, and a resumed run goes on as it was."""
    options = {"implicit_probability": 0.5, "seed": 3}
    choices = [regularization(**options).choose(step) for step in range(200)]
    assert choices == [regularization(**options).choose(step) for step in range(200)]
    assert choices != [regularization(**{**options, "seed": 4}).choose(step) for step in range(200)]
    assert set(choices) == {None, HALF, WHOLE}
    assert 70 < sum(choice is None for choice in choices) < 130


def test_nothing_is_chosen_before_the_start_and_every_step_has_a_transform_with_explicit_errors():
    late = regularization(implicit_probability=1.0, start=5)
    assert [late.choose(step) is None for step in (0, 4, 5, 6)] == [True, True, False, False]
    explicit = regularization(explicit_weight=0.1)
    assert {explicit.choose(step) for step in range(50)} == {EXPLICIT, TransformChoice(Fraction(1, 2), implicit=False)}


def test_soft_weights_need_one_kind_per_step():
    soft = regularization(implicit_probability=1.0, soft_power=2.0)
    choices = [soft.choose(step) for step in range(200)]
    # One step of four scales, and then it is not by 1.
    assert set(choices) == {HALF, WHOLE} and 25 < choices.count(HALF) < 80
    state, found = soft.init_state(), set()
    for seed in range(40):
        regularizer = soft.for_step(WHOLE, state, jnp.int32(0), jax.random.key(seed))
        assert regularizer is not None and regularizer.action is not None and regularizer.kind is not None
        action = regularizer.action
        assert action.warp is not None
        moved = {
            "shift": bool(action.shift != 0),
            "flip": bool(action.flip),
            "warp": bool(jnp.any(action.warp.target != action.warp.source)),
        }
        kind = KINDS[int(regularizer.kind)]
        assert [name for name, moves in moved.items() if moves] == [kind]
        found.add(kind)
    assert found == {"flip", "shift", "warp"}
    scaled = soft.for_step(HALF, state, jnp.int32(0), KEY)
    assert scaled is not None and scaled.action is not None and scaled.kind == KINDS.index("scale")
    assert scaled.action.scale == Fraction(1, 2) and not scaled.action.flip and scaled.action.shift == 0


# ── Programs ────────────────────────────────────────────────────────────────────────────────────


def lowered(step, choice=None):
    state, image = make_state(step), jax.ShapeDtypeStruct((BATCH, HEIGHT, WIDTH, 3), np.uint8)
    if step.objective.regularization is not None:
        state = state.replace(regularization=None)  # Its scalars would be arguments.
    arguments = {"image": image} if choice is None else {"image": image, "transform": choice}
    return jax.jit(lambda *args: step({}, *args)).lower(state, arguments, KEY).as_text()


@pytest.mark.parametrize("microbatches", [1, 2])
def test_plain_steps_have_the_program_of_runs_without_regularizers(microbatches):
    off = lowered(make_step(adversarial=True, num_microbatches=microbatches))
    on = make_step(adversarial=True, num_microbatches=microbatches, implicit_probability=0.5)
    assert lowered(on) == off
    assert lowered(on, WHOLE) != off


def test_there_is_one_program_per_choice():
    step = make_step(implicit_probability=0.5)
    regularizers = step.objective.regularization
    assert regularizers is not None
    mesh, state = sharding.make_mesh(jax.devices()[:1]), make_state(step)
    compiled = loop.compile_step(jax.tree_util.Partial(step, {}), (), mesh, state, KEY)
    state = sharding.put(state, sharding.state_shardings(state, mesh, ()))
    batches = {None: batch(), HALF: batch(HALF), WHOLE: batch(WHOLE)}
    batches = {choice: sharding.shard_batch(rows, mesh) for choice, rows in batches.items()}
    with count_compilations() as names:
        for number in range(30):
            state, metrics = compiled(state, batches[regularizers.choose(number)])
    assert int(state.step) == 30 and metrics["finite"]
    assert names.count("run") + names.count("jit(run)") == 3


# ── Implicit steps ──────────────────────────────────────────────────────────────────────────────


def test_both_updates_see_the_pair_under_one_transform(monkeypatch):
    monkeypatch.setattr(objective_module, "diff_augment", lambda images, _: images)
    step = make_step(adversarial=True, implicit_probability=1.0, posterior_std=0.0)
    state, rows = make_state(step), batch(WHOLE)
    regularizer = step.regularizer(state, WHOLE, KEY)
    assert regularizer is not None and regularizer.action is not None and step.objective.regularization is not None
    images = pixels.from_uint8(rows["image"])
    targets, _ = act_image(step.objective.regularization.geometry, regularizer.action, images)
    made = step.objective.reconstruct(state.params, images, np.zeros((BATCH, 8, 6), np.float32), regularizer)
    np.testing.assert_allclose(made.targets, targets, atol=1e-6)
    after, metrics = jax.jit(lambda *args: step({}, *args))(state, rows, KEY)
    ramp = np.linspace(-1, 1, WIDTH)[None, None, :, None]
    assert float(metrics["logits_real"]) == pytest.approx(float(np.mean(ramp * targets)), rel=1e-4)
    # The tokenizer barely moves in a step of this size.
    assert float(metrics["logits_fake"]) == pytest.approx(float(np.mean(ramp * made.images)), rel=1e-2)
    assert float(metrics["transformed_l1"]) == pytest.approx(float(np.mean(np.abs(targets - made.images))), rel=1e-4)
    assert "l1" not in metrics and "psnr" not in metrics and int(after.step) == 1
    assert abs(float(np.mean(ramp * images)) - float(metrics["logits_real"])) > 1e-3


def test_images_of_every_width_weigh_alike():
    step = make_step(implicit_probability=1.0)
    _, metrics = jax.jit(lambda *args: step({}, *args))(make_state(step), batch(HALF), KEY)
    values = HEIGHT * WIDTH * 3
    assert float(metrics["transformed_nll_loss"]) == pytest.approx(values * float(metrics["transformed_l1"]), rel=1e-5)


@pytest.mark.parametrize("choice", [HALF, EXPLICIT])
def test_microbatches_add_up(choice):
    """One transform for all of them."""
    found = []
    for parts in (1, 2):
        step = make_step(
            num_microbatches=parts, posterior_std=0.0, implicit_probability=0.5, explicit_weight=0.1, soft_power=2.0
        )
        _, metrics = jax.jit(lambda *args, step=step: step({}, *args))(make_state(step), batch(choice), KEY)
        found.append([float(metrics[name]) for name in ("loss", "kl_loss")])
    # Relative errors are ratios of sums, so they differ a little between halves.
    np.testing.assert_allclose(found[0], found[1], rtol=0.02)


@pytest.mark.slow
def test_the_step_does_not_depend_on_the_devices():
    step = make_step(implicit_probability=1.0, explicit_weight=0.1, soft_power=2.0)
    found = []
    for count, shape in ((1, "data:1"), (4, "data:4"), (4, "fsdp:4")):
        mesh = sharding.make_mesh(jax.devices()[:count], shape)
        state = make_state(step)
        state = sharding.put(state, sharding.state_shardings(state, mesh, ()))
        compiled = loop.compile_step(jax.tree_util.Partial(step, {}), (), mesh, state, KEY)
        state, metrics = compiled(state, sharding.shard_batch(batch(WHOLE), mesh))
        found.append(jax.device_get((state.params, state.regularization, metrics)))
    for other in found[1:]:
        for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# ── Explicit errors, soft weights, stereo ───────────────────────────────────────────────────────


def run(step, state, choice):
    return jax.jit(lambda *args: step({}, *args))(state, batch(choice), KEY)


def test_explicit_errors_are_part_of_the_total_and_off_once_the_guard_has_fired():
    step = make_step(explicit_weight=0.1)
    state = make_state(step)
    after, metrics = run(step, state, EXPLICIT)
    errors = float(metrics["encoder_error"]) + float(metrics["decoder_error"])
    total = float(metrics["nll_loss"]) + 0.01 * float(metrics["kl_loss"]) + 0.1 * HEIGHT * WIDTH * 3 * errors
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-5) and errors > 1e-3
    assert float(metrics["equivariance_error"]) == pytest.approx(float(metrics["encoder_error"]) ** 0.5, rel=1e-5)
    assert after.regularization.guard.start == metrics["latent_spread"] > 0 and metrics["collapsed"] == 0
    # As if the spread had fallen from 10 to 4.
    guard = state.regularization.guard.replace(start=jnp.float32(10.0), spread=jnp.float32(4.0))
    fired, metrics = run(step, state.replace(regularization=state.regularization.replace(guard=guard)), EXPLICIT)
    assert metrics["collapsed"] == 1
    last, metrics = run(step, fired, EXPLICIT)
    assert metrics["collapsed"] == 1 and last.regularization.guard.fired
    plain = float(metrics["nll_loss"]) + 0.01 * float(metrics["kl_loss"])
    assert float(metrics["loss"]) == pytest.approx(plain, rel=1e-5)


def test_soft_weights_weigh_the_steps_of_their_kind():
    step = make_step(implicit_probability=1.0, soft_power=2.0)
    state = make_state(step)
    assert state.regularization.soft.tolist() == [1, 1, 1, 1]
    low = state.replace(regularization=state.regularization.replace(soft=jnp.array([0.25, 0.5, 0.75, 1])))
    after, weighed = run(step, low, HALF)
    _, full = run(step, state, HALF)
    for name in ("loss", "grad_norm"):
        assert float(weighed[name]) == pytest.approx(0.25 * float(full[name]), rel=1e-5)
    assert after.regularization.soft.tolist() == [0.25, 0.5, 0.75, 1]
    assert [float(weighed[f"soft_{kind}"]) for kind in KINDS] == [0.25, 0.5, 0.75, 1]
    weights = []
    for seed in range(8):
        drawn: Any = step.regularizer(low, WHOLE, jax.random.key(seed))
        weights.append((float(drawn.weight), KINDS[int(drawn.kind)]))
    assert len(set(weights)) > 1 and set(weights) <= set(zip((0.25, 0.5, 0.75, 1), KINDS, strict=True))


def test_the_stereo_term_is_part_of_every_step_after_the_start():
    rng = np.random.default_rng(0)
    view = rng.integers(0, 256, (5, HEIGHT, 16, 3), np.uint8)
    places = np.stack([np.zeros(5), 100 * np.arange(5), np.zeros(5)], axis=1).astype(np.int32)
    step = make_step(stereo_weight=0.1, stereo_windows=4, start=2)
    losses = []
    for windows in (StereoWindows(view, view, places), StereoWindows(view, view[::-1], places)):
        found = {}
        for number in (1, 2):
            state = make_state(step).replace(step=jnp.int32(number))
            _, metrics = jax.jit(step)({"stereo": windows}, state, batch(), KEY)
            found[number] = float(metrics["loss"] - metrics["nll_loss"] - 0.01 * metrics["kl_loss"])
            losses.append(float(metrics["stereo_loss"]))
        assert found[1] == pytest.approx(0, abs=0.01)
        assert found[2] == pytest.approx(0.1 * HEIGHT * WIDTH * 3 * losses[-1], rel=1e-3, abs=0.01)
    assert losses[1] < 0.1 < 0.4 < losses[-1]


def test_a_term_that_is_not_finite_is_named():
    step = make_step(explicit_weight=0.1)
    state = make_state(step)
    images = pixels.from_uint8(batch()["image"])
    assert nan_report.first_nonfinite_term(step, {}, state, images, KEY, EXPLICIT).startswith("none when")
    # Latents whose squares exceed float32.
    kernel = state.params["quant"]["kernel"]
    params = {**state.params, "quant": {"kernel": kernel * np.float32(1e25)}}
    found = nan_report.first_nonfinite_term(step, {}, state.replace(params=params), images, KEY, EXPLICIT)
    assert found == "term encoder_error"


def test_every_metric_is_documented():
    step = make_step(implicit_probability=0.5, explicit_weight=0.1, soft_power=2.0)
    _, metrics = run(step, make_state(step), EXPLICIT)
    added = {"encoder_error", "decoder_error", "equivariance_error", "latent_spread", "collapsed", "soft_scale"}
    assert added <= set(metrics)
    text = objective_module.__doc__ or ""
    assert not [name for name in (*added, "stereo_loss", "transformed_l1") if f"`{name}`" not in text]
