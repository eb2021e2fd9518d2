"""The tables of a comparison."""

import pytest

from eqjax.evaluation import comparison_report


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_means_and_standard_errors_of_tokenizers_kinds_and_differences():
    plain = [{"psnr_held_out": 20.0, "held_out_ratio": 0.5}, {"psnr_held_out": 22.0, "held_out_ratio": 0.9}]
    other = [{"psnr_held_out": 24.0, "held_out_ratio": 0.6}, {"psnr_held_out": 24.0, "held_out_ratio": 1.0}]
    other = [{**one, "orbit_flip": 0.25} for one in other]
    text = comparison_report.make_tables({"plain, a": plain, "plain, b": plain, "other, a": other})
    tokenizers, kinds, differences = (rows(part) for part in text.split("\n\n")[:3])
    column = tokenizers[0].index("PSNR of held-out crops, dB")
    assert [(row[0], row[column]) for row in tokenizers[2:]] == [("plain", "21.00 ± 1.00"), ("other", "24.00 ± 0.00")]
    flip = tokenizers[0].index("flip: latents")
    assert [row[flip] for row in tokenizers[2:]] == ["–", "0.250 ± 0.000"]
    column = kinds[0].index("held-out loss / proxy")
    assert [row[column] for row in kinds[2:]] == ["0.700 ± 0.200", "0.700 ± 0.200", "0.800 ± 0.200"]
    # Paired by seed: the seeds' own spread is not in the error of the difference.
    assert differences[0][0] == "minus plain, a"
    assert [(row[0], row[column]) for row in differences[2:]] == [
        ("plain, b", "0.000 ± 0.000"),
        ("other, a", "0.100 ± 0.000"),
    ]
    assert text.endswith("Mean ± standard error over 2 seeds.\n")


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_value_that_a_seed_lacks_is_a_dash(missing):
    text = comparison_report.make_tables({"one, a": [{"transfer": 1.5}, {"transfer": missing}]})
    assert "1.5" not in text and "–" in text
    assert "1.500" in comparison_report.make_tables({"one, a": [{"transfer": 1.5}]}) and text != ""
