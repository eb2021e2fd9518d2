"""Runs of the toy trainer, and what they leave: metrics, checkpoints, states."""

import json
import pathlib

import jax
import numpy as np

from eqjax.training import loop
from tests.training import toy_trainer


def train(workdir, config, **kwargs):
    """Trains in this process; returns the last state."""
    return loop.train(config, str(workdir), toy_trainer.ToyTrainer(config, **kwargs))


def logged(workdir, name="loss"):
    """Returns (step, value) of a metric, in the order in which they were logged."""
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    return [(line["step"], line[name]) for line in map(json.loads, text.splitlines()) if name in line]


def saved_steps(workdir):
    """Returns the steps of the checkpoints under a workdir."""
    return sorted(int(p.name) for p in (pathlib.Path(workdir) / "checkpoints").iterdir() if p.name.isdigit())


def leaves(state):
    """Returns the arrays of a state."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def equal(a, b):
    """Returns whether two lists hold equal arrays."""
    return all((x == y).all() for x, y in zip(a, b, strict=True))
