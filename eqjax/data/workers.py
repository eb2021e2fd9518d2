"""How many worker processes read and decode images, where a configuration leaves it open."""

from collections.abc import Mapping
import os

# More of them wait for the files, and each has buffers and an interpreter of its own.
MOST_WORKERS = 16
# Starting a worker takes seconds; reading so few images takes less.
IMAGES_PER_WORKER = 1000
# With fewer cores, the process that trains needs them itself.
_FEWEST_CORES = 4


# A container's share of the processors' time, "quota period" in µs, or "max period" without a limit.
_QUOTA = "/sys/fs/cgroup/cpu.max"


def available_cores(quota: str = _QUOTA) -> int:
    """Returns the number of cores that this process may use: those it may run on, or a container's share of them.

    Args:
      quota: file of the container's share, of control groups version 2.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open(quota, encoding="utf-8") as file:
            time, period = map(int, file.read().split())
    except (OSError, ValueError):  # No such file, or no limit.
        return cores
    return max(1, min(cores, time // period))


def cores_of_process(cores: int, environment: Mapping[str, str]) -> int:
    """Returns this process's share of the cores, where several processes run on the machine.

    Args:
      cores: cores that the process may run on.
      environment: a mapping such as os.environ. LOCAL_WORLD_SIZE is the number of processes on the machine; all
        starters set it, and so does torchrun. Under SLURM, where tasks are processes, a task has SLURM_CPUS_PER_TASK.

    Example:
      >>> cores_of_process(16, {}), cores_of_process(16, {"LOCAL_WORLD_SIZE": "8"})
      (16, 2)
    """
    processes = _count(environment, "LOCAL_WORLD_SIZE")
    own = _count(environment, "SLURM_CPUS_PER_TASK")
    if own and processes == _count(environment, "SLURM_NTASKS_PER_NODE"):
        return min(own, cores)
    return max(1, cores // (processes or 1))


def _count(environment: Mapping[str, str], name: str) -> int:
    """Returns a variable's number, or 0 if it is not set or is none."""
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else 0


def default_num_workers(num_images: int, cores: int) -> int:
    """Returns the number of worker processes for a data set of files.

    One core is left to the process that trains. A small data set, or a machine of few cores, gets no workers.

    Args:
      num_images: images of the data set.
      cores: this process's share of the machine's cores.

    Example:
      >>> [default_num_workers(1_281_167, cores) for cores in (2, 8, 64)]
      [0, 7, 16]
      >>> default_num_workers(3000, 8)
      3
    """
    if cores < _FEWEST_CORES:
        return 0
    return min(cores - 1, MOST_WORKERS, num_images // IMAGES_PER_WORKER)
