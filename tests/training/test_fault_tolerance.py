"""Runs survive non-finite steps, SIGTERM, kill -9, a full disk, other runs and damaged checkpoints of one process."""

import errno
import json
import os
import pathlib
import random
import re
import shutil
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import memory
from eqjax.checkpoints import Checkpoints
from eqjax.training import fault_tolerance, loop
from eqjax.training.logging import MetricWriter
from launch import local
from tests import subprocesses
from tests.training import toy_trainer
from tests.training.toy_runs import equal, leaves, logged, saved_steps, train


def test_nonfinite_updates_are_skipped_and_counted(tmp_path):
    short = train(tmp_path / "short", toy_trainer.config(2))
    long = train(tmp_path / "long", toy_trainer.config(4, max_consecutive_nonfinite=3), bad_steps=(3, 4))
    assert int(long.step) == 4
    assert equal(leaves(long)[1:], leaves(short)[1:])  # Weights and moments of the last good step.
    assert logged(tmp_path / "long", "nonfinite_steps") == [(1, 0), (2, 0), (3, 1), (4, 2)]
    # A resumed run takes over the counts.
    train(tmp_path / "long", toy_trainer.config(6, max_consecutive_nonfinite=4), bad_steps=(5,))
    assert logged(tmp_path / "long", "nonfinite_steps")[-2:] == [(5, 3), (6, 3)]


def test_too_many_consecutive_nonfinite_steps_stop_the_run(tmp_path):
    config = toy_trainer.config(20, max_consecutive_nonfinite=2)
    with pytest.raises(
        FloatingPointError, match=r"step 4: grad_norm and loss are not finite.*2 steps in a row"
    ) as caught:
        train(tmp_path, config, bad_steps=(3, 4, 5))
    assert "from step 3 on, were skipped. First offending module: layer/kernel. The last" in str(caught.value)
    assert "good state is kept as checkpoint 4" in str(caught.value)
    resumed = train(tmp_path, toy_trainer.config(7, max_consecutive_nonfinite=5), bad_steps=(5,))
    assert int(resumed.step) == 7 and all(np.isfinite(leaf).all() for leaf in leaves(resumed))


def test_a_finite_step_ends_a_row_of_nonfinite_steps():
    watch = fault_tolerance.StepWatch(2)
    for step, finite in enumerate((False, True, False), 1):
        assert watch.add(step, {"loss": np.float32(1), "finite": np.array(finite)}, None) is None
    assert watch.drain() is None
    assert (watch.nonfinite_steps, watch.consecutive_nonfinite) == (2, 1)
    last = watch.add(4, {"loss": np.float32(np.nan), "finite": np.array(False)}, None) or watch.drain()
    assert last is not None and last.step == 4 and watch.consecutive_nonfinite == 2


def test_a_failing_diagnosis_does_not_hide_the_nonfinite_metrics(tmp_path):
    class FailingTrainer(toy_trainer.ToyTrainer):
        def find_nonfinite(self, *_):
            raise MemoryError("16 GiB")

    config = toy_trainer.config(1, max_consecutive_nonfinite=1)
    with pytest.raises(FloatingPointError, match=r"step 1: .* not finite.*search for it failed \(MemoryError\('16 GiB"):
        loop.train(config, str(tmp_path), FailingTrainer(config, bad_steps=(1,)))


@pytest.mark.slow
def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path):
    whole = train(tmp_path, toy_trainer.config(2))
    # In a process of its own, as Orbax leaves threads of the failed save behind.
    options = json.dumps(dict(total_steps=4, largest_file=20_000))
    output = subprocesses.run("tests.training.toy_trainer", tmp_path, options, devices=4, code=1)
    message = rf"could not be written(.|\n)*Steps \[2\] are whole.*\nTraces are in {tmp_path}/debug.log\.$"
    assert re.search(message, output.rstrip()) and "Traceback" not in output, output
    assert "Traceback" in (tmp_path / "debug.log").read_text()
    config = toy_trainer.config(2)
    with Checkpoints(tmp_path / "checkpoints", config.to_dict()) as checkpoints:
        restored = checkpoints.restore(whole)
    assert restored is not None and equal(leaves(restored[0]), leaves(whole))
    assert int(train(tmp_path, toy_trainer.config(4)).step) == 4


