"""Logs: JSON lines, and Weights & Biases with a stand-in for its package."""

import json
import os
import sys
import types
from typing import Any

import ml_collections
import numpy as np
import pytest

from eqjax.training.logging import MetricWriter


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package, which records calls."""
    fake: Any = types.ModuleType("wandb")
    fake.calls, fake.started = [], []

    class Run:
        def __init__(self, **options):
            fake.started.append(options)
            self.id = options["id"] or f"run{len(fake.started)}"
            self.config = types.SimpleNamespace(update=lambda values, **_: fake.calls.append(("config", values)))

        def log(self, values, step):
            fake.calls.append((step, values))

        def finish(self):
            fake.calls.append("finished")

    fake.init, fake.Image = Run, lambda image: image.shape
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_resumed_run_stays_one_run_of_wandb(wandb, tmp_path):
    for _ in range(2):
        with MetricWriter(tmp_path / "cats", "project") as writer:
            writer.config(ml_collections.ConfigDict({"seed": 3}))
            writer.scalars(1, {"loss": 2.0, "column": np.array([0.5, 1.5])})
            writer.image(1, "samples", np.zeros((4, 6, 3), np.uint8))
    assert [(options["project"], options["name"], options["id"]) for options in wandb.started] == [
        ("project", "cats", None),
        ("project", "cats", "run1"),
    ]
    scalars = {"loss": 2.0, "column/00": 0.5, "column/01": 1.5}
    assert wandb.calls == 2 * [("config", {"seed": 3}), (1, scalars), (1, {"samples": (4, 6, 3)}), "finished"]
    first = json.loads((tmp_path / "cats" / "metrics.jsonl").read_text().splitlines()[0])
    assert {name: first[name] for name in scalars} == scalars


def test_every_line_is_json_and_vectors_become_curves(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(1, {"loss": np.nan, "column": np.array([np.inf, 1.5]), "nonfinite_steps": 3})

    def refuse(name):
        raise ValueError(name)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (line["loss"], line["column/00"], line["column/01"], line["nonfinite_steps"]) == (None, None, 1.5, 3)


def test_wandb_is_needed_only_where_a_project_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"wandb_project='p' needs the package wandb .*: pip install 'eqjax\[wandb\]'"
    ):
        MetricWriter(tmp_path, "p")
    with MetricWriter(tmp_path) as writer:  # Nobody else needs it.
        writer.scalars(1, {"loss": 1.0})


def test_a_pipe_in_place_of_the_metrics_is_an_error_and_no_wait(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="metrics.jsonl"):
        MetricWriter(tmp_path)


def test_a_torn_last_line_is_removed_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr("eqjax.training.logging._TAIL_BYTES", 8)
    path = tmp_path / "metrics.jsonl"
    for torn in ('{"step": 1}\n{"step": 2, "lo', "", '{"st'):
        path.write_text(torn)
        with MetricWriter(tmp_path) as writer:
            writer.scalars(3, {"loss": 0.5})
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == ([1, 3] if "\n" in torn else [3])
