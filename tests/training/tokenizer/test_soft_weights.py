"""Soft weights at the start of a run: measured on the run's data, one kind at a time, and kept in its state."""

import itertools

import jax
import numpy as np
import pytest

from eqjax.equivariance import Overlap
from eqjax.training.fault_tolerance import Preempted
from eqjax.training.tokenizer import soft_weights
from eqjax.training.tokenizer.train import TokenizerTrainer
from tests.training.tokenizer.test_regularization_config import make_config

KINDS = ("flip", "scale", "shift", "warp")


@pytest.fixture
def measured(monkeypatch):
    """Calls of `measure_overlap`, whose critic tells flips apart, and nothing else."""
    calls = []

    def measure(geometry, group, batches, held_out, **options):
        calls.append((geometry, group, next(iter(batches)), list(held_out), options))
        return Overlap(0.75 if group.flips else 0.5, 512)

    monkeypatch.setattr(soft_weights, "measure_overlap", measure)
    return calls


def test_a_fresh_run_weighs_kinds_by_their_overlap(measured, caplog):
    caplog.set_level("INFO")
    config = make_config(implicit_probability=0.5, transforms=KINDS, scales=("1/2", "1"), soft_power=2.0, soft_steps=7)
    trainer = TokenizerTrainer(config, "")
    state = trainer.load_initial_weights(trainer.init_state(jax.random.key(0)), lambda: None)
    assert state.regularization is not None and np.asarray(state.regularization.soft).tolist() == [0.25, 1, 1, 1]
    assert "Flip: a critic tells held-out images" in caplog.text and "It weighs 0.25" in caplog.text
    for kind, (geometry, group, seen, held_out, options) in zip(KINDS, measured, strict=True):
        parts = {"flip": group.flips, "scale": len(group.scales) > 1, "shift": group.max_shift, "warp": group.warp}
        assert [name for name, is_on in parts.items() if is_on] == [kind]
        assert geometry.stride == 4 and options == {"steps": 7, "seed": config.seed}
        assert seen.shape[1:] == (config.data.height, config.data.width, 3)
        assert len(held_out) == 16 and not any(np.array_equal(seen, batch) for batch in held_out)


def test_without_soft_weights_nothing_is_measured(measured):
    trainer = TokenizerTrainer(make_config(implicit_probability=0.5), "")
    state = trainer.load_initial_weights(trainer.init_state(jax.random.key(0)), lambda: None)
    assert not measured and state.regularization is None


@pytest.mark.parametrize("which", [2, 3], ids=["batches", "held_out"])
def test_a_critic_ends_at_the_batch_before_which_the_run_is_asked_to_stop(monkeypatch, which):
    seen = []

    def measure(*images, **_):
        for batch in itertools.islice(images[which], 4):
            seen.append(batch)

    def check_stop():
        if len(seen) == 2:
            raise Preempted

    monkeypatch.setattr(soft_weights, "measure_overlap", measure)
    config = make_config(implicit_probability=0.5, transforms=KINDS, soft_power=2.0)
    trainer = TokenizerTrainer(config, "")
    with pytest.raises(Preempted):
        trainer.load_initial_weights(trainer.init_state(jax.random.key(0)), check_stop)
    assert len(seen) == 2
