"""Every option of sampling, against sampling that recomputes everything and against its definition."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import flow, sample_latents, sharding
from eqjax.sampling import sampler
from tests.golden_cases import relative_error
from tests.sampling import uncached_sampler
from tests.sampling.small_models import local_model

L, SHAPE = 9, (2, 9, 4)
LABELS = np.array([[0, 2], [1, 3]])
# Three columns of the first class, two blended columns, then the second class.
FIRST_CLASS_WEIGHTS = np.array([1, 1, 1, 2 / 3, 1 / 3, 0, 0, 0, 0])


def heun(velocity, z, points):
    for t, s in itertools.pairwise(points):
        first = velocity(z, t)
        z = z + (s - t) * (first + velocity(z + (s - t) * first, s)) / 2
    return z


def adams_bashforth(velocity, z, points):
    before = None
    for n, (t, s) in enumerate(itertools.pairwise(points)):
        v = velocity(z, t)
        ratio = (s - t) / (t - points[n - 1]) if n else 0
        z = z + (s - t) * ((1 + ratio / 2) * v - ratio / 2 * (0 if before is None else before))
        before = v
    return z


@pytest.mark.parametrize(
    ("solver", "grid", "given", "solve", "fields"),
    [("heun", "cosine", 0, heun, {}), ("adams_bashforth", "shifted", 4, adams_bashforth, dict(cross_rope=False))],
)
def test_all_options_equal_recomputing(solver, grid, given, solve, fields, monkeypatch):
    """A class schedule, guidance per column, bounded positions, a solver and a grid, modulations in chunks."""
    monkeypatch.setattr(sampler, "MODULATION_BYTES", 4 * 5 * 8 * 4 * 2)  # Two evaluations at once.
    m = local_model(**fields)
    noise, prefix = (np.asarray(jax.random.normal(jax.random.key(i), SHAPE)) for i in (0, 1))
    prefix = prefix[:, :given]
    scales = np.linspace(0.5, 4, L)
    out = sample_latents(
        m.require("generator"), m.generator_params, LABELS, num_columns=L, guidance_scale=scales, num_flow_steps=3,
        solver=solver, time_grid=grid, temperature=0.8, class_columns=(3, None), transition=2, max_position=2,
        noise=noise, prefix=prefix,
    )  # fmt: skip
    points = flow.time_points(3, grid)
    for row in range(2):
        expected = uncached_sampler.sample(
            m.require("generator"), m.generator_params, LABELS[row],
            np.stack([FIRST_CLASS_WEIGHTS, 1 - FIRST_CLASS_WEIGHTS], 1), 0.8 * noise[row], scales,
            lambda velocity, z: solve(velocity, z, points), prefix[row], max_position=2,
        )  # fmt: skip
        assert relative_error(out[row], expected) < 1e-5


def sample(labels: Any = (0, 2, 1), **options: Any) -> np.ndarray:
    m = local_model()
    options = {"num_columns": 6, "num_flow_steps": 2, "guidance_scale": 2.0, **options}
    return np.asarray(sample_latents(m.require("generator"), m.generator_params, np.array(labels), **options))


def keys(*seeds):
    return jax.vmap(jax.random.key)(np.array(seeds))


def test_a_row_depends_on_its_own_seed_and_not_on_its_place():
    together = sample((0, 2, 1), key=keys(5, 6, 7))
    again = sample((0, 2, 1), key=keys(5, 6, 7))
    assert (together == again).all()
    moved = sample((1, 0, 2), key=keys(7, 5, 6))
    assert relative_error(moved[[1, 2, 0]], together) < 1e-5
    assert np.abs(sample((0, 2, 1), key=keys(5, 6, 8))[2] - together[2]).max() > 1e-2


def test_columns_before_a_change_of_class_do_not_change():
    one = sample((0, 2, 1), key=keys(5, 6, 7))
    same = sample([[0, 0], [2, 2], [1, 1]], class_columns=(3, 3), transition=2, key=keys(5, 6, 7))
    assert relative_error(same, one) < 1e-5
    other = sample([[0, 1], [2, 1], [1, 0]], class_columns=(3, None), key=keys(5, 6, 7))
    assert relative_error(other[:, :3], one[:, :3]) < 1e-5
    assert (np.abs(other - one)[:, 3:].max(-1) > 1e-4).all()


def test_max_position_changes_far_columns_only():
    free, far = sample(key=keys(5, 6, 7)), sample(key=keys(5, 6, 7), max_position=3)
    np.testing.assert_allclose(far[:, :5], free[:, :5], atol=2e-6)  # Column 5 is the first that sees position 4.
    assert np.abs(far - free)[:, 5].max() > 1e-4


def test_temperature_scales_the_noise():
    scaled = sample(key=keys(5, 6, 7), temperature=0.5, max_position=4)
    given = sample(noise=0.5 * np.stack([sample_noise(s) for s in (5, 6, 7)]), max_position=4)
    assert relative_error(scaled, given) < 1e-5  # Keys and noise have programs of their own, which round in other ways.


def sample_noise(seed):
    return np.stack([sampler.column_noise(keys(seed), k, (1, 4))[0] for k in range(6)])


def test_same_samples_on_one_and_four_devices():
    labels, key = (0, 1, 2, 0), keys(1, 2, 3, 4)
    alone = sample(labels, key=key)
    assert len(jax.devices()) == 4
    spread = sample(labels, key=key, mesh=sharding.make_mesh())
    np.testing.assert_allclose(spread, alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="batch of 3 does not divide among 4 .* give a multiple of 4 labels"):
        sample((0, 1, 2), key=keys(1, 2, 3), mesh=sharding.make_mesh())


def test_same_images_on_one_and_four_devices():
    options: dict[str, Any] = dict(
        num_columns=6, seeds=[1, 2, 3, 4], num_flow_steps=2, guidance_scale=2.0, guidance_schedule="linear"
    )
    alone = np.asarray(local_model().sample([0, "dog", 2, 0], **options)).astype(int)
    spread = local_model().sample([0, "dog", 2, 0], mesh=sharding.make_mesh(), **options)
    assert len(spread.sharding.device_set) == 4
    difference = np.abs(np.asarray(spread).astype(int) - alone)
    assert difference.max() <= 1 and difference.mean() < 1e-2  # Rounding of values next to a half.


def test_compute_params_keep_float32_where_modules_compute_in_it():
    generator = local_model().require("generator").clone(dtype=jnp.bfloat16)
    cast = sampler.compute_params(generator, local_model().generator_params)
    kinds = {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(cast)}
    kept = {name for name, dtype in kinds.items() if dtype == jnp.float32}
    assert all("norm" in name or "embedding" in name or "cond_positions" in name for name in kept) and kept
    latents, labels = jnp.ones((1, 3, 4)), jnp.array([1])
    apply = lambda params: generator.apply({"params": params}, latents, labels)  # noqa: E731
    np.testing.assert_array_equal(apply(cast), apply(local_model().generator_params))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(solver="rk4"), "solver='rk4' must be one of"),
        (dict(time_grid="log"), "time_grid='log' must be one of"),
        (dict(num_flow_steps=0), "num_flow_steps=0 must be an integer ≥ 1"),
        (dict(num_flow_steps=-2), "num_flow_steps=-2 must be an integer ≥ 1"),
        (dict(guidance_scale=np.ones(5)), r"guidance_scale has shape \(5,\); expected a number, or \[6\]"),
        (dict(guidance_scale=np.array([1, 1, -1, 1, 1, 1])), r"guidance_scale\[2\]=.*-1.* must be a finite number ≥ 0"),
        (dict(max_position=-1), "max_position=-1 must be an integer ≥ 0"),
        (dict(key=keys(1, 2)), r"key has shape \(2,\); expected one key, or one per row, \[3\]"),
        (dict(class_columns=(3, 3)), "for each of the 1 classes"),
        (dict(labels=[[0, 1]] * 3), "class_columns=None must give a number of columns for each of the 2 classes"),
        (dict(labels=[[0, 1]] * 3, class_columns=(3, 2)), "covers columns 0 … 4, and the image has 6 columns"),
        (dict(labels=[[0, 1]] * 3, class_columns=(None, 3)), "only the last may be open"),
        (dict(labels=[[0, 1]] * 3, class_columns=(0, 6)), "needs at least 1"),
        (dict(labels=[[0, 9]] * 3, class_columns=(3, 3)), r"labels \[9\] are outside 0 … 3"),
        (dict(labels=[[0, 1]] * 3, class_columns=(3, 3), transition=4), "at most the 3 columns"),
        (dict(labels=[[0, 1]] * 3, class_columns=(3, 3), transition=-1), "transition=-1 must be an integer ≥ 0"),
    ],
)
def test_a_bad_option_is_refused_by_name(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sample(**{"key": jax.random.key(0), **change})


def test_the_same_seed_gives_the_same_latents_when_jax_computes_with_64_bits():
    model = local_model()

    def sample():
        options: dict[str, Any] = dict(
            guidance_scale=2.0, guidance_schedule="linear", num_flow_steps=2, temperature=0.9, num_columns=3
        )
        return sample_latents(model.generator, model.generator_params, [0, 1], key=jax.random.key(0), **options)

    expected = sample()
    with jax.numpy_dtype_promotion("standard"):
        jax.config.update("jax_enable_x64", True)  # A context would have another name in every supported version.
        try:
            found = sample()
        finally:
            jax.config.update("jax_enable_x64", False)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