@pytest.mark.slow
def test_a_process_that_loses_another_ends_with_one_sentence(tmp_path):
    options = json.dumps(dict(total_steps=4000, delay=0.05, checkpoint_every=10))
    names = dict(COORDINATOR_ADDRESS=f"localhost:{local.free_port()}", NUM_PROCESSES="2")
    arguments = ("tests.training.toy_trainer", tmp_path, options)
    processes = [subprocesses.start(*arguments, devices=2, PROCESS_ID=str(i), **names) for i in range(2)]
    subprocesses.wait_for_step(tmp_path, 3, processes[0])
    processes[0].kill()
    output, _ = processes[1].communicate(timeout=120)
    processes[0].communicate()
    assert processes[1].returncode in (1, -signal.SIGABRT)  # Who notices first: Python or JAX's service.
    expected = f"{fault_tolerance.PEER_LOST} Messages of the libraries are in {tmp_path}/debug-1.log."
    assert output.count("Another process") == 1 and output.rstrip().endswith(expected), output
    assert "Check failure" not in output and "Traceback" not in output
    # Which library notices first, and what it says, differs between versions of JAX.
    assert re.search("Gloo|CoordinationService", (tmp_path / "debug-1.log").read_text())


def test_a_batch_that_does_not_fit_into_memory_ends_in_one_sentence(tmp_path):
    class LargeTrainer(toy_trainer.ToyTrainer):
        def step(self, frozen, state, batch, key):
            state, metrics = super().step(frozen, state, batch, key)
            # Not random numbers: jaxlib 0.12 crashes at so many on a CPU.
            return state, {**metrics, "large": jnp.full((2**43,), metrics["loss"])}

    config = toy_trainer.config(1)
    message = (
        r"^out of memory of the device with batch_size=8 of 16 × 16 pixels, accumulation_steps=1 "
        r"\(.* TiB were asked for at once\): raise accumulation_steps,"
    )
    with pytest.raises(memory.OutOfMemoryError, match=message):
        loop.train(config, str(tmp_path), LargeTrainer(config))


def test_metrics_of_a_workdir_that_was_removed_are_written_again(tmp_path, caplog):
    with MetricWriter(tmp_path / "run") as writer:
        writer.scalars(1, {"loss": 0.5})
        shutil.rmtree(tmp_path / "run")
        writer.scalars(2, {"loss": 0.25})
        writer.scalars(3, {"loss": 0.125})
    assert logged(tmp_path / "run") == [(2, 0.25), (3, 0.125)]
    assert caplog.text.count("was removed while the run writes to it") == 1


def test_a_workdir_of_a_live_run_is_refused(tmp_path):
    message = r"held by another live run \(process \d+ on .*another workdir"
    with fault_tolerance.WorkdirLock(tmp_path), pytest.raises(fault_tolerance.WorkdirInUseError, match=message):
        train(tmp_path, toy_trainer.config(1))
    assert int(train(tmp_path, toy_trainer.config(1)).step) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_sigterm_and_ctrl_c_save_and_exit_with_the_code_of_preemption(tmp_path, number):
    """In a process of its own, which the signal stops; then the run is finished here, bit for bit."""
    data = dict(num_workers=int(number == signal.SIGINT))
    options = dict(total_steps=4000, delay=0.01, checkpoint_every=100_000, data=data)
    process = subprocesses.start("tests.training.toy_trainer", tmp_path / "run", json.dumps(options), devices=4)
    subprocesses.wait_for_step(tmp_path / "run", 3, process)
    if number == signal.SIGINT:
        # A terminal sends it to all processes of a command.
        tasks = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [child for path in tasks for child in path.read_text().split()]
        for child in children:
            os.kill(int(child), signal.SIGINT)
        assert children
        time.sleep(0.5)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 75, output[-3000:]
    assert "Traceback" not in output and re.search(r"asked to stop; saved step \d+ .* Exit code 75; the same", output)
    assert ("Press Ctrl-C again" in output) == (number == signal.SIGINT)
    (step,) = saved_steps(tmp_path / "run")
    assert 3 <= step < 4000
    resumed = train(tmp_path / "run", toy_trainer.config(step + 2))
    assert equal(leaves(resumed), leaves(train(tmp_path / "whole", toy_trainer.config(step + 2))))


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_run_at_once(tmp_path):
    """It does not wait for the step, and ends the worker processes."""
    options = dict(total_steps=4000, delay=4, checkpoint_every=100_000, data=dict(num_workers=1))
    process = subprocesses.start("tests.training.toy_trainer", tmp_path, json.dumps(options), devices=4)
    subprocesses.wait_for_step(tmp_path, 1, process)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    lines = []
    while "Press Ctrl-C again" not in (line := process.stdout.readline()):
        lines.append(line)
        assert line, lines
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)  # The pipe ends when the workers have ended too.
    assert process.returncode == 130 and "Traceback" not in output, output
    assert saved_steps(tmp_path) == []


