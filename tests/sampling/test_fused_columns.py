"""Sampling with the fused kernels, emulated: solvers, guidance, memory, derivatives and rows are as without them.

A column is integrated, and then fed to the transformer.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import Generator, sample_latents, sharding
from eqjax.generator import gpu_kernels
from eqjax.sampling import chunks, fused_columns, sampler
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
        ("sums", {"guidance_scale": 2.0}),
        pytest.param("sums", {"solver": "heun", "modulation_times": 3}, marks=pytest.mark.slow),
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
    monkeypatch.setattr(gpu_kernels, "velocity", lambda kind, *rest: taken.add(kind) or velocity(kind, *rest))
    sample, noise = column("fused", guidance_scale=2.0)
    jax.eval_shape(sample, noise)
    assert taken == {expected}


@pytest.mark.parametrize(
    ("installed", "options", "expected"),
    [(True, {}, "sums"), (False, {}, None), (True, {"parallel_steps": 3}, None)],
)
def test_without_kernels_a_program_for_gpus_has_late_sums(installed, options, expected, monkeypatch):
    """Where none can be compiled, there is no branch for one; steps at once are products of many rows."""
    monkeypatch.setattr(gpu_kernels, "cuda_is_installed", lambda: installed)
    made, context, noise = prepared("plain", **options)
    assert fused_columns.flow_kind(made, len(context)) == expected
    text = str(jax.make_jaxpr(lambda noise: sampler.sample_column(made, jnp.asarray(context), noise, 2.0))(noise))
    assert ("platform_index" in text) is (expected is not None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blocks", "rows", "sums"])
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


@pytest.fixture
def gpus(monkeypatch):
    """Devices of the CPU that are taken for GPUs: kernels are emulated there, and right."""
    monkeypatch.setattr(gpu_kernels, "cuda_is_installed", lambda: True)
    monkeypatch.setattr(gpu_kernels, "_PLATFORMS", ("cpu",))
    return sharding.make_mesh(jax.devices("cpu")[:4], "data:2,fsdp:2")


def sampled(kernels, mesh=None, **options):
    """Returns latents of eight images of five columns, two of them given, and of two classes."""
    generator, params = model()
    labels = np.array([[0, 1], [2, 3], [1, 0], [3, 0], [2, 1], [0, 2], [1, 3], [0, 1]])  # Others on every device.
    return sample_latents(
        generator, params, labels, num_columns=5, class_columns=(3, None), transition=2,
        prefix=np.random.default_rng(1).normal(size=(8, 2, 16)).astype(np.float32), num_flow_steps=4,
        guidance_scale=2.0, mesh=mesh, gpu_kernels=kernels, **options,
    )  # fmt: skip


@pytest.mark.parametrize("rows", ["key", *(pytest.param(rows, marks=pytest.mark.slow) for rows in ("keys", "noise"))])
def test_a_mesh_gives_the_samples_of_one_device(rows, gpus):
    noise = np.random.default_rng(2).normal(size=(8, 5, 16)).astype(np.float32)
    key = jax.random.key(3)
    given = {"key": dict(key=key), "keys": dict(key=jax.random.split(key, 8)), "noise": dict(noise=noise)}[rows]
    alone, spread = sampled("plain", **given), sampled("fused", gpus, **given)
    assert len(spread.sharding.device_set) == 4
    assert np.abs(np.asarray(spread) - np.asarray(alone)).max() <= 1e-5
    assert np.abs(np.asarray(alone)[1:] - np.asarray(alone)[:1]).max() > 0.5


def test_the_devices_of_a_mesh_exchange_nothing_and_have_kernels_for_their_own_rows(gpus, monkeypatch):
    """Kernels are not taken here, as they are compared above: "auto" is asked for the rows of a device."""
    asked, texts = set(), []
    monkeypatch.setattr(gpu_kernels, "is_worthwhile", lambda kind, rows, _: asked.add((kind, rows)) or False)
    sample_chunk = chunks.sample_chunk

    def compiled(*given):
        program = sample_chunk.lower(*given).compile()
        texts.append(program.as_text())
        return program(*given)

    monkeypatch.setattr(chunks, "sample_chunk", compiled)
    sampled("auto", gpus, key=jax.random.key(0))
    assert asked == {("blocks", 4), ("layers", 4)}  # Two images and the null class.
    (text,) = texts
    assert "while(" in text and not re.search(r"\b(all-|collective-|reduce-scatter)", text)


def test_arrays_split_over_a_mesh_have_the_shapes_of_those_on_one_device(gpus):
    """Of an axis that is not named as one of rows, there would be a device's part."""
    generator, params = model()
    options, blend = SamplingOptions(guidance_scale=2.0), Blend(np.int32(0), np.float32(0))

    def shapes(mesh):
        given = sampler.SamplerInputs.create(generator, params, np.zeros((8, 2), np.int32), options, mesh)
        made, state = jax.eval_shape(functools.partial(chunks.begin, num_columns=16), given, blend)
        return [leaf.shape for leaf in jax.tree.leaves((made, state))]

    assert shapes(gpus) == shapes(None)


def test_the_rows_of_any_mesh_are_split_and_kernels_are_for_gpus(gpus, monkeypatch):
    generator, params = model()
    create = functools.partial(sampler.SamplerInputs.create, generator, params, np.zeros((4, 1), np.int32))
    auto, fused = SamplingOptions(), SamplingOptions(gpu_kernels="fused")
    assert create(auto, gpus).shortcuts.gpu_kernels == "auto" and create(fused, gpus).mesh is gpus
    assert create(auto).mesh is None and create(auto, sharding.make_mesh(jax.devices("cpu")[:1])).mesh is None
    monkeypatch.setattr(gpu_kernels, "_PLATFORMS", ("gpu",))
    assert create(auto, gpus).mesh is gpus and create(auto, gpus).shortcuts.gpu_kernels == "plain"
    with pytest.raises(ValueError, match="needs an NVIDIA GPU, and this computation runs on a cpu"):
        create(fused, gpus)


def test_rows_on_several_devices_without_a_mesh_have_the_plain_path(gpus):
    generator, params = model()
    spread = jax.device_put(np.zeros((4, 1), np.int32), sharding.replicated(gpus))
    assert sampler.SamplerInputs.create(generator, params, spread, SamplingOptions()).shortcuts.gpu_kernels == "plain"
    with pytest.raises(ValueError, match="needs one device or a mesh, and this computation may have 4"):
        sampler.SamplerInputs.create(generator, params, spread, SamplingOptions(gpu_kernels="fused"))
