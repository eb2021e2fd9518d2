"""`SamplingOptions`: defaults, conversion to Python values and JSON, and errors."""

import ast
import copy
import dataclasses
import inspect
import json
import pickle
import re
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import Model, flow, outpaint, panorama, sample_latents
from eqjax.sampling.options import SamplingKeywords, SamplingOptions
from eqjax.sampling.panorama_options import PanoramaOptions
from tests.sampling.small_models import local_model


def test_defaults_are_those_of_the_paper():
    assert SamplingOptions().to_dict() == {
        "guidance_scale": 1.0,
        "guidance_schedule": "linear",
        "num_flow_steps": 100,
        "solver": "euler",
        "time_grid": "uniform",
        "temperature": 1.0,
        "max_position": None,
        "modulation_times": None,
        "parallel_steps": None,
        "parallel_tolerance": 1e-4,
        "gpu_kernels": "auto",
    }


def test_keywords_have_the_names_of_the_options():
    names = [field.name for field in dataclasses.fields(SamplingOptions)]
    assert list(SamplingKeywords.__annotations__) == names


def test_arrays_and_numpy_numbers_become_python_values():
    arrays: dict[str, Any] = {
        "guidance_scale": np.array([1, 2.5], np.float32),
        "num_flow_steps": np.int64(2),
        "time_grid": np.array([1, 0.25, 0]),
        "temperature": jnp.float32(0.5),
        "max_position": np.int32(7),
    }
    options = SamplingOptions(**arrays)
    plain = SamplingOptions(
        guidance_scale=[1.0, 2.5], num_flow_steps=2, time_grid=(1.0, 0.25, 0.0), temperature=0.5, max_position=7
    )
    assert options == plain and hash(options) == hash(plain)
    assert options.guidance_scale == (1.0, 2.5) and type(options.num_flow_steps) is int
    assert SamplingOptions(guidance_scale=3).guidance_scale == 3.0


def test_json_values_give_the_options_back():
    options = SamplingOptions(guidance_scale=[1, 2], num_flow_steps=2, time_grid=[1, 0.5, 0], max_position=3)
    assert SamplingOptions(**json.loads(json.dumps(options.to_dict()))) == options


def test_options_can_be_traced():
    @jax.jit
    def scales(scale, temperature, position):
        options = SamplingOptions(guidance_scale=scale, temperature=temperature, max_position=position)
        assert options.is_guided
        assert options.temperature is temperature and options.max_position is position
        return options.guidance_scales(2)

    np.testing.assert_allclose(scales(3.0, 0.5, 1), [2, 3])


@pytest.mark.parametrize(
    ("scale", "guided"), [(1, False), (2.0, True), (0, True), ([1, 1], False), ([1, 2], True), (np.ones(3), False)]
)
def test_guidance_is_needed_unless_every_scale_is_one(scale, guided):
    assert SamplingOptions(guidance_scale=scale).is_guided is guided


def test_scales_and_solver_are_those_of_flow():
    options = SamplingOptions(guidance_scale=3, guidance_schedule="constant", num_flow_steps=4, solver="heun")
    np.testing.assert_array_equal(options.guidance_scales(5), flow.guidance_scales(3, "constant", 5))
    for have, want in zip(options.solver_table(), flow.solver_table("heun", 4, "uniform"), strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_scale": -1}, "guidance_scale=-1 must be a finite number ≥ 0"),
        ({"guidance_scale": [1, -1]}, r"guidance_scale\[1\]=-1 must be a finite number ≥ 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan must be a finite number"),
        (
            {"guidance_scale": np.ones((2, 2))},
            r"guidance_scale=<float64 array of shape \(2, 2\)> must be a finite",
        ),
        ({"guidance_schedule": "cosine"}, "guidance_schedule='cosine' must be one of"),
        ({"num_flow_steps": 0}, "num_flow_steps=0 must be an integer ≥ 1"),
        ({"num_flow_steps": 2.5}, "num_flow_steps=2.5 must be an integer"),
        ({"solver": "rk4"}, "solver='rk4' must be one of"),
        ({"time_grid": "log"}, "time_grid='log' must be one of"),
        ({"time_grid": [1, 0]}, r"must have 101 times \(num_flow_steps \+ 1\) that fall from 1 to 0"),
        ({"temperature": -0.5}, "temperature=-0.5 must be a finite number ≥ 0"),
        ({"max_position": -1}, "max_position=-1 must be an integer ≥ 0"),
        ({"max_position": 1.5}, "max_position=1.5 must be an integer"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(change: dict[str, Any], message):
    with pytest.raises((TypeError, ValueError), match=message):
        SamplingOptions(**change)


def test_an_unknown_option_is_refused():
    unknown: dict[str, Any] = {"guidence_scale": 2.0}
    message = r"unknown sampling option 'guidence_scale'; did you mean 'guidance_scale'\? Known: guidance_scale,"
    with pytest.raises(TypeError, match=message):
        SamplingOptions(**unknown)
    far: dict[str, Any] = {"foo": 2.0}
    with pytest.raises(TypeError, match=r"unknown sampling option 'foo'\. Known: "):
        SamplingOptions(**far)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (Model.sample, {"labels": 0, "num_columns": 2, "key": 1}),
        (Model.sample, {"labels": 0, "num_columns": 2, "columns": 1}),
        (panorama, {"labels": 0, "noise": 1}),
        (outpaint, {"image": np.zeros((16, 16, 3), np.uint8), "label": 0, "right": 1, "num_columns": 2}),
    ],
)
def test_functions_refuse_unknown_arguments_by_name(function, arguments):
    with pytest.raises(TypeError, match=f"unknown sampling option {list(arguments)[-1]!r}"):
        function(local_model(), **arguments)


def test_options_can_be_copied():
    options = SamplingOptions(guidance_scale=2.0)
    assert copy.deepcopy(options) == options == pickle.loads(pickle.dumps(options))
    assert dataclasses.replace(options, solver="heun").to_dict() == {**options.to_dict(), "solver": "heun"}


@pytest.mark.parametrize("function", [sample_latents, Model.sample, panorama, outpaint])
def test_functions_take_the_options_and_their_defaults_from_one_place(function):
    """They name no option of their own, and hand all others to `SamplingOptions`, which has the defaults."""
    parameters = inspect.signature(function).parameters
    assert not set(parameters) & set(SamplingKeywords.__annotations__)
    last = list(parameters.values())[-1]
    assert last.kind is inspect.Parameter.VAR_KEYWORD and last.annotation == Unpack[SamplingKeywords]
    stated = re.findall(r"(\w+) \((\"?[\w.]+\"?)[^)]*\)", function.__doc__[function.__doc__.index("**options") :])
    assert {name: ast.literal_eval(value) for name, value in stated if name in SamplingKeywords.__annotations__} == (
        SamplingOptions().to_dict()
    )


def test_samples_without_options_are_those_of_the_defaults():
    m, key = local_model(), jax.random.key(3)
    arguments = m.require("generator"), m.generator_params, [0, 2]
    defaults: Any = SamplingOptions().to_dict()
    latents = sample_latents(*arguments, num_columns=3, key=key)
    np.testing.assert_array_equal(latents, sample_latents(*arguments, num_columns=3, key=key, **defaults))
    np.testing.assert_array_equal(m.sample([0, 2], num_columns=3, seed=3), m.decode(latents))
    strips = panorama(m, 0, seed=3, num_columns=3)
    assert strips.options == PanoramaOptions(labels=(0,), seed=3, num_columns=3, **defaults)
