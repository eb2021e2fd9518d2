r"""Starts a training command as several processes on this machine.

    python -m launch.local --num_processes=2 -- -m eqjax.cli.train_generator --config=… --workdir=…

Each process gets COORDINATOR_ADDRESS, NUM_PROCESSES and PROCESS_ID, and with --gpus one share of the
GPUs (CUDA_VISIBLE_DEVICES). When one process fails the others are stopped; SIGTERM and SIGINT are
handed on, and those that save then (code 75) are waited for. The exit code is that of the first process
that did not end with 0, else 0.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time

from absl import app, flags

# As eqjax.cli.runner has it, which would load JAX.
_PREEMPTED = 75

_COUNT = flags.DEFINE_integer("num_processes", 2, "Processes to start.", lower_bound=1)
_GPUS = flags.DEFINE_integer("gpus", 0, "GPUs of this machine, shared out evenly; 0: leave as is.", lower_bound=0)
_PORT = flags.DEFINE_integer("port", 0, "Port of the coordinator; 0: a free one.")
_GRACE = flags.DEFINE_float("grace", 20.0, "Seconds that the others get once one has failed.")
_DRY = flags.DEFINE_bool("dry_run", False, "Print the commands instead of running them.")


def environments(count, gpus, port):
    """The variables that each process gets, a list of dicts.

    Raises:
      ValueError: GPUs that do not divide.
    """
    if gpus % count:
        raise ValueError(f"--gpus={gpus} do not divide among --num_processes={count}.")
    each = gpus // count
    found = []
    for index in range(count):
        names = dict(COORDINATOR_ADDRESS=f"localhost:{port}", NUM_PROCESSES=str(count), PROCESS_ID=str(index))
        if each:
            names["CUDA_VISIBLE_DEVICES"] = ",".join(str(index * each + i) for i in range(each))
        found.append(names)
    return found


def free_port():
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run(command, variables, grace):
    """Runs the processes to their end and returns the exit code, see the text above."""
    processes = [subprocess.Popen(command, env={**os.environ, **names}) for names in variables]

    def hand_on(number, _):
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    code, deadline = 0, None
    while None in (codes := [process.poll() for process in processes]):
        code = code or next(filter(None, codes), 0)
        if deadline is None and not {*codes} <= {None, 0, _PREEMPTED}:
            deadline = time.monotonic() + grace
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.1)
    return code or next((process.returncode for process in processes if process.returncode), 0)


def main(argv):
    """Starts the processes."""
    if len(argv) < 2:
        raise app.UsageError("give the command after --, as in: -- -m eqjax.cli.train_generator --config=…")
    command = [sys.executable, *argv[1:]]
    try:
        variables = environments(_COUNT.value, _GPUS.value, _PORT.value or free_port())
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    if _DRY.value:
        for names in variables:
            print(*(f"{name}={value}" for name, value in names.items()), shlex.join(command))
        return
    code = run(command, variables, _GRACE.value)
    raise SystemExit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    app.run(main)
