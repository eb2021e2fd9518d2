"""A tiny generator's training that samples and evaluates images; as a program, for several processes.

python -m tests.training.sample_metrics_run WORKDIR TOKENIZER REFERENCE
"""

import contextlib
import json
import sys
from typing import Any

import numpy as np

from configs import photos_generator, photos_tokenizer
from eqjax import load_pretrained, pretrained
from eqjax.evaluation import Extractor, GenerationEvaluator, GenerationOptions, networks, statistics
from eqjax.training import generator
from tests.evaluation import tiny_models
from tests.random_params import random_params

SAMPLING: Any = dict(num_flow_steps=2, guidance_scale=2.0)
COUNT = 12


@contextlib.contextmanager
def tiny_inception():
    """A small network in Inception's place."""
    original, networks.inception = networks.inception, lambda _: tiny_models.network()
    try:
        yield
    finally:
        networks.inception = original


def write_reference(path):
    """Statistics of noise, to compare images of 16 × 16 with."""
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    statistics.save(
        path, Extractor(tiny_models.network(), per_device_batch_size=8).collect(iter([images]), 20).statistics
    )
    return path


def write_tokenizer(path):
    """Random weights."""
    module = pretrained.build_module("tokenizer", dict(photos_tokenizer.get_config("tiny").tokenizer))
    pretrained.save(path, pretrained.Weights({"tokenizer": module}, {"tokenizer": random_params(module)}, 1.0))
    return path


def make_config(tokenizer, reference, **metrics):
    """Returns the configuration of four steps, with FID after every second."""
    config = photos_generator.get_config("tiny")
    config.data.classes = ("brick", "coffee")
    config.generator.num_classes = 2
    config.tokenizer_weights = str(tokenizer)
    config.total_steps, config.log_every, config.eval_every, config.checkpoint_every = 4, 1, 2, 2
    config.update(image_every=None, keep_checkpoints=1, keep_best="fid:max")
    config.optimizer.update(schedule="constant", warmup_steps=0.0, learning_rate=5e-3)
    config.metrics.update(every=2, num_images=COUNT, reference=str(reference), **metrics)
    config.metrics.sampling.update(SAMPLING)
    return config


def measure(weights, reference):
    """Returns the FID of samples with a weights file, as `eqjax evaluate` computes it."""
    model, options = load_pretrained(weights), GenerationOptions(num_columns=4, **SAMPLING)
    extractor = Extractor(tiny_models.network(), per_device_batch_size=8)
    evaluator = GenerationEvaluator(model, options, COUNT, extractor=extractor, reference=statistics.load(reference))
    return evaluator.evaluate(model, weights.parent / "again")["metrics"]["fid"]


def logged(workdir, name):
    """{step: value} of metrics.jsonl."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def main(workdir, tokenizer, reference):
    """The program."""
    with tiny_inception():
        generator.train_and_evaluate(make_config(tokenizer, reference), workdir)


if __name__ == "__main__":
    from eqjax.cli import runner

    runner.finish(lambda: main(*sys.argv[1:]))
