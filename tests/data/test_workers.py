"""Worker processes by cores: their number, and that it is only a number."""

import os

import numpy as np
import pytest

from eqjax.data import batches, make_iterator, workers


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 64),
        ({"LOCAL_WORLD_SIZE": "8"}, 8),
        ({"LOCAL_WORLD_SIZE": "100"}, 1),
        ({"LOCAL_WORLD_SIZE": "eight"}, 64),
        # Tasks of SLURM have their own cores, whether or not it binds them to these.
        ({"LOCAL_WORLD_SIZE": "8", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "6"}, 6),
        ({"LOCAL_WORLD_SIZE": "8", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "96"}, 64),
        # One task, whose processes another program started.
        ({"LOCAL_WORLD_SIZE": "8", "SLURM_NTASKS_PER_NODE": "1", "SLURM_CPUS_PER_TASK": "64"}, 8),
    ],
)
def test_processes_of_a_machine_share_its_cores(environment, expected):
    assert workers.cores_of_process(64, environment) == expected


def test_a_container_has_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    file = tmp_path / "cpu.max"
    assert workers.available_cores(str(file)) == 32
    for text, expected in (("max 100000\n", 32), ("600000 100000\n", 6), ("50000 100000\n", 1), ("6400000 100000", 32)):
        file.write_text(text)
        assert workers.available_cores(str(file)) == expected


@pytest.mark.parametrize(
    ("num_images", "cores", "expected"),
    [(10**6, 3, 0), (10**6, 4, 3), (10**6, 17, 16), (10**6, 64, 16), (5999, 64, 5), (999, 64, 0)],
)
def test_workers_follow_cores_and_images(num_images, cores, expected):
    assert workers.default_num_workers(num_images, cores) == expected


@pytest.fixture(name="chosen")
def _chosen(monkeypatch):
    """The numbers of workers with which iterators are made; a machine of five cores, and no image too few."""
    monkeypatch.setattr(workers, "available_cores", lambda *_: 5)
    monkeypatch.setattr(workers, "IMAGES_PER_WORKER", 5)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    found = []
    monkeypatch.setattr(batches.BatchIterator, "__init__", lambda *_, num_workers, **__: found.append(num_workers))
    return found


def test_files_get_workers_unless_a_number_is_given(chosen, folder_config, config):
    for num_workers in (None, 0, 3):
        folder_config.num_workers = num_workers
        make_iterator(folder_config, batch_size=4, seed=0)
    assert config.num_workers is None
    make_iterator(config, batch_size=4, seed=0)  # Photographs, which are in memory.
    assert chosen == [2, 0, 3, 0]


@pytest.mark.slow
def test_a_run_continues_with_the_workers_of_another_machine(folder_config, monkeypatch):
    monkeypatch.setattr(workers, "IMAGES_PER_WORKER", 5)

    def take(cores, count, state=None):
        monkeypatch.setattr(workers, "available_cores", lambda *_: cores)
        with make_iterator(folder_config, batch_size=4, seed=0, process_index=0, process_count=1) as iterator:
            assert (iterator.num_corrupt is None) == (cores > 2)  # Whether there are workers.
            if state is not None:
                iterator.set_state(state)
            return [next(iterator) for _ in range(count)], iterator.get_state()

    uncut, _ = take(1, 5)
    _, state = take(8, 2)
    for batch, expected in zip(take(8, 3, state)[0] + take(1, 3, state)[0], uncut[2:] * 2, strict=True):
        np.testing.assert_array_equal(batch["image"], expected["image"])
        np.testing.assert_array_equal(batch["label"], expected["label"])
