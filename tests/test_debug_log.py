"""Traces of libraries go to the debug log, and the sentence remains on the terminal."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, threading
from absl import logging
from eqjax import debug_log
from eqjax.cli import runner
if "guarded" in sys.argv:
    logging.use_absl_handler()
    debug_log.start_guard(sys.argv[1] + "/debug.log", "the sentence of the guard")
def work():
    def fail():
        raise KeyError("in a thread")
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    class Fragile:
        def __del__(self):
            raise KeyError("in a destructor")
    Fragile()
    import logging as python_logging
    record = python_logging.LogRecord("absl", 40, "/x/orbax/checkpoint/manager.py", 1, "Orbax on its error", (), None)
    python_logging.getLogger("absl").handle(record)
    logging.info("a word of ours")
    if "guarded" in sys.argv:
        os.write(2, b"Terminating process because of C++\\n")
        os.abort()
    error = {"handled": ValueError("what is wrong"), "other": ZeroDivisionError("a fault")}[sys.argv[2]]
    raise error from OSError("the cause")
runner.finish(work, uses_jax=False, workdir=sys.argv[1], verbose="verbose" in sys.argv)
"""


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def test_traces_of_a_handled_failure_are_in_the_file_that_the_sentence_names(tmp_path):
    done = run(tmp_path, "handled")
    assert done.returncode == 1
    path = tmp_path / "debug.log"
    assert done.stderr.endswith(f"what is wrong\nTraces are in {path}.\n")
    assert "a word of ours" in done.stderr and "Traceback" not in done.stderr and "Orbax" not in done.stderr
    text = path.read_text()
    for word in ("in a thread", "in a destructor", "Orbax on its error", "OSError: the cause", "Traceback"):
        assert word in text


def test_with_verbose_traces_are_printed(tmp_path):
    done = run(tmp_path, "handled", "verbose")
    assert done.returncode == 1 and not (tmp_path / "debug.log").exists()
    for word in ("in a thread", "in a destructor", "Orbax on its error"):
        assert word in done.stderr


def test_a_fault_of_ours_keeps_its_trace(tmp_path):
    done = run(tmp_path, "other")
    assert done.returncode == 1 and "ZeroDivisionError: a fault" in done.stderr and "Traceback" in done.stderr


def test_a_folder_that_cannot_be_written_costs_only_the_file(tmp_path):
    done = run(tmp_path / "none", "handled")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("what is wrong")


@pytest.mark.parametrize("folder", ["", "none"])
def test_words_of_a_library_that_ends_the_process_become_a_sentence(tmp_path, folder):
    done = run(tmp_path / folder, "handled", "guarded")
    assert done.returncode == -6
    assert done.stderr.splitlines()[-1] == "the sentence of the guard"
    assert "a word of ours" in done.stderr and "C++" not in done.stderr
    assert folder or "Terminating process because of C++" in (tmp_path / "debug.log").read_text()
