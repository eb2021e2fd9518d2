"""Batches: the same for a seed, whatever the number of processes, threads and workers, and after a resume."""

import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from eqjax.data import default_config, eval_batches, make_iterator, make_source


@pytest.fixture(name="config")
def _config():
    config = default_config()
    config.update(height=8, width=12, num_threads=0, classes=("brick", "coffee", "cat"))
    return config


@pytest.fixture(name="folder_config")
def _folder_config(tmp_path):
    """Two classes of five noise images each, 24 × 18 pixels."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (18, 24, 3), np.uint8)).save(tmp_path / name / f"{i}.png")
    config = default_config()
    config.update(source="folder", root=str(tmp_path), height=8, width=8, resize=10, num_threads=0)
    return config


def _take(config, count, state=None, *, batch_size=4, seed=0, process=(0, 1), train=True):
    """Takes batches from a new iterator, after `state`; returns them and the state behind them."""
    index, total = process
    with make_iterator(
        config, batch_size=batch_size, seed=seed, train=train, process_index=index, process_count=total
    ) as iterator:
        if state is not None:
            iterator.set_state(json.loads(json.dumps(state)))
        return [next(iterator) for _ in range(count)], iterator.get_state()


def _assert_same(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def _interleave(shares):
    """Puts the shares of all processes together: process p holds every P-th record, starting at p."""

    def together(name, step):
        stacked = np.stack([batch[name] for batch in step], axis=1)
        return stacked.reshape(-1, *stacked.shape[2:])

    return [{name: together(name, step) for name in step[0]} for step in zip(*shares, strict=True)]


@pytest.mark.parametrize("which", ["config", "folder_config"])
def test_batches_follow_the_seed(which, request):
    config = request.getfixturevalue(which)
    first, _ = _take(config, 5)
    _assert_same(first, _take(config, 5)[0])
    other, _ = _take(config, 5, seed=1)
    assert not np.array_equal(first[0]["image"], other[0]["image"])
    assert first[0]["image"].shape == (4, 8, config.width, 3) and first[0]["image"].dtype == np.uint8
    assert first[0]["label"].shape == (4,) and first[0]["label"].dtype == np.int32


def test_crops_change_from_epoch_to_epoch(folder_config):
    batches, _ = _take(folder_config, 2, batch_size=10)  # An epoch each.
    assert sorted(batches[0]["label"]) == sorted(batches[1]["label"]) == [0] * 5 + [1] * 5
    images = [{image.tobytes() for image in batch["image"]} for batch in batches]
    assert len(images[0]) == 10 and images[0] != images[1]


def test_flip_can_be_turned_off(folder_config):
    folder_config.update(height=18, width=24, resize=18)  # Nothing is left to crop.
    whole = {record["image"].tobytes() for record in map(make_source(folder_config).__getitem__, range(10))}
    flipped = [image for image in _take(folder_config, 3)[0][0]["image"] if image.tobytes() not in whole]
    assert flipped and all(np.ascontiguousarray(image[:, ::-1]).tobytes() in whole for image in flipped)
    folder_config.flip = False
    assert all(image.tobytes() in whole for batch in _take(folder_config, 3)[0] for image in batch["image"])


@pytest.mark.parametrize("which", ["config", "folder_config"])
def test_processes_share_the_global_batch(which, request):
    config = request.getfixturevalue(which)
    alone, state = _take(config, 3)
    shares = [_take(config, 3, process=(index, 2)) for index in range(2)]
    assert shares[0][0][0]["image"].shape[0] == 2
    _assert_same(_interleave([batches for batches, _ in shares]), alone)
    assert shares[0][1] == shares[1][1] == state


def test_resume_on_other_processes_and_threads(folder_config):
    uncut, _ = _take(folder_config, 6)
    _, state = _take(folder_config, 2, process=(1, 2))
    folder_config.num_threads = 2
    _assert_same(_take(folder_config, 4, state)[0], uncut[2:])
    _assert_same(_interleave([_take(folder_config, 4, state, process=(index, 4))[0] for index in range(4)]), uncut[2:])


def test_resume_within_a_running_iterator_rewinds(config):
    with make_iterator(config, batch_size=4, seed=0, process_index=0, process_count=1) as iterator:
        next(iterator)
        state = iterator.get_state()
        first = [next(iterator) for _ in range(2)]
        iterator.set_state(state)
        _assert_same([next(iterator) for _ in range(2)], first)


def test_classes_as_a_command_line_gives_them(folder_config, config):
    folder_config.photo_classes = ("brick",)  # Says nothing about folders.
    assert make_source(folder_config).class_names == ("ant", "bee")
    folder_config.classes = ("bee,ant",)
    assert make_source(folder_config).class_names == ("bee", "ant")
    config.photo_classes = ("cat", "brick")
    assert make_source(config).class_names == ("brick", "coffee", "cat")
    config.classes = None
    assert make_source(config).class_names == ("cat", "brick")


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


def test_closed_iterator_says_so(config):
    iterator = make_iterator(config, batch_size=4, seed=0, process_index=0, process_count=1)
    next(iterator)
    iterator.close()
    iterator.close()
    for use in (iterator.__next__, iterator.get_state):
        with pytest.raises(ValueError, match="closed"):
            use()


@pytest.mark.parametrize("num_threads", [0, 2])
def test_broken_files_are_replaced_up_to_the_bound(folder_config, num_threads):
    folder_config.num_threads = num_threads
    root = pathlib.Path(folder_config.root)
    (root / "ant" / "0.png").write_bytes(b"no image")
    batches, _ = _take(folder_config, 3, batch_size=10)
    assert sorted(batches[0]["label"]) == [0] * 5 + [1] * 5  # The neighbor has the same class.
    (root / "bee" / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="2 of 10 images .*0.png, .*3.png"):
        _take(folder_config, 3, batch_size=10)


def test_process_numbers_come_from_jax_by_default(config):
    with make_iterator(config, batch_size=4, seed=0) as iterator:
        _assert_same([next(iterator)], _take(config, 1)[0])


def test_eval_batches_are_whole_and_masked(folder_config):
    batches = list(eval_batches(folder_config, batch_size=4, process_index=0, process_count=1))
    assert [batch["mask"].tolist() for batch in batches] == [[True] * 4, [True] * 4, [True, True, False, False]]
    assert np.concatenate([batch["label"] for batch in batches]).tolist() == [0] * 5 + [1] * 7
    images = np.concatenate([batch["image"] for batch in batches])
    resized = Image.open(pathlib.Path(folder_config.root) / "bee" / "2.png").resize(
        (13, 10), Image.Resampling.BILINEAR
    )  # 10 · 24 / 18 = 13.33
    np.testing.assert_array_equal(images[7], np.asarray(resized)[1:9, 2:10])
    shares = [
        list(eval_batches(folder_config, batch_size=4, process_index=index, process_count=2)) for index in range(2)
    ]
    _assert_same(_interleave(shares), batches)


def test_eval_images_are_spread_over_the_classes(config):
    batches = eval_batches(config, batch_size=4, num_images=6, process_index=0, process_count=1)
    assert len(batches) == 2 and batches.num_images == 6
    assert set(np.concatenate([batch["label"] for batch in batches])) == {0, 1, 2}
    _assert_same([batches[0]], [batches[0]])
    with pytest.raises(IndexError, match="Batch 2 of 2"):
        batches[2]


def test_endless_evaluation_repeats_the_finite_one(folder_config):
    endless, _ = _take(folder_config, 4, batch_size=5, train=False)
    finite = list(eval_batches(folder_config, batch_size=5, process_index=0, process_count=1))
    for batch in finite:
        assert batch.pop("mask").all()
    _assert_same(endless, finite * 2)


def test_eval_root_is_read_for_evaluation_only(folder_config, tmp_path_factory):
    other = tmp_path_factory.mktemp("held_out")
    (other / "wasp").mkdir()
    Image.new("RGB", (9, 9)).save(other / "wasp" / "1.png")
    folder_config.eval_root = str(other)
    assert make_source(folder_config, train=False).class_names == ("wasp",)
    assert make_source(folder_config).class_names == ("ant", "bee")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"source": "imagenet"}, "source='imagenet' is unknown; choose one of 'photos', 'folder', 'tfds', 'latents'"),
        ({"height": 0}, "height=0 must be at least 1"),
        ({"width": -3}, "width=-3 must be at least 1"),
        ({"num_workers": -1}, "num_workers=-1 must be at least 0"),
        ({"min_scale": 0.9, "max_scale": 0.5}, "min_scale=0.9 and max_scale=0.5 must satisfy"),
        ({"max_scale": 1.5}, "max_scale=1.5"),
        ({"holdout": 0.8}, "holdout=0.8"),
        ({"source": "folder"}, "needs root"),
        ({"source": "tfds"}, "needs root, .* a prepared data set"),
        ({"source": "latents"}, "needs root, .* eqjax.cli.cache_latents"),
        ({"source": "folder", "root": "x", "class_file": "y"}, "not both"),
        ({"source": "folder", "root": "x", "resize": 4}, "resize=4 must be at least 8"),
        ({"source": "folder", "root": "x", "max_corrupt_fraction": 2.0}, "max_corrupt_fraction=2.0"),
    ],
)
def test_bad_fields_are_named(config, fields, message):
    config.update(fields)
    with pytest.raises(ValueError, match=message):
        make_source(config)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 5, "process": (0, 2)}, "batch_size=5 must be a positive multiple.*process_count=2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"process": (2, 2)}, "process_index=2 must lie in"),
        ({"process": (0, None)}, "both or neither"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments_are_named(config, arguments, message):
    with pytest.raises(ValueError, match=message):
        _take(config, 1, **arguments)
