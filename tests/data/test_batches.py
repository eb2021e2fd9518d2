"""Batches: the same for a seed, whatever the number of processes, threads and workers, and after a resume."""

import json
import pathlib

import numpy as np
import pytest

from eqjax.data import eval_batches, make_iterator


def _take(config, count, state=None, *, batch_size=4, seed=0, process=(0, 1)):
    """Takes batches from a new iterator, after `state`; returns them and the state behind them."""
    index, total = process
    with make_iterator(config, batch_size=batch_size, seed=seed, process_index=index, process_count=total) as iterator:
        if state is not None:
            iterator.set_state(json.loads(json.dumps(state)))
        return [next(iterator) for _ in range(count)], iterator.get_state()


def _assert_same(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def _interleave(shards):
    """Joins the shards of all processes: process p holds every P-th record, starting at p."""

    def together(name, step):
        stacked = np.stack([batch[name] for batch in step], axis=1)
        return stacked.reshape(-1, *stacked.shape[2:])

    return [{name: together(name, step) for name in step[0]} for step in zip(*shards, strict=True)]


@pytest.mark.parametrize("which", ["config", "folder_config"])
def test_batches_follow_the_seed(which, request):
    config = request.getfixturevalue(which)
    first, _ = _take(config, 5)
    _assert_same(first, _take(config, 5)[0])
    other, _ = _take(config, 5, seed=1)
    assert not np.array_equal(first[0]["image"], other[0]["image"])
    assert first[0]["image"].shape == (4, 8, config.width, 3) and first[0]["image"].dtype == np.uint8
    assert first[0]["label"].shape == (4,) and first[0]["label"].dtype == np.int32


@pytest.mark.parametrize("which", ["config", "folder_config"])
def test_processes_divide_the_global_batch(which, request):
    config = request.getfixturevalue(which)
    alone, state = _take(config, 3)
    shards = [_take(config, 3, process=(index, 2)) for index in range(2)]
    assert shards[0][0][0]["image"].shape[0] == 2
    _assert_same(_interleave([batches for batches, _ in shards]), alone)
    assert shards[0][1] == shards[1][1] == state


def test_resume_on_other_processes_and_threads(folder_config):
    uncut, _ = _take(folder_config, 6)
    _, state = _take(folder_config, 2, process=(1, 2))
    folder_config.num_threads = 2
    _assert_same(_take(folder_config, 4, state)[0], uncut[2:])
    _assert_same(_interleave([_take(folder_config, 4, state, process=(index, 4))[0] for index in range(4)]), uncut[2:])


def test_running_iterator_can_be_rewound(config):
    with make_iterator(config, batch_size=4, seed=0, process_index=0, process_count=1) as iterator:
        next(iterator)
        state = iterator.get_state()
        first = [next(iterator) for _ in range(2)]
        iterator.set_state(state)
        _assert_same([next(iterator) for _ in range(2)], first)


@pytest.mark.slow
def test_workers_give_the_same_batches(config):
    uncut, _ = _take(config, 4)
    _, state = _take(config, 1)
    config.num_workers = 2
    _assert_same(_take(config, 3, state)[0], uncut[1:])


def test_state_of_another_stream_is_refused(config):
    _, state = _take(config, 1)
    with pytest.raises(ValueError, match="seed=0, this iterator seed=1"):
        _take(config, 1, state, seed=1)
    config.classes = ("brick", "cat")
    with pytest.raises(ValueError, match="num_records=300, this iterator num_records=200"):
        _take(config, 1, state)


def test_closed_iterator_refuses_to_continue(config):
    iterator = make_iterator(config, batch_size=4, seed=0, process_index=0, process_count=1)
    next(iterator)
    iterator.close()
    iterator.close()
    for use in (iterator.__next__, iterator.get_state):
        with pytest.raises(ValueError, match="closed"):
            use()


@pytest.mark.parametrize("num_threads", [0, 2])
def test_corrupt_images_are_replaced_up_to_the_bound(folder_config, num_threads):
    folder_config.num_threads = num_threads
    root = pathlib.Path(folder_config.root)
    (root / "ant" / "0.png").write_bytes(b"no image")
    batches, _ = _take(folder_config, 3, batch_size=10)
    assert sorted(batches[0]["label"]) == [0] * 5 + [1] * 5  # The neighbor has the same class.
    (root / "bee" / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2 of 10 images .*0\.png, .*3\.png"):
        _take(folder_config, 3, batch_size=10)


def test_process_numbers_come_from_jax_by_default(config):
    with make_iterator(config, batch_size=4, seed=0) as iterator:
        _assert_same([next(iterator)], _take(config, 1)[0])


def test_last_eval_batch_is_filled_and_masked(folder_config):
    batches = list(eval_batches(folder_config, batch_size=4, process_index=0, process_count=1))
    assert [batch["mask"].tolist() for batch in batches] == [[True] * 4, [True] * 4, [True, True, False, False]]
    assert np.concatenate([batch["label"] for batch in batches]).tolist() == [0] * 5 + [1] * 7
    np.testing.assert_array_equal(batches[2]["image"][1], batches[2]["image"][3])


def test_processes_divide_the_eval_batches(folder_config):
    batches = list(eval_batches(folder_config, batch_size=4, process_index=0, process_count=1))
    shards = [
        list(eval_batches(folder_config, batch_size=4, process_index=index, process_count=2)) for index in range(2)
    ]
    _assert_same(_interleave(shards), batches)


def test_eval_images_are_spread_over_the_classes(config):
    batches = eval_batches(config, batch_size=4, num_images=6, process_index=0, process_count=1)
    assert len(batches) == 2 and batches.num_images == 6
    assert set(np.concatenate([batch["label"] for batch in batches])) == {0, 1, 2}
    _assert_same([batches[0]], [batches[0]])
    with pytest.raises(IndexError, match="Batch 2 does not exist; there are 2"):
        batches[2]


def test_no_eval_images_are_refused(config):
    with pytest.raises(ValueError, match="num_images=0 must be an integer ≥ 1"):
        eval_batches(config, batch_size=4, num_images=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 5, "process": (0, 2)}, "batch_size=5 must be a multiple.*process_count=2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"process": (2, 2)}, "process_index=2 must be below process_count=2"),
        ({"process": (0, None)}, "both or neither"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_argument_is_named(config, arguments, message):
    with pytest.raises(ValueError, match=message):
        _take(config, 1, **arguments)
