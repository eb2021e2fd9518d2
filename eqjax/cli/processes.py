"""Connects the processes of a command, from the environment variables that starters set."""

from collections.abc import Mapping
import os
from typing import Any

from absl import logging

# Variables that tell a process about the others: ours, and torchrun's.
_COORDINATES = (
    ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"),
    ("MASTER_ADDR", "WORLD_SIZE", "RANK"),
)


def process_numbers(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Returns (index, count) of this process, for programs whose processes need not be connected.

    Args:
      environment: the variables that `distributed_arguments` reads; the coordinator's address need not be set.

    Returns:
      (index, count), (0, 1) where nothing is set; None where JAX has to ask the platform.

    Raises:
      ValueError: only one of the two variables is set, or the index is not a number below the count.
    """
    for _, *names in _COORDINATES:
        count, index = (environment.get(name) for name in names)
        if count is None and index is None:
            continue
        if count is None or index is None:
            raise ValueError(f"{names[count is not None]} is not set, but {names[count is None]} is; set both.")
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise ValueError(f"{names[1]}={index} must be a number below {names[0]}={count}.")
        return int(index), int(count)
    return None if environment.get("EQJAX_DISTRIBUTED") == "auto" else (0, 1)


def distributed_arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize`.

    Args:
      environment: a mapping such as os.environ, with COORDINATOR_ADDRESS (host:port), NUM_PROCESSES and PROCESS_ID;
        or with torchrun's variables: MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK, and LOCAL_RANK where
        LOCAL_WORLD_SIZE is above 1; or with EQJAX_DISTRIBUTED=auto, for clusters that JAX recognizes itself (TPU pods,
        SLURM, Open MPI).

    Returns:
      A dict of arguments, empty for automatic recognition; None for a single process.

    Raises:
      ValueError: only some of the variables are set, or the index is not a number below the count.
    """
    numbers = process_numbers(environment)
    if numbers is None:
        return {}
    index, count = numbers
    if count == 1:
        return None
    names = next(names for names in _COORDINATES if names[1] in environment)
    address = environment.get(names[0])
    if address is None:
        raise ValueError(f"{names[0]} is not set, but the others of {', '.join(names)} are; set all three.")
    if ":" not in address:
        # torchrun's own agent listens at MASTER_PORT.
        address = f"{address}:{int(environment.get('MASTER_PORT', '29500')) + 1}"
    arguments: dict[str, Any] = dict(coordinator_address=address, num_processes=count, process_id=index)
    if environment.get("LOCAL_WORLD_SIZE", "1") != "1" and "LOCAL_RANK" in environment:
        # With several processes on a machine, each takes one accelerator, as programs under torchrun do.
        arguments["local_device_ids"] = [int(environment["LOCAL_RANK"])]
    return arguments


def join_processes() -> None:
    """Connects the processes of a run, if `distributed_arguments` finds several."""
    import jax

    arguments = distributed_arguments(os.environ)
    if arguments is None:
        return
    jax.distributed.initialize(**arguments)
    logging.info("Process %d of %d.", jax.process_index(), jax.process_count())
