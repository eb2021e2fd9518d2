"""Generation: killed and resumed, any batch and number of devices, what the files hold, and what is refused."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from eqjax import sharding
from eqjax.evaluation import Extractor, Settings, compare, feature_metrics, generate, image_sets
from eqjax.evaluation.generation import Samples, fingerprint
from tests.evaluation import tiny_models

SETTINGS = Settings(num_columns=4, guidance_scale=2.0, num_flow_steps=3, seed=7)
COUNT = 24
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model():
    return tiny_models.model()


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """An uninterrupted run on all (four) devices."""
    return generate(model, SETTINGS, COUNT, tmp_path_factory.mktemp("whole"), rows_per_device=2)


def images(samples):
    return np.concatenate(list(samples.batches()))


def test_one_device_and_other_batches_give_the_same_images_and_metrics(model, whole, tmp_path):
    one = sharding.make_mesh(jax.devices()[:1])
    alone = generate(model, SETTINGS, COUNT, tmp_path / "one", mesh=one, rows_per_device=2)
    assert images(whole).std() > 10
    np.testing.assert_array_equal(images(alone), images(whole))
    # Other products of matrices are rounded otherwise, so that a value at a half may go to the other side.
    other = generate(model, SETTINGS, COUNT, tmp_path / "other", mesh=one, rows_per_device=24)
    difference = np.abs(images(other).astype(int) - images(whole))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    network, results = tiny_models.network(), []
    for mesh, rows in ((one, 7), (sharding.make_mesh(), 2)):
        extractor = Extractor(network, mesh, rows)
        found = extractor.collect(whole.batches(), COUNT, keep=COUNT)
        reference = extractor.collect(iter([images(whole)[:, ::-1]]), COUNT, keep=COUNT).statistics
        results.append(compare(reference, found, subset_size=12, subsets=3))
    assert set(results[0]) >= {"fid", "sfid", "inception_score", "inception_score_file_order", "kid", "precision"}
    assert results[1] == pytest.approx(results[0], rel=1e-6)


def test_images_depend_on_seed_class_and_number(model, whole, tmp_path):
    other = generate(model, dataclasses.replace(SETTINGS, seed=8), 8, tmp_path / "seed", rows_per_device=2)
    stronger = generate(model, dataclasses.replace(SETTINGS, guidance_scale=5.0), 8, tmp_path / "g", rows_per_device=2)
    drawn = images(whole)
    assert (images(other) != drawn[:8]).mean() > 0.5
    assert 0.01 < (images(stronger) != drawn[:8]).mean()
    assert len({image.tobytes() for image in drawn}) == COUNT
    np.testing.assert_array_equal(np.bincount(whole.labels), [8, 8, 8])


PROGRAM = """
import sys, time
from eqjax.evaluation import generate
from eqjax.evaluation.generation import Samples
from tests.evaluation import test_generation, tiny
write = Samples.write
def slow(self, first, images):
    write(self, first, images)
    print("shard", flush=True)
    time.sleep(0.5)
