"""The console script: its commands, their help, and messages about wrong command lines."""

import io
import subprocess
import sys

import pytest

import eqjax
from eqjax.cli import command_line
from eqjax.cli.main import COMMANDS, main


def test_help_lists_every_command(capsys):
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)
    assert all(len(line) <= 100 for line in lines)
    main([])
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_help_of_a_command_fits_a_screen(command):
    lines = command_line.help_text(command).splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 120
    assert lines[0].startswith(f"usage: eqjax {command.name} ")
    assert lines[2] == (command.load().__doc__ or "").splitlines()[0]
    assert any(line.startswith(f"    eqjax {command.name} ") or line == f"    eqjax {command.name}" for line in lines)
    assert "Flags:" not in lines  # Every flag is in a group.


def test_help_and_wrong_flags_do_not_wait_for_jax():
    code = f"""
import sys
from eqjax.cli.main import main
for name in {list(COMMANDS)}:
    main([name, "--help"])
    try:
        main([name, "--no_such_flag=1"])
    except SystemExit as error:
        assert error.code == 1, name
    assert "jax" not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"{eqjax.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smaple"], "eqjax: unknown command 'smaple'; the nearest is 'sample'. See: eqjax --help"),
        (["train_tokenizer"], "unknown command 'train_tokenizer'; the nearest is 'train-tokenizer'"),
        (["sample", "--num_column=3"], "eqjax sample: unknown flag --num_column; the nearest is --num_columns."),
        (["sample", "--num_columns=x"], "flag --num_columns=x: expected an integer\nSee: "),
        (["evaluate", "reconstruction", "--data.heigth=8"], "has no such field; the nearest is --data.height.\n"),
        (["sample", "--temperature=x"], "flag --temperature=x: expected a number\n"),
        *[
            (
                [*words, f"--output={__file__}"],
                f"flag --output={__file__}: this is a file; give a folder, or a new name.",
            )
            for words in (["demo"], ["evaluate", "generation"], ["analyze", "columns"], ["measure-quality"])
        ],
        (["sample", "--num_columns=0"], "flag --num_columns=0: 0 is not a positive integer"),
        (["sample", "flower"], "unknown arguments flower; flags are given as --name=value"),
        (["convert", "--input=a"], "eqjax convert: --output is missing.\nSee: eqjax convert --help"),
        (["train-tokenizer", "--workdir=a"], "eqjax train-tokenizer: --config is missing."),
        (["train-tokenizer", "--config=photo_tokenizer", "--workdir=a"], "--config=photo_tokenizer: there is no file"),
    ],
)
def test_a_wrong_command_line_ends_with_one_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_python_m_is_the_same():
    done = subprocess.run([sys.executable, "-m", "eqjax", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{eqjax.__version__}\n"


def test_a_reader_that_leaves_early_sees_no_trace():
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "eqjax", "plan", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 1 and error == ""


def test_help_is_printed_where_the_terminal_has_no_such_characters(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    main(["sample", "--help"])
    assert b"usage: eqjax sample [--flag=value \\u2026]" in written.getvalue()
