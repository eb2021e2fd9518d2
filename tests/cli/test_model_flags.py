"""Flags of the model: the values that the library knows, and the model that they load."""

from absl import flags
import jax
import jax.numpy as jnp
import pytest

from eqjax import model, pretrained
from eqjax.cli import command_line, model_flags
from eqjax.cli.main import COMMANDS
from tests.random_params import random_params
from tests.sampling.small_models import local_model


def test_choices_are_those_of_the_library():
    assert tuple(model_flags.DTYPES) == model.COMPUTE_DTYPES


@pytest.mark.parametrize("command", ["sample", "evaluate", "demo"])
def test_commands_load_the_model_of_the_flags(command):
    args, _ = command_line.parse(COMMANDS[command], ["--dtype=bfloat16", "--precision=tf32"])
    loaded = model_flags.load_model(args)
    assert loaded.precision == "tf32" and loaded.require("generator").dtype == jnp.bfloat16
    default = model_flags.load_model(command_line.parse(COMMANDS[command], [])[0])
    assert default.precision == "highest" and default.require("generator").dtype == "float32"
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(default))


def test_other_values_are_refused():
    with pytest.raises(flags.Error, match="precision"):
        command_line.parse(COMMANDS["sample"], ["--precision=half"])


@pytest.mark.parametrize("held", ["tokenizer", "generator"])
def test_weights_without_a_part_that_the_command_needs_are_refused(held, tmp_path):
    path, module = tmp_path / "half.safetensors", getattr(local_model(), held)
    pretrained.save(path, pretrained.Weights({held: module}, {held: random_params(module)}))
    args, _ = command_line.parse(COMMANDS["sample"], [f"--weights={path}"])
    missing = {"tokenizer": "generator", "generator": "tokenizer"}[held]
    with pytest.raises(ValueError, match=f"^--weights={path} holds no {missing}, .*weights={path},{missing.upper()}.$"):
        model_flags.load_model(args)
    assert getattr(model_flags.load_model(args, [held]), missing) is None