def test_stop_signal_leaves_signals_as_they_were():
    def settings():
        return (
            signal.getsignal(signal.SIGTERM),
            signal.getsignal(signal.SIGINT),
            signal.pthread_sigmask(signal.SIG_BLOCK, []),
        )

    before = settings()
    with fault_tolerance.StopSignal() as stop:
        assert settings() != before and not stop.received
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received
    assert settings() == before and signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_of_terminals_and_queues_ask_to_stop(number):
    before = signal.signal(number, signal.SIG_DFL)  # Whatever started the tests may ignore it.
    try:
        with fault_tolerance.StopSignal() as stop:
            os.kill(os.getpid(), number)
            assert stop.received
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # As nohup does with SIGHUP.
        with fault_tolerance.StopSignal() as stop:
            os.kill(os.getpid(), number)
            assert not stop.received
    finally:
        signal.signal(number, before)


def test_a_file_system_without_locks_is_no_other_run(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fault_tolerance.fcntl, "flock", flock)
    with fault_tolerance.WorkdirLock(tmp_path):
        pass
    assert "is not protected against a second run, as its file system has no locks" in caplog.text


@pytest.mark.slow
def test_a_run_killed_eight_times_resumes_bit_for_bit(tmp_path):
    """At random times; then it ends, and is compared with an uninterrupted run."""
    kills, steps, rng = 8, 270, random.Random(1)
    options = dict(total_steps=steps, delay=0.005, checkpoint_every=3, result=str(tmp_path / "end.npz"))
    for _ in range(kills):
        process = subprocesses.start("tests.training.toy_trainer", tmp_path / "run", json.dumps(options), devices=4)
        path = tmp_path / "run" / "metrics.jsonl"
        before = len(path.read_text().splitlines()) if path.exists() else 0
        subprocesses.wait_for_step(tmp_path / "run", before + rng.randint(1, 20), process)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    subprocesses.run("tests.training.toy_trainer", tmp_path / "run", json.dumps(options), devices=4)
    end = np.load(tmp_path / "end.npz")
    whole = train(tmp_path / "whole", toy_trainer.config(steps, log_every=None, checkpoint_every=None))
    assert equal([end[f"arr_{i}"] for i in range(len(leaves(whole)))], leaves(whole))
    logged_steps = [step for step, _ in logged(tmp_path / "run")]
    assert set(logged_steps) == set(range(1, steps + 1))
    assert len(logged_steps) - steps <= 6 * kills  # Repeated steps: two checkpoints may be in flight.


@pytest.mark.slow
def test_two_processes_skip_a_step_that_one_cannot_read_and_one_resumes_on_another_mesh(tmp_path):
    options = dict(total_steps=4, mesh="data:2,fsdp:2", result=str(tmp_path / "two.npz"))

    def run_two():
        arguments = ("tests.training.toy_trainer", tmp_path / "run", json.dumps(options))
        codes, outputs = subprocesses.run_processes(*arguments, count=2, devices=2)
        assert codes == [0, 0], outputs
        return outputs

    run_two()
    whole = np.load(tmp_path / "two.npz")
    # One bit of what process 1 wrote is flipped: both take the step before it.
    written = (tmp_path / "run" / "checkpoints" / "4" / "state" / "ocdbt.process_1").rglob("d/*")
    path = max(written, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    outputs = run_two()
    assert all("at step 2" in output for output in outputs), outputs
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["2", "4", "damaged-4"]
    two = np.load(tmp_path / "two.npz")
    assert equal([whole[name] for name in whole], [two[name] for name in two])
    assert (two["processes"], two["devices"]) == (2, 4)
    assert [step for step, _ in logged(tmp_path / "run")] == [1, 2, 3, 4, 3, 4]  # One process writes.
    # One process, another mesh: the same values are restored, and training resumes.
    restored = train(tmp_path / "run", toy_trainer.config(4, mesh="fsdp:4"))
    assert equal([two[f"arr_{i}"] for i in range(len(leaves(restored)))], leaves(restored))
    resumed = train(tmp_path / "run", toy_trainer.config(6, mesh="data:4"))
    assert int(resumed.step) == 6 and logged(tmp_path / "run")[-1][1] < logged(tmp_path / "run")[0][1]
