"""Schedules, EMA weights and gradient accumulation by closed forms; the optimizer against recorded steps."""

import importlib.resources
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqjax import config_fields, convert
from eqjax.training import fields, optim
from eqjax.training.state import ema_update, stream
from tests.golden_cases import generator_case, relative_error, training_loss


def make(**values):
    config = config_fields.make(fields.OPTIMIZER)
    config.update(values)
    return config


@pytest.mark.parametrize(
    ("values", "steps", "expected"),
    [
        (dict(learning_rate=2.0), [0, 7], [2, 2]),
        (dict(learning_rate=2.0, warmup_steps=100.0), [0, 50, 100, 900], [0, 1, 2, 2]),
        (dict(learning_rate=2.0, warmup_steps=2.5), [1, 2, 3], [0.8, 1.6, 2.0]),
        (dict(warmup_steps=100.0, schedule="cosine", final_lr_ratio=0.1), [50, 100, 550, 1000], [0.5, 1, 0.55, 0.1]),
        (dict(schedule="cosine", final_lr_ratio=0.0), [0, 500, 1000, 1001], [1, 0.5, 0, 0]),
        (
            dict(warmup_steps=10.0, schedule="step", decay_every=100, decay_rate=0.2),
            [5, 10, 109, 110, 210],
            [0.5, 1, 1, 0.2, 0.04],
        ),
    ],
)
def test_schedules_follow_closed_forms(values, steps, expected):
    schedule = optim.make_schedule(make(**{"learning_rate": 1.0, **values}), 1000)
    for kind in (int, jnp.int32):  # Steps on the host, and steps of a state.
        found = [np.asarray(schedule(kind(step))) for step in steps]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match="optimizer.schedule='linear' must be one of"):
        optim.make_schedule(make(schedule="linear"), 10)


def test_ema_weights_and_their_decay_follow_closed_forms():
    ema, decay = {"w": jnp.zeros(())}, 0.9
    for n in range(1, 6):
        ema = ema_update(ema, {"w": jnp.ones(())}, decay)
        np.testing.assert_allclose(ema["w"], 1 - 0.9**n, rtol=1e-5)
    config = make(ema_decay=0.99, ema_warmup=True)
    decays = [np.asarray(optim.ema_decay(config, n)) for n in (1, 9, 10000)]
    np.testing.assert_allclose(decays, [2 / 11, 10 / 19, 0.99], rtol=1e-6)
    assert optim.ema_decay(make(ema_decay=0.5, ema_warmup=False), 1) == 0.5


def test_random_streams_of_different_names_differ():
    key = jax.random.key(0)
    bits = {int(jax.random.bits(stream(key, name))) for name in ("flow", "rope", "label", "dropout", "posterior")}
    assert len(bits) == 5


def test_weight_decay_acts_on_the_published_parameters():
    generator, params, _ = generator_case()
    mask = optim.weight_decay_mask(params)
    reference = convert.generator_state_dict(
        jax.tree.map(lambda p, m: np.full(p.shape, m, np.float32), params, mask), generator
    )
    for name, values in reference.items():
        published = values.ndim > 1 and not name.endswith(".bias") and not name.startswith("diffloss.")
        assert (values == published).all(), name


def test_muon_orthogonalizes_kernels():
    params = {"conv": {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)}}
    optimizer, _ = optim.make_optimizer(make(name="muon", learning_rate=1.0), 10, optim.muon_dimension_numbers)
    gradient = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    updates: Any = optimizer.update(gradient, optimizer.init(params), params)[0]
    values = np.linalg.svd(np.asarray(updates["conv"]["kernel"]).reshape(36, 8), compute_uv=False)
    assert values.max() / values.min() < 2
    assert (updates["conv"]["kernel"].shape, updates["conv"]["bias"].shape) == ((3, 3, 4, 8), (8,))


@pytest.mark.parametrize(
    ("values", "numbers", "message"),
    [
        (dict(name="sgd"), optim.muon_dimension_numbers, "optimizer.name='sgd' must be one of 'adamw', 'muon'"),
        (dict(name="muon"), None, "optimizer.name='muon' is for the tokenizer alone"),
        (dict(learning_rate=-1e-4), None, "optimizer.learning_rate=-0.0001 must be a finite number ≥ 0"),
        (dict(grad_clip_norm=0.0), None, "optimizer.grad_clip_norm=0.0 must be a finite number > 0, or None"),
    ],
)
def test_impossible_optimizers_are_refused(values, numbers, message):
    with pytest.raises(ValueError, match=message):
        optim.make_optimizer(make(**values), 10, numbers)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    batch, params = jax.random.normal(jax.random.key(0), (12, 5)), jnp.arange(5.0)

    def compute(count, batch, key):
        del key
        loss = jax.value_and_grad(lambda p: (((batch @ p) ** 2).mean(), batch.sum(1).mean()), has_aux=True)
        return loss(params), count + 1

    whole, one = optim.accumulate_gradients(compute, batch, jax.random.key(0), 1, 0)
    microbatches, four = optim.accumulate_gradients(compute, batch, jax.random.key(0), 4, 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, microbatches)
    assert (one, four) == (1, 4)
    with pytest.raises(ValueError, match="batch of 12 does not divide into accumulation_steps=5"):
        optim.accumulate_gradients(compute, batch, jax.random.key(0), 5, 0)


def test_three_steps_are_those_recorded_from_the_reference():
    """Three steps of AdamW with clipping and EMA weights; the second loss is multiplied by 10."""
    generator, params, arrays = generator_case()
    recorded = importlib.resources.files("eqjax.recorded") / "generator_tiny.json"
    clip = json.loads(recorded.read_text())["config"]["clip"]
    config = make(weight_decay=0.02, grad_clip_norm=clip)
    optimizer, _ = optim.make_optimizer(make(**{**config, "learning_rate": 1.0}), 10)

    def gradient(params, factor):
        def loss(params):
            return factor * training_loss(generator, params, arrays)

        return jax.grad(loss)(params)

    @jax.jit
    def step(params, opt_state, ema, factor, learning_rate):
        updates, opt_state = optimizer.update(gradient(params, factor), opt_state, params)
        # AdamW is linear in the learning rate, which the optimizer has as 1.
        params = optax.apply_updates(params, jax.tree.map(lambda u: learning_rate * u, updates))
        return params, opt_state, ema_update(ema, params, 0.9)

    opt_state, ema = jax.jit(optimizer.init)(params), params
    for factor, learning_rate in ((1.0, 1e-3), (10.0, 2e-3), (1.0, 3e-3)):
        params, opt_state, ema = step(params, opt_state, ema, factor, learning_rate)
    for kind, tree in (("param", params), ("ema", ema)):
        back = convert.generator_state_dict(tree, generator)
        prefix = f"optim/{kind}_norm/"
        names = [key.removeprefix(prefix) for key in arrays if key.startswith(prefix)]
        assert set(names) == set(back)
        for name in names:
            if name.endswith("attn2.k.bias"):
                continue  # Its gradient is rounding (see the generator's gradients), which Adam scales up.
            assert relative_error(np.linalg.norm(back[name]), arrays[prefix + name]) < 1e-4, name
    back = convert.generator_state_dict(params, generator)
    for key in (key for key in arrays if key.startswith("optim/param/")):
        assert relative_error(back[key.removeprefix("optim/param/")], arrays[key]) < 1e-4, key
