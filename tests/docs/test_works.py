"""The table of works on equivariance names what of them is here, and its examples run."""

import pathlib
import re

import pytest

from eqjax import equivariance
from tests.docs import blocks

PAGE = ".docs/explanation/equivariance_works.md"


def test_every_name_has_a_work():
    text = (pathlib.Path(blocks.ROOT) / PAGE).read_text(encoding="utf-8")
    table = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`(\w+)`", table))
    assert not set(equivariance.__all__) - named
    works = re.findall(r"arxiv.org/abs/(\d{4}\.\d{5})", table)
    assert len(works) == len(set(works)) >= 15


def test_the_examples_run():
    found = [body for language, body in blocks.blocks(PAGE) if language == "python"]
    assert len(found) == 2
    names: dict[str, object] = {}
    for body in found:
        exec(body, names)  # The assertions in the examples are the test.
    assert names["shift"] == pytest.approx(3)
