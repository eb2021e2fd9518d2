"""What long work says: announcements, the time it took, and progress."""

import logging as python_logging
import sys
import time

from absl import logging
import jax
import pytest

from eqjax import progress


@pytest.fixture(name="lines")
def _lines(caplog):
    logging.set_verbosity(logging.INFO)
    caplog.set_level(python_logging.INFO, logger="absl")
    return lambda: [record.getMessage() for record in caplog.records]


def test_announced_work_is_said_before_and_timed_after(lines):
    with progress.announced("Compiling the step"):
        assert lines() == ["Compiling the step …"]
    assert lines()[1:] == ["Compiling the step took 0.0 s."]


def test_patience_keeps_quick_work_silent_and_announces_slow_work_while_it_runs(lines):
    with progress.announced("Reading", patience=5.0):
        pass
    assert lines() == []
    with progress.announced("Reading", patience=0.05):
        time.sleep(0.4)
        assert lines() == ["Reading …"]
    assert len(lines()) == 2 and lines()[1].startswith("Reading took 0.")
    time.sleep(0.2)
    assert len(lines()) == 2


def test_failed_work_is_not_said_to_have_ended(lines):
    with pytest.raises(ValueError, match="no"), progress.announced("Reading"):
        raise ValueError("no")
    assert lines() == ["Reading …"]


def test_the_wait_for_the_first_items_is_announced_and_answered(lines, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.05)
    counter = progress.ProgressLogger("images", total=8, done=2)
    time.sleep(0.4)
    assert lines() == ["images: 2/8; compiling, and working on the first …"]
    counter.update(2)  # At once, although no line would be due yet.
    assert "images: 4/8, " in lines()[1] and "the first took 0." in lines()[1]
    counter.update(2)
    assert len(lines()) == 2
    counter.update(2)
    assert lines()[2].startswith("images: 8/8, ") and "first" not in lines()[2]


def test_a_counter_that_an_error_ended_says_nothing_afterwards(lines, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.1)
    counter = progress.ProgressLogger("images", total=8)
    del counter
    time.sleep(0.3)
    assert lines() == []


@pytest.mark.parametrize(("index", "count"), [(0, 2), (1, 0)])
def test_only_process_0_speaks(lines, monkeypatch, index, count):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    with progress.announced("Compiling"):
        pass
    assert len(lines()) == count


def test_nothing_is_asked_of_a_jax_that_another_thread_imports(lines, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", type(sys)("jax"))
    with progress.announced("Loading JAX"):
        pass
    assert len(lines()) == 2
