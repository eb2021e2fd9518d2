"""Starts programs from tests: with other numbers of devices, as several processes, or to be killed."""

import os
import pathlib
import subprocess
import sys
import time

from launch import local

ROOT = pathlib.Path(__file__).parent.parent


def environment(devices=1):
    """Returns environment variables for a program with so many virtual devices."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    return dict(os.environ, XLA_FLAGS=" ".join(flags), JAX_PLATFORMS="cpu", NPROC="16")


def start(module, *arguments, devices=1, **variables):
    """Starts `python -m module` with its output in a pipe; returns the process."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**environment(devices), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_processes(module, *arguments, count, devices):
    """Runs a program as several connected processes; returns their exit codes and outputs."""
    address = f"localhost:{local.free_port()}"
    processes = [
        start(
            module,
            *arguments,
            devices=devices,
            COORDINATOR_ADDRESS=address,
            NUM_PROCESSES=str(count),
            PROCESS_ID=str(i),
        )
        for i in range(count)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def run(module, *arguments, devices=1, code=0, timeout=900, **variables):
    """Runs a program to its end, checks its exit code, and returns its output."""
    process = start(module, *arguments, devices=devices, **variables)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, output[-5000:]
    return output


def wait_for_step(workdir, step, process):
    """Waits until a training process has logged `step` lines.

    Raises:
      AssertionError: the process has ended before.
    """
    path = workdir / "metrics.jsonl"
    while not (path.exists() and len(path.read_text().splitlines()) >= step):
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0][-3000:])
        time.sleep(0.02)
