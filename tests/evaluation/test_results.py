"""Files of results: rows that stay, are replaced, or differ in kind."""

import pytest

from eqjax.evaluation import results


def row(fid=None, **protocol) -> results.Result:
    return {"metrics": {} if fid is None else {"fid": fid}, "protocol": {"weights": "a", "jax": "1", **protocol}}


def test_rows_of_earlier_calls_stay_unless_their_protocol_is_evaluated_again(tmp_path):
    results.save(tmp_path, [row(9.0, guidance_scale=1.0), row(8.0, guidance_scale=2.0), row(guidance_scale=5.0)])
    text = results.save(tmp_path, [row(7.0, guidance_scale=4.0), row(8.5, guidance_scale=2.0, jax="2")])
    rows = results.load(tmp_path)
    assert [(r["protocol"]["guidance_scale"], r["metrics"]["fid"]) for r in rows] == [
        (1.0, 9.0),
        (4.0, 7.0),
        (2.0, 8.5),
    ]
    assert text == (tmp_path / "table.md").read_text() and "1   | 4.0            | 7.0000 |" in text
    results.save(tmp_path, [row(float("inf"), guidance_scale=4.0)])
    assert results.load(tmp_path)[-1]["metrics"] == {"fid": None}
    assert "| 1   | 4.0            | –      |" in (tmp_path / "table.md").read_text()


def test_rows_with_different_entries_in_their_protocols_share_a_table(tmp_path):
    results.save(tmp_path, [row(1.0, source="x")])
    text = results.save(tmp_path, [row(2.0, guidance_scale=2.0, max_position=None)])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:4]]
    assert cells == [["x", "", "1.0000"], ["", "2.0", "2.0000"]] and "None" not in text


def test_a_file_of_another_content_is_rejected(tmp_path):
    (tmp_path / "results.json").write_text('{"model": []}')
    with pytest.raises(ValueError, match="results.json was not written by `eqjax evaluate`"):
        results.save(tmp_path, [row(1.0)])


def test_names_of_files_that_are_no_utf8_are_kept(tmp_path):
    row: results.Result = {"metrics": {"fid": 1.0}, "protocol": {"source": "cl\udcffss"}}
    results.save(tmp_path, [row])
    assert results.load(tmp_path) == [row] and "cl\\udcffss" in (tmp_path / "table.md").read_text()
