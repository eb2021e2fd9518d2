r"""Starts a command as several connected processes on this machine.

    python -m launch.local --num_processes=2 --num_gpus=8 -- eqjax train-generator --config=… --workdir=…

Each process gets COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID and LOCAL_WORLD_SIZE, and with --num_gpus an equal part
of the GPUs (CUDA_VISIBLE_DEVICES). If one process fails, the others are stopped. SIGTERM and SIGINT are passed on, and
processes that save before they end (code 75) are waited for. The exit code is that of the first process that did not
end with 0, else 0.

torchrun works too (see launch/README.md), but it needs PyTorch, and it stops the other processes as soon as one ends
with a code other than 0, such as 75.
"""

from collections.abc import Mapping, Sequence
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

from absl import app, flags

from eqjax.cli.runner import EXIT_PREEMPTED

_COUNT = flags.DEFINE_integer("num_processes", 2, "Processes to start.", lower_bound=1)
_GPUS = flags.DEFINE_integer("num_gpus", 0, "GPUs to divide among the processes; 0: all see all.", lower_bound=0)
_PORT = flags.DEFINE_integer("port", 0, "Port of the coordinator; 0: a free one.")
_GRACE = flags.DEFINE_float("grace", 20.0, "Seconds that the others get once one has failed.")
_DRY = flags.DEFINE_bool("dry_run", False, "Print the commands instead of running them.")


def environments(count: int, num_gpus: int, port: int) -> list[dict[str, str]]:
    """Returns the environment variables of each process.

    Args:
      count: number of processes.
      num_gpus: GPUs to divide among them; 0 to leave CUDA_VISIBLE_DEVICES as it is.
      port: port of the coordinator.

    Raises:
      ValueError: the GPUs do not divide evenly.
    """
    if num_gpus % count:
        raise ValueError(f"--num_gpus={num_gpus} do not divide among --num_processes={count}; make it a multiple.")
    each = num_gpus // count
    found = []
    for index in range(count):
        names = dict(COORDINATOR_ADDRESS=f"localhost:{port}", NUM_PROCESSES=str(count), PROCESS_ID=str(index))
        names["LOCAL_WORLD_SIZE"] = str(count)
        if each:
            names["CUDA_VISIBLE_DEVICES"] = ",".join(str(index * each + i) for i in range(each))
        found.append(names)
    return found


def free_port() -> int:
    """Returns a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run(command: Sequence[str], variables: Sequence[Mapping[str, str]], grace: float) -> int:
    """Runs the processes to their end, as the module's docstring describes.

    Args:
      command: program and arguments.
      variables: the environment variables of each process.
      grace: seconds that the others get once one has failed.

    Returns:
      The exit code.
    """
    # Sessions of their own: a terminal would send Ctrl-C to them too, which then arrived twice.
    processes = [subprocess.Popen(command, env={**os.environ, **names}, start_new_session=True) for names in variables]

    def pass_on(number: int, _: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    code, deadline = 0, None
    while None in (codes := [process.poll() for process in processes]):
        code = code or next(filter(None, codes), 0)
        if deadline is None and not {*codes} <= {None, 0, EXIT_PREEMPTED}:
            deadline = time.monotonic() + grace
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.1)
    return code or next((process.returncode for process in processes if process.returncode), 0)


def main(argv: list[str]) -> None:
    """Starts the processes."""
    if len(argv) < 2:
        raise app.UsageError("give the command after --, as in: -- eqjax train-generator --config=…")
    command = argv[1:]
    try:
        variables = environments(_COUNT.value, _GPUS.value, _PORT.value or free_port())
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    if _DRY.value:
        for names in variables:
            print(*(f"{name}={value}" for name, value in names.items()), shlex.join(command))
        return
    # Commands of the environment that this program runs in.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    code = run(command, variables, _GRACE.value)
    raise SystemExit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    app.run(main)
