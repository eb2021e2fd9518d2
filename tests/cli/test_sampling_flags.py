"""Flags of the sampling options: their defaults, and the options that they give."""

import dataclasses
from typing import Any

from absl import flags
import pytest

from eqjax.cli import sampling_flags
from eqjax.sampling.options import SamplingOptions


def parse(*arguments, **defaults):
    values = flags.FlagValues()
    sampling_flags.define_sampling_flags(values, **defaults)
    values(["command", *arguments])
    return values


def test_defaults_are_those_of_the_options():
    assert {field.name: field.default for field in dataclasses.fields(SamplingOptions)} == sampling_flags.DEFAULTS
    assert sampling_flags.sampling_options(parse()) == SamplingOptions()


def test_every_flag_reaches_the_options():
    given: dict[str, Any] = dict(guidance_scale=2.5, guidance_schedule="constant", num_flow_steps=7, solver="heun")
    given |= dict(time_grid="cosine", temperature=0.5, max_position=9)
    given |= dict(modulation_times=4, parallel_steps=3, parallel_tolerance=0.01, gpu_kernels="plain")
    assert given.keys() == sampling_flags.DEFAULTS.keys()
    args = parse(*(f"--{name}={value}" for name, value in given.items()))
    assert sampling_flags.sampling_options(args) == SamplingOptions(**given)


def test_a_command_may_have_its_own_defaults_and_replace_flags():
    args = parse("--num_flow_steps=3", guidance_scale=7.0, num_flow_steps=25)
    assert sampling_flags.sampling_options(args) == SamplingOptions(guidance_scale=7.0, num_flow_steps=3)
    assert sampling_flags.sampling_options(args, guidance_scale=1.5).guidance_scale == 1.5


def test_several_scales_are_one_per_column():
    args = parse("--guidance_scale=1,2.5,3")
    assert sampling_flags.guidance_scales(args) == [1.0, 2.5, 3.0]
    assert sampling_flags.sampling_options(args).guidance_scale == (1.0, 2.5, 3.0)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--guidance_scale=x", "--guidance_scale=x: each must be a number"),
        ("--guidance_scale=", "--guidance_scale is empty; give a number"),
        ("--guidance_scale=-1", "guidance_scale=-1.0 must be"),
        ("--solver=eular", "solver='eular' must be one of .*euler"),
        ("--time_grid=cosin", "time_grid='cosin' must be one of .*cosine"),
        ("--guidance_schedule=lin", "guidance_schedule='lin' must be one of .*linear"),
        ("--num_flow_steps=0", "num_flow_steps=0 must be"),
    ],
)
def test_wrong_values_are_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        sampling_flags.sampling_options(parse(argument))
