"""The shell of the commands: fields of configurations by name, exit codes, messages."""

import jax.numpy as jnp
import pytest

from configs import photos_tokenizer
from eqjax import pretrained
from eqjax.checkpoints import UnreadableError
from eqjax.cli import command_line, runner
from eqjax.cli.main import COMMANDS, main
from eqjax.training.fault_tolerance import Preempted
from tests import subprocesses
from tests.random_params import random_params


def parse(config, *arguments):
    """The configuration that a command line gives."""
    command = COMMANDS["train-tokenizer"]
    args, _ = command_line.parse(command, [f"--config=configs/{config}", "--workdir=w", *arguments])
    return args.config


@pytest.mark.parametrize(
    ("config", "argument", "value"),
    [
        ("imagenet_tokenizer.py", "tokenizer.attention_window=1", 1),
        ("imagenet_tokenizer.py", "tokenizer.semantic=None", None),
        ("photos_generator.py", "generator.window_size=None", None),
        ("photos_generator.py", "generator.remat=projections", "projections"),
        ("photos_generator.py", "data.classes=ant,bee", ("ant,bee",)),
    ],
)
def test_fields_of_several_types_take_values_by_name(config, argument, value):
    part, name = argument.split("=")[0].split(".")
    parsed = parse(config, f"--config.{argument}")
    assert parsed[part][name] == value
    if part != "data":
        pretrained.build_module(part, dict(parsed[part]))


def test_unknown_fields_variants_and_files_are_named():
    with pytest.raises(
        ValueError, match="--config.optimizer.learning_rte: .* nearest is --config.optimizer.learning_ra"
    ):
        parse("photos_tokenizer.py", "--config.optimizer.learning_rte=3")
    with pytest.raises(ValueError, match="--config.optimiser.b1: .* nearest is --config.optimizer.b1"):
        parse("photos_tokenizer.py", "--config.optimiser.b1", "0.5")
    with pytest.raises(ValueError, match="unknown variant 'tinny'"):
        parse("photos_tokenizer.py:tinny")
    with pytest.raises(FileNotFoundError, match="there is no file configs/photos.py"):
        parse("photos.py:tiny")


def test_an_unknown_field_ends_the_command_in_one_message(tmp_path):
    workdir = tmp_path / "run"
    arguments = ("--config=configs/photos_tokenizer.py:tiny", f"--workdir={workdir}", "--config.nope=3")
    output = subprocesses.run("eqjax", "train-tokenizer", *arguments, code=1)
    assert "--config.nope: photos_tokenizer.py has no such field; the nearest is --config." in output
    assert "Traceback" not in output and not workdir.exists()


@pytest.mark.parametrize("command", [["sample", "--output"], ["analyze", "columns", "--output"]])
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(command, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main([*command[:-1], f"{command[-1]}={tmp_path / 'file' / 'a.png'}"])
    assert f"nothing can be written in {tmp_path / 'file'}: Not a directory" in capsys.readouterr().err


def test_the_demo_names_the_module_that_weights_lack(tmp_path):
    module = pretrained.build_module("tokenizer", dict(photos_tokenizer.get_config("tiny").tokenizer))
    path = tmp_path / "tokenizer.safetensors"
    pretrained.save(path, pretrained.Weights({"tokenizer": module}, {"tokenizer": random_params(module)}, 1.0))
    output = subprocesses.run("eqjax", "demo", f"--weights={path}", f"--output={tmp_path / 'out'}", code=1)
    assert f"--weights={path} holds no generator" in output
    assert "Traceback" not in output and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("what is wrong"), 1),
        (FileNotFoundError("what is wrong"), 1),
        (FloatingPointError("what is wrong"), 1),
        (ModuleNotFoundError("what is wrong"), 1),
        (UnreadableError("what is wrong"), 1),
        (Preempted("what is wrong"), runner.EXIT_PREEMPTED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_explained_errors_end_with_their_message_and_an_exit_code(error, code, caplog):
    def fail():
        raise error

    with pytest.raises(SystemExit) as ended, caplog.at_level("INFO", "absl"):
        runner.finish(fail, uses_jax=False)
    assert ended.value.code == code
    messages = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert [message.startswith("what is wrong") for message in messages] == [True]


def test_memory_that_is_exhausted_ends_a_command_with_one_sentence(caplog):
    with pytest.raises(SystemExit) as ended, caplog.at_level("INFO", "absl"):
        runner.finish(lambda: jnp.zeros(2**44), uses_jax=False, request="--batch_size=9")
    assert ended.value.code == 1
    (message,) = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert message.startswith("out of memory of the device with --batch_size=9 (64 TiB were asked for at once): lower")


def test_ctrl_c_ends_a_command_with_one_line(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    command = COMMANDS["fetch-weights"]
    monkeypatch.setattr(type(command), "load", interrupt)
    with pytest.raises(SystemExit) as ended:
        runner.run(command, [])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "eqjax fetch-weights: interrupted.\n"


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        runner.finish(lambda: 1 / 0, uses_jax=False)
