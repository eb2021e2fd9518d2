"""A trainer that compiles in a moment, for tests of the loop; as a program, for tests that kill it.

    python -m tests.training.toy_trainer WORKDIR '{"total_steps": 40, "delay": 0.01}'

Writes RESULT (an option) with the final weights and the number of processes. Exits as eqjax.cli.runner does.
"""

import dataclasses
import json
import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eqjax import config_fields, sharding
from eqjax.training import fields, loop, optim
from eqjax.training.state import stream


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """The loop knows `step` and nothing else of it."""

    step: jax.Array
    weights: Any
    moments: Any


def config(total_steps=6, **values):
    config = config_fields.make({**fields.RUN, "data": fields.DATA, "optimizer": fields.OPTIMIZER})
    config.trainer = "toy"
    config.data.update(height=16, width=16, classes=("brick", "coffee"), num_threads=1)
    config.update(batch_size=8, total_steps=total_steps, log_every=1, image_every=None, eval_every=None)
    config.update({"checkpoint_every": 2, **values})
    return config


class ToyTrainer(loop.Trainer):
    """Linear regression of pooled pixels on labels, noise on top; steps in `bad_steps` have no finite loss."""

    def __init__(self, config, bad_steps=(), evaluate=None, tokenizer_fingerprint=None):
        self._optimizer, self._schedule = optim.make_optimizer(config.optimizer, config.total_steps)
        self._bad_steps, self._evaluate = bad_steps, evaluate
        self.frozen = np.eye(2, 8, dtype=np.float32)
        self.tokenizer_fingerprint = tokenizer_fingerprint

    def init_state(self, key):
        weights = {"layer": {"kernel": 0.01 * jax.random.normal(key, (768, 8)), "bias": jnp.zeros(8)}}
        return State(jnp.zeros((), jnp.int32), weights, self._optimizer.init(weights))

    def step(self, frozen, state, batch, key):
        x = batch["image"].reshape(len(batch["image"]), -1).astype(jnp.float32) / 255 - 0.5

        def loss_fn(weights):
            y = x @ weights["layer"]["kernel"] + weights["layer"]["bias"][None]
            noise = 0.01 * jax.random.normal(stream(key, "noise"), y.shape)
            return jnp.mean(jnp.square(y + noise - frozen[batch["label"]]))

        loss, grads = jax.value_and_grad(loss_fn)(state.weights)
        bad = jnp.isin(state.step + 1, jnp.array([0, *self._bad_steps]))
        loss, grads = jax.tree.map(lambda v: jnp.where(bad, jnp.nan, v), (loss, grads))
        updates, moments = self._optimizer.update(grads, state.moments, state.weights)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), "learning_rate": self._schedule(state.step)}
        return State(state.step + 1, optax.apply_updates(state.weights, updates), moments), metrics

    def evaluate(self, state):
        return self._evaluate(state) if self._evaluate else {}

    def images(self, state, batch):
        del state, batch
        return {}

    def export(self, state, path):
        del state, path

    def find_nonfinite(self, state, batch, key):
        del state, batch, key
        return "layer/kernel"


def main(workdir, options):
    """Trains under the options.

    They are fields of the configuration, `delay` (seconds per step), `result` (a file), and `largest_file` (size in
    bytes beyond which no file can grow).
    """
    delay, result = options.pop("delay", 0), options.pop("result", None)
    if "largest_file" in options:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.pop("largest_file"), hard))
    ours = config(**options)
    if delay:
        make = loop.make_iterator

        def slow(*args, **kwargs):
            data = make(*args, **kwargs)
            original = type(data).__next__
            type(data).__next__ = lambda self: (time.sleep(delay), original(self))[1]
            return data

        loop.make_iterator = slow
    state = loop.train(ours, workdir, ToyTrainer(ours))
    if result:
        leaves = jax.tree.leaves(sharding.gather(state))
        if jax.process_index() == 0:
            np.savez(result, *leaves, processes=jax.process_count(), devices=jax.device_count())


if __name__ == "__main__":
    from eqjax.cli import runner

    runner.finish(lambda: main(sys.argv[1], json.loads(sys.argv[2])), workdir=sys.argv[1])
