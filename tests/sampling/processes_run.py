"""Samples on the devices of several processes, and agrees with the others on kernels; as a program.

python -m tests.sampling.processes_run FOLDER

It writes what it found to FOLDER/INDEX.npz.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from unittest import mock

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from eqjax import Generator, sample_latents, sharding
from eqjax.cli import processes
from eqjax.evaluation import GenerationOptions, generate
from eqjax.generator import gpu_kernels
from eqjax.sampling import fused_columns
from tests.evaluation import tiny_models
from tests.random_params import random_params

LABELS = np.array([[0, 1], [2, 3], [1, 0], [3, 0], [2, 1], [0, 2], [1, 3], [0, 1]])
COLUMNS, IMAGES = 5, 12
# What is called, and the kinds that a process finds wrong, by its index.
CASES = (
    ("sampled", ((), ())), ("generated", ((), ())), ("sampled", ((), ("blocks",))),
    ("generated", (("layers",), ("blocks",))),
)  # fmt: skip


@functools.cache
def model():
    """Returns a model for which there are kernels."""
    generator = Generator(
        width=16, depth=1, num_heads=2, latent_dim=16, num_classes=3, num_cond_tokens=2, flow_width=32, flow_depth=1
    )
    given = tiny_models.model()
    tokenizer = given.require("tokenizer").clone(embed_dim=16)
    params = random_params(tokenizer), random_params(generator)
    return dataclasses.replace(
        given, tokenizer=tokenizer, tokenizer_params=params[0], generator=generator, generator_params=params[1]
    )


def sources():
    """Returns initial noise of all images by its kinds."""
    key = jax.random.key(3)
    noise = np.random.default_rng(2).normal(size=(len(LABELS), COLUMNS, 16)).astype(np.float32)
    return {"key": {"key": key}, "keys": {"key": jax.random.split(key, len(LABELS))}, "noise": {"noise": noise}}


def sampled(rows, mesh=None, gpu_kernels="plain", key=None, noise=None, params=None):
    """Returns latents of rows, whose first two columns are given."""
    prefix = np.random.default_rng(1).normal(size=(len(LABELS), 2, 16)).astype(np.float32)
    return sample_latents(
        model().generator, params or model().generator_params, LABELS[rows], num_columns=COLUMNS,
        class_columns=(3, None), transition=2, prefix=prefix[rows], num_flow_steps=4, guidance_scale=2.0, mesh=mesh,
        gpu_kernels=gpu_kernels, key=key[rows] if key is not None and key.ndim else key,
        noise=None if noise is None else noise[rows],
    )  # fmt: skip


def generated(folder, mesh=None, gpu_kernels="plain"):
    """Returns generated images."""
    options = GenerationOptions(num_columns=4, guidance_scale=2.0, num_flow_steps=3, gpu_kernels=gpu_kernels)
    samples = generate(model(), options, IMAGES, folder, mesh=mesh, per_device_batch_size=2)
    return np.concatenate(list(samples.batches()))


@contextlib.contextmanager
def emulated_gpus(wrong):
    """Takes the CPU for GPUs, whose kernels are emulated; yields the kinds that are asked for while JAX traces.

    Args:
      wrong: kinds that are found wrong; the others are compared.
    """
    error_here, takes, asked = gpu_kernels.error_here, fused_columns._takes, {}

    def error(kind, *given):
        return 1.0 if kind in wrong else error_here(kind, *given, interpret=True)

    def take(kind, *given):
        asked[kind] = takes(kind, *given)
        return asked[kind]

    with contextlib.ExitStack() as stack:
        for place, name, value in (
            (gpu_kernels, "cuda_is_installed", lambda: True), (gpu_kernels, "_PLATFORMS", ("cpu",)),
            (gpu_kernels, "error_here", error), (jax, "default_backend", lambda: "gpu"),
            (fused_columns, "_INTERPRET", True), (fused_columns, "_takes", take),
            (fused_columns, "_choose", lambda _, fused, *given: fused(*given)),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(place, name, value))
        yield asked


def taken(asked):
    """Returns the kinds that were taken, as text."""
    assert set(asked) == {"blocks", "layers"}, asked
    return " ".join(sorted(kind for kind, is_taken in asked.items() if is_taken))


def rows_sharding(mesh, array):
    """Returns the sharding of an array along its first axis, if that divides."""
    return NamedSharding(mesh, PartitionSpec("data" if len(array) % mesh.shape["data"] == 0 else None))


def main(folder):
    """The program."""
    processes.join_processes()
    mesh, found = sharding.make_mesh(), {}
    index, count = sharding.batch_shard(mesh)
    rows = slice(index * len(LABELS) // count, (index + 1) * len(LABELS) // count)
    if index == 1:  # Nobody waits for the others.
        with emulated_gpus(()):
            here = sharding.make_mesh(jax.local_devices())
            found["alone"] = np.asarray(sampled(rows, **sources()["key"]))
            found["alone on a mesh"] = np.asarray(sampled(rows, here, "auto", **sources()["keys"]))
            found["alone, decoded"] = np.asarray(model().decode(found["alone"]))
    # Parameters on the host, on a device of each process, and split over all devices.
    whole = model().generator_params
    params = {"key": None, "keys": jax.device_put(whole, jax.local_devices()[0])}
    params["noise"] = sharding.put(whole, jax.tree.map(functools.partial(rows_sharding, mesh), whole))
    for name, given in sources().items():
        found[name] = sharding.to_host(sampled(rows, mesh, **given, params=params[name]))
    for i, (how, wrong) in enumerate(CASES):
        with emulated_gpus(wrong[index]) as asked:
            if how == "sampled":
                values = sharding.to_host(sampled(rows, mesh, "auto", **sources()["keys"]))
            else:
                values = generated(os.path.join(folder, str(i)), mesh, "auto")
        found |= {f"case {i}": values, f"case {i}, taken": taken(asked)}
    np.savez(os.path.join(folder, f"{index}.npz"), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
