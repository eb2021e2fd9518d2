"""Sampling equals recorded samples and samples without a cache; what changes a sample and what does not; errors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import Generator, sample_latents
from eqjax.recorded.cases import outputs
from eqjax.sampling import sampler
from eqjax.sampling.class_schedule import Blend
from eqjax.sampling.options import SamplingOptions
from tests.golden_cases import generator_case, relative_error
from tests.random_params import random_params


@pytest.mark.parametrize("run", range(4))
def test_samples_equal_recorded_ones(run):
    ((_, sample, recorded),) = (found for found in outputs() if found[0] == f"generator_tiny/sample/{run}")
    assert relative_error(sample(), recorded) < 1e-5


def recompute_everything(generator, params, labels, noise, scales, num_flow_steps, prefix):
    """Samples without a cache: the whole sequence at every column, every modulation at every step."""
    variables = {"params": params}
    context = jax.jit(functools.partial(generator.apply, variables, method="context"))
    velocity = jax.jit(functools.partial(generator.apply, variables, method="velocity"))
    null = jnp.full_like(labels, generator.num_classes)
    latents = jnp.zeros_like(noise).at[:, : prefix.shape[1]].set(prefix)
    for k in range(prefix.shape[1], noise.shape[1]):
        rows = [context(latents, which)[:, k] for which in (labels, null)]
        z = noise[:, k]
        for i in range(num_flow_steps, 0, -1):
            time = jnp.full(z.shape[:1], i / num_flow_steps)
            conditional, unconditional = (velocity(z, time, row) for row in rows)
            z = z - (unconditional + scales[k] * (conditional - unconditional)) / num_flow_steps
        latents = latents.at[:, k].set(z)
    return latents


@pytest.mark.parametrize(("window", "guidance", "given"), [(3, 4.0, 0), (None, 4.0, 2), (1, 1.0, 0)])
def test_samples_with_a_cache_equal_recomputed_ones(window, guidance, given):
    generator, params, _ = generator_case(window_size=window)
    noise = jax.random.normal(jax.random.key(0), (2, 9, 16))
    prefix = jax.random.normal(jax.random.key(1), (2, given, 16))
    labels = jnp.array([1, 5])
    out = sample_latents(
        generator, params, labels, num_columns=9, guidance_scale=guidance, num_flow_steps=4, noise=noise, prefix=prefix
    )
    scales = 1 + (guidance - 1) * np.arange(1, 10) / 9
    assert relative_error(out, recompute_everything(generator, params, labels, noise, scales, 4, prefix)) < 1e-5


@pytest.fixture(scope="module")
def small():
    generator = Generator(
        width=16, depth=2, num_heads=2, latent_dim=4, num_classes=3, num_cond_tokens=2, window_size=2, flow_width=8,
        flow_depth=1,
    )  # fmt: skip
    params = random_params(generator)
    return generator, params, functools.partial(
        sample_latents, generator, params, jnp.array([0, 2]), num_columns=5, num_flow_steps=3
    )  # fmt: skip


def test_key_prefix_and_temperature_decide_a_sample(small):
    _, _, sample = small
    one, two = sample(key=jax.random.key(1)), sample(key=jax.random.key(2))
    assert (one == sample(key=jax.random.key(1))).all()
    assert (one != two).all()
    continued = sample(key=jax.random.key(1), prefix=one[:, :3])
    np.testing.assert_allclose(continued, one, atol=1e-6)  # A column's noise depends on key and column.
    whole = sample(key=jax.random.key(1), prefix=one)
    assert (whole == one).all()
    noise = jax.random.normal(jax.random.key(3), (2, 5, 4))
    np.testing.assert_allclose(sample(noise=noise, temperature=0.5), sample(noise=0.5 * noise), atol=1e-6)


def test_guidance_of_one_is_no_guidance(small):
    _, _, sample = small
    noise = jax.random.normal(jax.random.key(3), (2, 5, 4))
    plain = sample(noise=noise, guidance_scale=1.0)
    # A traced scale takes the path with two halves.
    both = jax.jit(lambda g: sample(noise=noise, guidance_scale=g, guidance_schedule="constant"))(1.0)
    np.testing.assert_allclose(both, plain, atol=1e-5)
    assert float(jnp.abs(sample(noise=noise, guidance_scale=3.0) - plain).max()) > 1e-3


def test_sampling_works_inside_a_jitted_function(small):
    generator, params, sample = small
    labels = jnp.array([0, 2])

    @jax.jit
    def sample_again(params, labels, key):
        return sample_latents(generator, params, labels, num_columns=5, num_flow_steps=3, key=key)

    np.testing.assert_allclose(
        sample_again(params, labels, jax.random.key(1)), sample(key=jax.random.key(1)), atol=1e-6
    )


def starting_state(generator, params, labels, num_columns):
    options = SamplingOptions(guidance_scale=2.0)
    made = sampler.make_sampler(sampler.SamplerInputs.create(generator, params, labels[:, None], options))
    return sampler.init_state(made, Blend(0, 0.0), num_columns)


def test_the_state_does_not_grow_with_the_number_of_columns(small):
    generator, params, _ = small
    labels = jnp.array([0, 2])
    sizes = []
    for columns in (8, 8000):
        state = jax.eval_shape(lambda c=columns: starting_state(generator, params, labels, c))
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(state)))
    assert sizes[0] == sizes[1]


def test_labels_on_four_devices_give_the_samples_of_one(small):
    generator, params, _ = small
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    labels = jnp.array([0, 1, 2, 0])
    kwargs: dict[str, Any] = dict(num_columns=5, num_flow_steps=3, key=jax.random.key(1))
    alone = sample_latents(generator, params, labels, **kwargs)
    spread = sample_latents(generator, params, jax.device_put(labels, sharding), **kwargs)
    np.testing.assert_allclose(spread, alone, rtol=1e-4, atol=1e-5)  # Sums of other lengths, in another order.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_columns=0), "num_columns=0 must be an integer ≥ 1"),
        (dict(num_flow_steps=0), "num_flow_steps=0 must be an integer ≥ 1"),
        (dict(guidance_scale=-1.0), "guidance_scale=-1.0 must be a finite number ≥ 0"),
        (dict(guidance_scale=float("nan")), "guidance_scale=nan must be a finite number ≥ 0"),
        (dict(guidance_schedule="cosine"), "guidance_schedule='cosine' must be one of"),
        (dict(temperature=-0.1), "temperature=-0.1 must be a finite number ≥ 0"),
        (dict(prefix=np.zeros((2, 6, 4))), "prefix has 6 columns, more than num_columns=5"),
        (dict(prefix=np.zeros((2, 2, 3))), r"prefix has shape \(2, 2, 3\); expected .* \[2, ≤ 5, 4\]"),
        (dict(noise=np.zeros((2, 5, 4))), "give either noise or key"),
        (dict(key=None), "give either noise or key"),
        (dict(key=None, noise=np.zeros((2, 4, 4))), r"noise has shape \(2, 4, 4\); expected .* \(2, 5, 4\)"),
        (dict(key=np.array([0, 1], np.uint32)), "key=<uint32 array .* must be a typed key"),
    ],
)
def test_a_bad_argument_is_refused_by_name(small, change, message):
    _, _, sample = small
    with pytest.raises((TypeError, ValueError), match=message):
        sample(**{"key": jax.random.key(0), **change})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 4], r"labels \[4\] are outside 0 … 3 .*3 is the null class"),
        ([-1, 0], r"labels \[-1\] are outside"),
        ([0.5], "labels=<float64 array .* must be an integer array"),
        ([[[0]]], r"shape \[batch\]"),
        (np.zeros(0, int), r"shape \[batch\]"),
    ],
)
def test_bad_labels_are_refused(small, labels, message):
    generator, params, _ = small
    with pytest.raises((TypeError, ValueError), match=message):
        sample_latents(generator, params, np.array(labels), num_columns=2, key=jax.random.key(0))
