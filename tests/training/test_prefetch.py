"""Batches ahead of the step: their order, the data's position, errors in reading them."""

import jax
import numpy as np
import pytest

from eqjax import sharding
from eqjax.data import BatchIterator
from eqjax.training import loop
from eqjax.training.prefetch import DevicePrefetch
from tests.training import toy_trainer
from tests.training.toy_runs import equal, leaves, saved_steps, train


class Counting(BatchIterator):
    """Batches 0, 1, 2 …; those in `bad` cannot be read."""

    def __init__(self, bad=()):
        self.next, self.bad = 0, bad

    def __next__(self):
        self.next += 1
        if self.next - 1 in self.bad:
            raise ValueError(f"batch {self.next - 1} is corrupt")
        return {"image": np.full(1, self.next - 1)}

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


def value(batch):
    return int(batch["image"][0])


def test_batches_keep_their_order_and_steps_and_the_position_is_that_of_the_step():
    placed = []
    prefetch = DevicePrefetch(Counting(), lambda batch, step: placed.append((value(batch), step)) or batch)
    assert prefetch.get_state() == {"next": 0}
    for step in (1, 2, 3):
        assert value(prefetch.take(step)) == step - 1
        prefetch.read_ahead(step + 1)
        assert placed[-1] == (step, step + 1)  # Before the next step asks.
        assert prefetch.get_state() == {"next": step}
    prefetch.set_state({"next": 1})
    assert prefetch.get_state() == {"next": 1}
    assert value(prefetch.take(2)) == 1


def test_an_error_in_reading_ahead_is_raised_by_the_step_that_needs_the_batch():
    prefetch = DevicePrefetch(Counting(bad=[1]), lambda batch, _: batch)
    prefetch.take(1)
    prefetch.read_ahead(2)
    assert prefetch.get_state() == {"next": 1}
    with pytest.raises(ValueError, match="batch 1 is corrupt"):
        prefetch.take(2)


def test_the_loop_puts_the_next_batch_on_devices_before_it_waits_for_the_step(tmp_path, monkeypatch):
    events = []
    shard_batch, add = sharding.shard_batch, loop.StepWatch.add
    monkeypatch.setattr(sharding, "shard_batch", lambda *a: events.append("copy") or shard_batch(*a))
    monkeypatch.setattr(loop.StepWatch, "add", lambda *a: events.append("wait") or add(*a))
    train(tmp_path, toy_trainer.config(3, checkpoint_every=None))
    assert events == ["copy", "copy", "wait", "copy", "wait", "wait"]  # And none after the last step.


class BadTrainer(toy_trainer.ToyTrainer):
    """Cannot prepare the batch of step 3."""

    def prepare_batch(self, batch, step):
        if step == 3:
            raise ValueError("step 3 has no batch")
        return batch


def test_the_step_before_a_bad_batch_is_saved_and_continues_bit_for_bit(tmp_path):
    with pytest.raises(ValueError, match="step 3 has no batch"):
        loop.train(toy_trainer.config(6), str(tmp_path / "cut"), BadTrainer(toy_trainer.config(6)))
    assert saved_steps(tmp_path / "cut") == [2]
    resumed, uncut = (train(tmp_path / name, toy_trainer.config(6)) for name in ("cut", "uncut"))
    assert equal(leaves(resumed), leaves(uncut))
    assert jax.device_get(resumed.step) == 6
