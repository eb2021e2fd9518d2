"""--print_config: all fields of a configuration with their meaning, as a file that makes it again."""

import subprocess
import sys

import pytest

from eqjax import config_files
from eqjax.cli import command_line
from eqjax.cli.main import COMMANDS, main
from eqjax.config_fields import flatten
from eqjax.training.config import TABLES

VARIANTS = [
    *((name, "") for name in config_files.names() if name != "comparison"),  # Which is no trainer's.
    ("photos_tokenizer", ":stage2"),
    ("photos_generator", ":tiny"),
    ("imagenet_generator", ":size=S"),
]


def printed(capsys, trainer, *arguments):
    main([f"train-{trainer}", *arguments, "--print_config"])
    return capsys.readouterr().out


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_the_printed_file_makes_the_configuration_again(name, variant, tmp_path, capsys):
    config = config_files.load(name + variant)
    text = printed(capsys, config.trainer, f"--config={name}{variant}")
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    assert config_files.load(str(tmp_path / "mine.py")).to_dict() == config.to_dict()
    again = printed(capsys, config.trainer, f"--config={tmp_path}/mine.py")
    assert again[again.index("\nBelow") :] == text[text.index("\nBelow") :]


def test_every_field_has_its_value_its_meaning_its_range_and_its_default_if_changed(capsys):
    arguments = ["--config=photos_generator:tiny", "--config.batch_size=24", "--config.optimizer.schedule=step"]
    text = printed(capsys, "generator", *arguments)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "    config.batch_size = 24  # default: 256" in lines and "    config.seed = 0" in lines
    assert "    config.optimizer.schedule = 'step'  # default: 'constant'" in lines
    flat = " ".join(line.removeprefix("    #   ") for line in lines)
    for name, field in flatten(TABLES["generator"]).items():
        assert f"config.{name} = " in text, name
        assert field.meaning in flat and field.rule.words[1:] in flat, name


def test_wrong_values_are_printed_with_a_warning(capsys):
    main(["train-generator", "--config=photos_generator", "--config.batch_size=0", "--print_config"])
    out, err = capsys.readouterr()
    assert "    config.batch_size = 0  # default: 256" in out.splitlines()
    assert "cannot be trained as it is: batch_size=0 must be an integer ≥ 1" in err


def test_other_configurations_are_refused(capsys):
    for arguments, message in (
        (["--config=photos_tokenizer"], "this is a tokenizer's configuration"),
        (["--config=photos_generator:huge"], "unknown variant 'huge'"),
    ):
        with pytest.raises(SystemExit) as error:
            main(["train-generator", *arguments, "--print_config"])
        assert error.value.code == 1
        assert message in capsys.readouterr().err


def test_a_workdir_is_needed_to_train_alone(capsys):
    with pytest.raises(SystemExit):
        main(["train-tokenizer", "--config=photos_tokenizer"])
    assert capsys.readouterr().err.splitlines()[0] == "eqjax train-tokenizer: --workdir is missing."
    args, _ = command_line.parse(COMMANDS["train-tokenizer"], ["--config=photos_tokenizer", "--workdir=runs/a"])
    assert args.workdir == "runs/a" and not args.print_config


def test_printing_does_not_wait_for_jax():
    code = """
import sys
from eqjax.cli.main import main
main(["train-generator", "--config=imagenet_generator:size=L", "--config.batch_size=64", "--print_config"])
assert "jax" not in sys.modules and "grain" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
