"""The command `eqjax check`: its table, its file, and its failure."""

import json

import pytest

from eqjax import recorded
from eqjax.cli import check, command_line, main


def run(monkeypatch, error, *arguments):
    def compare(precision):
        bound = 1e-5 if precision == "highest" else 1e-2
        return [recorded.Comparison(case, precision, error, bound) for case in ("first", "second")]

    monkeypatch.setattr(recorded, "compare", compare)
    args, _ = command_line.parse(main.COMMANDS["check"], arguments)
    check.run(args)


def test_all_precisions_are_columns_of_a_table_and_written(monkeypatch, capsys, tmp_path):
    output = tmp_path / "check.json"
    run(monkeypatch, 2e-6, f"--output={output}")
    printed = capsys.readouterr().out
    assert "| case   | highest | tf32    | bfloat16 |" in printed and printed.count("2.0e-06") == 6
    assert "FAR" not in printed
    written = json.loads(output.read_text())
    assert written["device"] == "cpu" and len(written["cases"]) == 6


def test_an_output_that_is_far_ends_the_command_after_the_table(monkeypatch, capsys):
    message = "2 of 4 outputs are not those recorded; the worst is first at precision highest, 1.0e-03"
    with pytest.raises(FloatingPointError, match=message):
        run(monkeypatch, 1e-3, "--precision=tf32,highest")
    printed = capsys.readouterr().out
    assert printed.count("1.0e-03 FAR") == 2 and printed.count("1.0e-03") == 4


def test_an_unknown_precision_is_refused_before_anything_runs(monkeypatch):
    with pytest.raises(ValueError, match="precision"):
        run(monkeypatch, 0.0, "--precision=highest,sharp")
