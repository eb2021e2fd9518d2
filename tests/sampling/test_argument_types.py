"""Arguments of another type end in one sentence that names them, in every public function of sampling."""

from typing import Any

import jax
import numpy as np
import pytest

from eqjax import outpaint, panorama, sample_latents
from tests.sampling.small_models import local_model


def sample(**options):
    arguments: dict[str, Any] = {"labels": 0, "num_columns": 2, **options}
    return local_model().sample(**arguments)


def latents(**options):
    m = local_model()
    given = {"generator": m.require("generator"), "params": m.generator_params, "labels": [0], "num_columns": 2}
    arguments: dict[str, Any] = {**given, "key": jax.random.key(0), **options}
    return sample_latents(**arguments)


def strips(**options):
    arguments: dict[str, Any] = {"model": local_model(), "labels": 0, **options}
    return panorama(**arguments)


def continued(**options):
    image = np.zeros((16, 8, 3), np.uint8)
    arguments: dict[str, Any] = {"model": local_model(), "image": image, "label": 0, "right": 1, **options}
    return outpaint(**arguments)


ALL = (sample, latents, strips, continued)
# Functions, the argument, values of another type.
CASES: list[tuple[Any, str, list[Any]]] = [
    ((sample, latents), "num_columns", [None, "8", 3.5, True, [4], np.ones(2, int)]),
    ((strips,), "num_columns", ["8", 3.5, True]),
    ((continued,), "right", [None, "8", 3.5, True]),
    ((strips,), "strip_columns", [None, 2.5, "4"]),
    ((sample, strips, continued), "seed", [0.5, "1", None, [1]]),
    ((sample, strips, continued), "seeds", [0.5, "12", [0.5], [[1, 2]], ["1"]]),
    (ALL, "transition", ["1", 0.5, True]),
    (ALL, "temperature", ["1", None, [1.0], True]),
    (ALL, "guidance_scale", ["2", None, [["2"]], True]),
    (ALL, "num_flow_steps", [None, "5", 2.5]),
    (ALL, "max_position", ["5", 2.5, True]),
    (ALL, "modulation_times", ["5", 2.5, True]),
    (ALL, "parallel_steps", ["5", 2.5, True]),
    (ALL, "parallel_tolerance", ["5", None, True]),
    (ALL, "gpu_kernels", [None, 1]),
    ((latents,), "precision", [None, 1]),
    (ALL, "solver", [None, 3]),
    ((latents,), "labels", ["cat", None, [0.5], ["cat"], [[0.5]]]),
    ((latents,), "key", [0, "key", np.zeros(2, np.uint32)]),
    ((latents,), "prefix", ["prefix", 3, np.zeros((1, 1, 4), int)]),
    ((sample, strips), "prefix", ["prefix", 3, np.zeros((1, 1, 4), int)]),
    ((latents,), "class_columns", [3, "3", [2.5]]),
    ((sample, latents), "progress", [3, "bar"]),
    ((sample, latents), "mesh", ["data", 4]),
    ((latents,), "generator", [None, "photos"]),
    ((latents,), "params", [None, [1.0]]),
    ((strips, continued), "model", [None, "photos"]),
    ((continued,), "resize", ["yes", 1]),
]


@pytest.mark.parametrize(
    ("function", "name", "value"), [(f, name, value) for fs, name, values in CASES for f in fs for value in values]
)
def test_another_type_is_refused_by_name(function, name, value):
    with pytest.raises(TypeError, match=rf"^{name}(\[\d+\])*=.* must be "):
        function(**{name: value})


@pytest.mark.parametrize("function", [sample, strips, continued])
@pytest.mark.parametrize("name", ["seed", "seeds"])
@pytest.mark.parametrize("value", [2**32, 2**63, -(2**31) - 1])
def test_seeds_of_more_than_32_bits_are_refused(function, name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value} must be an integer ≥ -2147483648 and ≤ 4294967295"):
        function(**{name: value})


@pytest.mark.parametrize("function", [sample, strips, continued])
def test_no_seeds_are_refused(function):
    with pytest.raises(ValueError, match=r"^seeds=\[\] must be a sequence \(one or more"):
        function(seeds=[])


def test_seeds_at_the_ends_of_their_range_differ():
    images = [np.asarray(sample(seed=seed, num_flow_steps=1)) for seed in (0, 2**32 - 1, -(2**31))]
    assert (images[0] != images[1]).any() and (images[1] != images[2]).any()


def test_a_traced_number_of_columns_is_refused():
    with pytest.raises(TypeError, match="num_columns is traced by JAX, but it must be known"):
        jax.jit(lambda n: latents(num_columns=n))(3)


@pytest.mark.parametrize("name", ["progress", "mesh"])
def test_what_cannot_be_traced_is_refused_inside_jit(name):
    value = print if name == "progress" else jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    with pytest.raises(ValueError, match=f"{name} cannot be used inside a jitted function"):
        jax.jit(lambda key: latents(key=key, **{name: value}))(jax.random.key(0))


@pytest.mark.parametrize("function", [latents, strips])
def test_values_that_are_not_finite_are_refused(function):
    with pytest.raises(ValueError, match="prefix has values that are not finite"):
        function(prefix=np.full((1, 1, 4), np.nan, np.float32))
