"""Sampling with the fused kernels, emulated: solvers, guidance, memory, derivatives and rows are as without them.

A column is integrated, and then fed to the transformer.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import Generator, sample_latents
from eqjax.generator import gpu_kernels
from eqjax.sampling import fused_columns, sampler
from eqjax.sampling.class_schedule import Blend
from eqjax.sampling.options import SamplingOptions
from tests.random_params import random_params

BATCH = 3


@functools.cache
def model():
    """Returns a generator for which there are kernels, and its parameters."""
    generator = Generator(
        width=16, depth=1, num_heads=2, latent_dim=16, num_classes=3, num_cond_tokens=2, flow_width=32, flow_depth=1
    )
    return generator, random_params(generator)


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setattr(fused_columns, "_INTERPRET", True)


def column(kernels, **options):
    """Returns a function of noise that samples one column with kernels, and the noise."""
    made, context, noise = prepared(kernels, **options)

    def sample(noise):
        return sampler.sample_column(made, jnp.asarray(context), noise, np.float32(2))

    return sample, noise


def feeding(kernels, **options):
    """Returns a function of latents that feeds two columns to the transformer: context and KV cache; and latents."""
    made, context, latents = prepared(kernels, **options)

    def feed(latents):
        cache = made.generator.init_cache(len(context), 4)
        state = sampler.SamplerState(jnp.int32(0), jnp.asarray(context), cache)
        blend = Blend(jnp.int32(0), jnp.float32(0.25))
        for factor in (1.0, 0.5):
            state = sampler.decode_step(made, state, factor * latents, blend)
        return state.context, state.cache

    return feed, latents


def largest_difference(found, expected):
    """Returns the largest difference of two trees of arrays, in units of the largest value of each array."""

    def difference(here, there):
        return np.abs(np.asarray(here) - np.asarray(there)).max() / np.abs(there).max()

    return max(jax.tree.leaves(jax.tree.map(difference, found, expected)))


def prepared(kernels, **options):
    """Returns a `Sampler`, a context and noise of one column."""
    generator, params = model()
    given = sampler.SamplerInputs.create(
        generator, params, np.zeros((BATCH, 1), np.int32), SamplingOptions(num_flow_steps=6, **options)
    )
    rng = np.random.default_rng(0)
    rows = BATCH * (2 if given.is_guided else 1)
    context = rng.normal(size=(rows, 16)).astype(np.float32)
    made = sampler.make_sampler(
        dataclasses.replace(given, shortcuts=dataclasses.replace(given.shortcuts, gpu_kernels=kernels))
    )

    return made, context, rng.normal(size=(BATCH, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("blocks", {"guidance_scale": 2.0}),
        pytest.param("blocks", {"solver": "heun", "modulation_times": 3}, marks=pytest.mark.slow),
        pytest.param("rows", {"guidance_scale": 2.0}, marks=pytest.mark.slow),
        pytest.param("rows", {"solver": "heun", "modulation_times": 3}, marks=pytest.mark.slow),
    ],
)
def test_latents_are_those_of_the_plain_path(kind, options, monkeypatch):
    """With the modulations of four evaluations in memory at once, two chunks or more."""
    monkeypatch.setattr(gpu_kernels, "flow_kind", lambda *_: kind)
    rows = BATCH * (2 if "guidance_scale" in options else 1)
    monkeypatch.setattr(sampler, "MODULATION_BYTES", 4 * rows * 5 * 32 * 4)
    fused, noise = column("fused", **options)
    plain, _ = column("plain", **options)
    expected = np.asarray(jax.jit(plain)(noise))
    assert np.abs(np.asarray(jax.jit(fused)(noise)) - expected).max() <= 1e-5
    assert np.abs(expected - noise).max() > 0.5


@pytest.mark.parametrize(("most", "expected"), [(6, "blocks"), (5, "rows")])
def test_few_rows_have_other_kernels_than_many(most, expected, monkeypatch):
    monkeypatch.setattr(gpu_kernels, "_MOST_FLOAT32_BLOCK_ROWS", most)
    velocity, taken = gpu_kernels.velocity, set()
    monkeypatch.setattr(gpu_kernels, "velocity", lambda kind: taken.add(kind) or velocity(kind))
    sample, noise = column("fused", guidance_scale=2.0)
    jax.eval_shape(sample, noise)
    assert taken == {expected}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blocks", "rows"])
def test_derivatives_are_those_of_the_plain_path(kind, monkeypatch):
    monkeypatch.setattr(gpu_kernels, "flow_kind", lambda *_: kind)
    fused, noise = column("fused")
    plain, _ = column("plain")

    def gradient(sample):
        return np.asarray(jax.jit(jax.grad(lambda noise: jnp.sum(jnp.square(sample(noise)))))(noise))

    assert np.abs(gradient(fused) - gradient(plain)).max() <= 1e-5 * np.abs(gradient(plain)).max()


@pytest.mark.parametrize("guidance_scale", [2.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_context_and_cache_are_those_of_the_plain_path(guidance_scale):
    """The rows of the null class see the same columns."""
    fused, latents = feeding("fused", guidance_scale=guidance_scale)
    plain, _ = feeding("plain", guidance_scale=guidance_scale)
    traced = jax.jit(fused).trace(latents)
    assert str(traced.jaxpr).count("pallas_call[") == 2 * 6  # Two columns; layers are a loop.
    assert largest_difference(traced.lower().compile()(latents), jax.jit(plain)(latents)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("transform", [jax.grad, lambda f: lambda x: jax.jvp(f, (x,), (x,))[1]])
def test_derivatives_of_context_and_cache_are_those_of_the_plain_path(transform):
    fused, latents = feeding("fused")
    plain, _ = feeding("plain")

    def derivative(feed):
        return jax.jit(transform(lambda latents: sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(feed(latents)))))

    assert largest_difference(derivative(fused)(latents), derivative(plain)(latents)) <= 1e-5


@pytest.mark.slow
def test_a_batch_of_batches_is_fed():
    fused, latents = feeding("fused")
    plain, _ = feeding("plain")
    both = np.stack([latents, 2 * latents])
    expected = jax.jit(jax.vmap(plain))(both)
    assert largest_difference(jax.jit(jax.vmap(fused))(both), expected) <= 1e-5


@pytest.mark.parametrize("kind", ["blocks", pytest.param("rows", marks=pytest.mark.slow)])
def test_a_batch_of_batches(kind, monkeypatch):
    monkeypatch.setattr(gpu_kernels, "flow_kind", lambda *_: kind)
    fused, noise = column("fused")
    plain, _ = column("plain")
    noises = np.stack([noise, 2 * noise])
    together = np.asarray(jax.jit(jax.vmap(fused))(noises))
    for one, found in zip(noises, together, strict=True):
        assert np.abs(np.asarray(jax.jit(plain)(one)) - found).max() <= 1e-5


def test_on_a_cpu_auto_is_the_plain_program_to_the_bit(monkeypatch):
    """Where the GPU compiler is installed too, and the function is traced, so that lowering decides."""
    monkeypatch.setattr(gpu_kernels, "cuda_is_installed", lambda: True)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    generator, params = model()
    noise = np.random.default_rng(0).normal(size=(2, 2, 16)).astype(np.float32)
    taken = []
    takes = fused_columns._takes
    monkeypatch.setattr(fused_columns, "_takes", lambda *args: taken.append(takes(*args)) or taken[-1])

    def sample(kernels):
        def run(noise):
            return sample_latents(
                generator, params, [0, 1], num_columns=2, num_flow_steps=3, noise=noise, gpu_kernels=kernels
            )

        with jax.default_device(jax.devices("cpu")[0]):
            return np.asarray(jax.jit(run)(noise))

    np.testing.assert_array_equal(sample("auto"), sample("plain"))
    assert taken == sorted(taken, reverse=True) and set(taken) == {True, False}


def test_fused_kernels_are_refused_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(gpu_kernels, "cuda_is_installed", lambda: False)
    generator, params = model()
    with pytest.raises(ValueError, match="gpu_kernels='fused' needs an NVIDIA GPU"):
        sample_latents(generator, params, [0], num_columns=1, key=jax.random.key(0), gpu_kernels="fused")


def test_rows_on_several_devices_have_the_plain_path(monkeypatch):
    """On GPUs: the kernels are not divided among them."""
    from eqjax import sharding

    monkeypatch.setattr(gpu_kernels, "cuda_is_installed", lambda: True)
    monkeypatch.setattr(gpu_kernels, "_place", lambda _, mesh: ("gpu", 1 if mesh is None else mesh.size))
    generator, params = model()
    labels, options = np.zeros((4, 1), np.int32), SamplingOptions()
    mesh = sharding.make_mesh(jax.devices("cpu")[:4], "data:-1")
    create = functools.partial(sampler.SamplerInputs.create, generator, params, labels)
    assert create(options).shortcuts.gpu_kernels == "auto"
    assert create(options, mesh).shortcuts.gpu_kernels == "plain"
    with pytest.raises(ValueError, match="needs one device, and this computation may have 4"):
        create(SamplingOptions(gpu_kernels="fused"), mesh)
