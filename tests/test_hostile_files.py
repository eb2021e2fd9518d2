"""Files from outside, mutated and built from grammars, are read or refused with documented errors, soon."""

import pytest

from tests import hostile_files, hostile_states, subprocesses


@pytest.mark.parametrize(("name", "count"), [
    ("zip.pt", 150), ("legacy.pt", 150), ("state.safetensors", 60), ("weights.safetensors", 60),
    ("statistics.npz", 150),
])  # fmt: skip
def test_a_few_hundred_hostile_files_are_read_or_refused(tmp_path, name, count):
    outcomes = hostile_files.read_many(hostile_files.Files(tmp_path), 0, count, (name,))[name]
    assert outcomes["refused"] > count / 4 and outcomes["read"] > 0
    assert outcomes.total() == count


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 3))
def test_thousands_of_hostile_files_are_read_or_refused_within_a_gigabyte(tmp_path, seed):
    output = subprocesses.run("tests.hostile_files", seed, 1000, tmp_path, timeout=900)
    assert all(name in output for name in hostile_files.READERS)


@pytest.mark.parametrize("kind", hostile_states.FORMATS, ids=lambda kind: kind.__name__)
def test_hostile_files_beside_others_are_read_or_refused(tmp_path, kind):
    count = hostile_states.COUNTS[kind]
    outcomes = hostile_states.read_many(kind, tmp_path, 0, count)
    assert outcomes["refused"] > count / 4 and outcomes.total() == count


@pytest.mark.slow
def test_thousands_of_hostile_files_beside_others_are_read_or_refused_within_a_gigabyte(tmp_path):
    output = subprocesses.run("tests.hostile_states", 1, 400, tmp_path, timeout=1500)
    assert all(kind.__name__ in output for kind in hostile_states.FORMATS)