Samples.write = slow
generate(tiny_models.model(), test_generation.SETTINGS, test_generation.COUNT, sys.argv[1], rows_per_device=2)
"""


def test_killed_and_resumed_equals_uninterrupted(model, whole, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = Samples(tmp_path, COUNT, 3).available()
    assert 0 < done < COUNT
    before = {name: (tmp_path / "shards" / name).stat().st_mtime_ns for name in os.listdir(tmp_path / "shards")}
    (tmp_path / "shards" / "tmpxyz.tmp").write_bytes(b"half a shard")
    resumed = generate(model, SETTINGS, COUNT, tmp_path, rows_per_device=2)
    np.testing.assert_array_equal(images(resumed), images(whole))
    assert {name: (tmp_path / "shards" / name).stat().st_mtime_ns for name in before} == before


def test_more_and_fewer_images_of_the_same_run(model, whole, tmp_path):
    generate(model, SETTINGS, 5, tmp_path, rows_per_device=2)
    np.testing.assert_array_equal(images(generate(model, SETTINGS, 3, tmp_path)), images(whole)[:3])
    longer = generate(model, SETTINGS, 9, tmp_path, rows_per_device=2)
    np.testing.assert_array_equal(images(longer), images(whole)[:9])


def test_png_and_npz(whole):
    whole.write_png()
    names = sorted(os.listdir(os.path.join(whole.folder, "png")))
    assert len(names) == COUNT and names[4] == "00000004_0001.png"
    np.testing.assert_array_equal(Image.open(os.path.join(whole.folder, "png", names[4])), images(whole)[4])
    order = np.random.RandomState(feature_metrics.SHUFFLE_SEED).permutation(COUNT)
    with np.load(whole.write_npz()) as file:
        np.testing.assert_array_equal(file["arr_0"], images(whole)[order])
        np.testing.assert_array_equal(file["arr_1"], order % 3)
    read = image_sets.from_npz(os.path.join(whole.folder, "samples.npz"))
    np.testing.assert_array_equal(np.concatenate(list(read.batches())), images(whole)[order])
    folder = image_sets.from_path(os.path.join(whole.folder, "png"))
    np.testing.assert_array_equal(np.concatenate(list(folder.batches())), images(whole))


def test_an_npz_that_is_interrupted_does_not_appear(tmp_path):
    def row(place):
        if place == 3:
            raise KeyboardInterrupt
        return np.zeros((4, 4, 3), np.uint8)

    with pytest.raises(KeyboardInterrupt):
        image_sets.write_npz(tmp_path / "s.npz", 5, row, np.zeros(5), batch=1)
    assert os.listdir(tmp_path) == []


def test_a_number_that_does_not_divide_by_the_classes_says_what_it_does(model, tmp_path, caplog):
    with caplog.at_level("WARNING"):
        samples = generate(model, SETTINGS, 5, tmp_path, rows_per_device=2)
    assert "5 images do not divide by 3 classes: classes 0 … 1 get 2 each, the others 1" in caplog.text
    np.testing.assert_array_equal(np.bincount(samples.labels), [2, 2, 1])


def test_what_generation_refuses(model, whole, tmp_path):
    with pytest.raises(ValueError, match=r"images of another run(.|\n)*guidance_scale: there 2.0, now 3.0"):
        generate(model, dataclasses.replace(SETTINGS, guidance_scale=3.0), COUNT, whole.folder)
    other = model.replace(generator_params=jax.tree.map(lambda p: p * 1.001, model.generator_params))
    assert fingerprint(other) != fingerprint(model)
    with pytest.raises(ValueError, match=r"images of another run(.|\n)*weights: there"):
        generate(other, SETTINGS, COUNT, whole.folder)
    broken = model.replace(generator_params=jax.tree.map(lambda p: p * np.nan, model.generator_params))
    with pytest.raises(FloatingPointError, match=r"images \[0, 1, 2, 3, 4, 5, 6, 7\] have values that are not finite"):
        generate(broken, SETTINGS, COUNT, tmp_path / "nan", rows_per_device=2)
    assert os.listdir(tmp_path / "nan") == ["settings.json"]
    gap = Samples(tmp_path / "gap", 4, 3)
    gap.write(0, np.zeros((2, 4, 4, 3), np.uint8))
    gap.write(3, np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="00000003-00000003.npy where image 2 should be next"):
        gap.available()
    with pytest.raises(ValueError, match="num_images=0 must be at least 1"):
        generate(model, SETTINGS, 0, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(solver="eular"), "solver='eular' is not one of"),
        (dict(time_grid="cosin"), "time_grid='cosin' is not one of"),
        (dict(guidance_schedule="lin"), "guidance_schedule='lin'|schedule 'lin'"),
        (dict(num_flow_steps=0), "num_flow_steps=0 must be ≥ 1"),
        (dict(guidance_scale=-1.0), "guidance_scale=-1.0 must be ≥ 0"),
        (dict(temperature=-1.0), "temperature=-1.0 must be ≥ 0"),
        (dict(max_position=-1), "max_position=-1 must be ≥ 0"),
        (dict(num_columns=0), "num_columns=0 must be ≥ 1"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(model, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        generate(model, dataclasses.replace(SETTINGS, **change), COUNT, tmp_path)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="loaded without a tokenizer"):
        generate(model.replace(tokenizer=None), SETTINGS, COUNT, tmp_path)
    assert os.listdir(tmp_path) == []


def test_folders_of_older_runs_are_gone_on_with(model, whole, tmp_path):
    """Solver and time grid were once written under "more", and only where they were given."""
    written = json.loads((pathlib.Path(whole.folder) / "settings.json").read_text())
    old = {name: value for name, value in written.items() if name not in ("solver", "time_grid", "max_position")}
    folder = shutil.copytree(whole.folder, tmp_path / "old")
    (folder / "settings.json").write_text(json.dumps({**old, "more": {}}))
    np.testing.assert_array_equal(images(generate(model, SETTINGS, COUNT, folder)), images(whole))
    (folder / "settings.json").write_text(json.dumps({**old, "more": {"solver": "heun"}}))
    with pytest.raises(ValueError, match="solver: there 'heun', now 'euler'"):
        generate(model, SETTINGS, COUNT, folder)


def test_settings_are_beside_the_images(whole):
    settings = json.loads((pathlib.Path(whole.folder) / "settings.json").read_text())
    assert settings["seed"] == 7 and settings["guidance_scale"] == 2.0 and len(settings["weights"]) == 16
