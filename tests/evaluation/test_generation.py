"""Generation: killed and resumed, any batch and number of devices, the content of files, and rejected arguments."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from eqjax import sharding
from eqjax.evaluation import Extractor, GenerationOptions, SampleFolder, compare, feature_metrics, generate, image_sets
from eqjax.evaluation.protocol import weights_id
from tests import bit_flips
from tests.evaluation import tiny_models

OPTIONS = GenerationOptions(num_columns=4, guidance_scale=2.0, num_flow_steps=3, seed=7)
COUNT = 24
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model():
    return tiny_models.model()


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """An uninterrupted run on all (four) devices."""
    return generate(model, OPTIONS, COUNT, tmp_path_factory.mktemp("whole"), per_device_batch_size=2)


def images(samples):
    return np.concatenate(list(samples.batches()))


def test_one_device_and_other_batches_give_the_same_images_and_metrics(model, whole, tmp_path):
    one = sharding.make_mesh(jax.devices()[:1])
    alone = generate(model, OPTIONS, COUNT, tmp_path / "one", mesh=one, per_device_batch_size=2)
    assert images(whole).std() > 10
    np.testing.assert_array_equal(images(alone), images(whole))
    # Matrix products of other sizes round differently, so a value next to a half may round the other way.
    other = generate(model, OPTIONS, COUNT, tmp_path / "other", mesh=one, per_device_batch_size=24)
    difference = np.abs(images(other).astype(int) - images(whole))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    network, results = tiny_models.network(), []
    for mesh, rows in ((one, 7), (sharding.make_mesh(), 2)):
        extractor = Extractor(network, mesh, rows)
        found = extractor.collect(whole.batches(), COUNT, num_stored_features=COUNT)
        reference = extractor.collect(iter([images(whole)[:, ::-1]]), COUNT, num_stored_features=COUNT).statistics
        results.append(compare(reference, found.statistics, subset_size=12, num_subsets=3) | found.scores)
    assert set(results[0]) >= {"fid", "sfid", "inception_score", "inception_score_file_order", "kid", "precision"}
    # The spread of three values of KID: what rounding changes is relative to the kernels' means, which cancel in it.
    spreads = [result.pop("kid_std") for result in results]
    assert spreads[1] == pytest.approx(spreads[0], rel=1e-6, abs=1e-7)
    assert results[1] == pytest.approx(results[0], rel=1e-6)


def test_images_depend_on_seed_class_and_number(model, whole, tmp_path):
    other = generate(model, dataclasses.replace(OPTIONS, seed=8), 8, tmp_path / "seed", per_device_batch_size=2)
    stronger = generate(
        model, dataclasses.replace(OPTIONS, guidance_scale=5.0), 8, tmp_path / "g", per_device_batch_size=2
    )
    generated = images(whole)
    assert (images(other) != generated[:8]).mean() > 0.5
    assert (images(stronger) != generated[:8]).mean() > 0.01
    assert len({image.tobytes() for image in generated}) == COUNT
    np.testing.assert_array_equal(np.bincount(whole.labels), [8, 8, 8])


PROGRAM = """
import sys, time
from eqjax.evaluation import SampleFolder, generate
from tests.evaluation import test_generation, tiny_models
write = SampleFolder.write
def slow(self, first, images):
    write(self, first, images)
    print("shard", flush=True)
    time.sleep(0.5)
SampleFolder.write = slow
generate(tiny_models.model(), test_generation.OPTIONS, test_generation.COUNT, sys.argv[1], per_device_batch_size=2)
"""


def test_killed_and_resumed_equals_uninterrupted(model, whole, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = SampleFolder(tmp_path, COUNT, 3).num_available()
    assert 0 < done < COUNT
    before = {name: (tmp_path / "shards" / name).stat().st_mtime_ns for name in os.listdir(tmp_path / "shards")}
    (tmp_path / "shards" / "tmpxyz.tmp").write_bytes(b"half a shard")
    resumed = generate(model, OPTIONS, COUNT, tmp_path, per_device_batch_size=2)
    np.testing.assert_array_equal(images(resumed), images(whole))
    assert {name: (tmp_path / "shards" / name).stat().st_mtime_ns for name in before} == before


def test_more_and_fewer_images_of_the_same_run(model, whole, tmp_path):
    generate(model, OPTIONS, 5, tmp_path, per_device_batch_size=2)
    np.testing.assert_array_equal(images(generate(model, OPTIONS, 3, tmp_path)), images(whole)[:3])
    longer = generate(model, OPTIONS, 9, tmp_path, per_device_batch_size=2)
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


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    samples = SampleFolder(tmp_path, 4, 2)
    samples.write(0, np.zeros((2, 4, 4, 3), np.uint8))
    leftover = tmp_path / "shards" / "00000002-00000003-12345678.npy.k3v_x9ab.tmp"
    leftover.write_bytes(b"half")
    samples.check_protocol({})
    assert leftover.exists()  # As new as it is, another process may be writing it.
    os.utime(leftover, (0, 0))
    samples.check_protocol({})
    (name,) = os.listdir(tmp_path / "shards")
    assert name.startswith("00000000-00000001-") and samples.num_available() == 2


def test_flipped_bits_of_a_shard_are_found(tmp_path):
    samples = SampleFolder(tmp_path, 2, 2)
    samples.write(0, np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8))
    (path,) = (tmp_path / "shards").iterdir()
    (expected,), found = samples.batches(), 0
    for place, bit in bit_flips.flipped(path, 100):
        try:
            (read,) = samples.batches()
            np.testing.assert_array_equal(read, expected, err_msg=f"bit {bit} of byte {place}")
        except ValueError:
            found += 1
    assert found > 50  # The header is padded with spaces.
    list(bit_flips.flipped(path, 1))
    path.rename(path.with_name("00000000-00000001-00000000.npy"))
    with pytest.raises(ValueError, match=r"00000000.npy is damaged, as its checksum differs; remove it and all later"):
        samples.write_npz()


def test_an_npz_that_is_interrupted_does_not_appear(tmp_path):
    def read_image(position):
        if position == 3:
            raise KeyboardInterrupt
        return np.zeros((4, 4, 3), np.uint8)

    with pytest.raises(KeyboardInterrupt):
        image_sets.write_npz(tmp_path / "s.npz", 5, read_image, np.zeros(5, int), batch_size=1)
    assert os.listdir(tmp_path) == []


def test_a_number_of_images_that_is_no_multiple_of_the_classes_is_logged(model, tmp_path, caplog):
    with caplog.at_level("WARNING"):
        samples = generate(model, OPTIONS, 5, tmp_path, per_device_batch_size=2)
    assert "5 images do not divide by 3 classes: classes 0 … 1 get 2 each, the others 1" in caplog.text
    np.testing.assert_array_equal(np.bincount(samples.labels), [2, 2, 1])


def test_a_folder_of_another_protocol_is_rejected(model, whole):
    with pytest.raises(ValueError, match=r"images of another protocol(.|\n)*guidance_scale: folder 2.0, now 3.0"):
        generate(model, dataclasses.replace(OPTIONS, guidance_scale=3.0), COUNT, whole.folder)
    other = model.replace(generator_params=jax.tree.map(lambda p: p * 1.001, model.generator_params))
    assert weights_id(other) != weights_id(model)
    with pytest.raises(ValueError, match=r"images of another protocol(.|\n)*weights: folder"):
        generate(other, OPTIONS, COUNT, whole.folder)


def test_images_that_are_not_finite_are_named_and_not_written(model, tmp_path):
    broken = model.replace(generator_params=jax.tree.map(lambda p: p * np.nan, model.generator_params))
    with pytest.raises(FloatingPointError, match=r"images \[0, 1, 2, 3, 4, 5, 6, 7\] have values that are not finite"):
        generate(broken, OPTIONS, COUNT, tmp_path, per_device_batch_size=2)
    assert os.listdir(tmp_path) == ["protocol.json"]


def test_a_gap_between_shards_is_found(tmp_path):
    gap = SampleFolder(tmp_path, 4, 3)
    gap.write(0, np.zeros((2, 4, 4, 3), np.uint8))
    gap.write(3, np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="00000003-00000003-[0-9a-f]{8}.npy where image 2 should be next"):
        gap.num_available()


def test_no_images_are_rejected(model, tmp_path):
    with pytest.raises(ValueError, match="num_images=0 must be at least 1"):
        generate(model, OPTIONS, 0, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(solver="eular"), "solver='eular' must be one of"),
        (dict(time_grid="cosin"), "time_grid='cosin' must be one of"),
        (dict(guidance_schedule="lin"), "guidance_schedule='lin' must be one of"),
        (dict(num_flow_steps=0), "num_flow_steps=0 must be an integer ≥ 1"),
        (dict(guidance_scale=-1.0), "guidance_scale=-1.0 must be a finite number ≥ 0"),
        (dict(guidance_scale=[1.0, 2.0, 3.0]), "guidance_scale"),
        (dict(temperature=-1.0), "temperature=-1.0 must be a finite number ≥ 0"),
        (dict(max_position=-1), "max_position=-1 must be an integer ≥ 0"),
        (dict(num_columns=0), "num_columns=0 must be ≥ 1"),
    ],
)
def test_options_out_of_range_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OPTIONS, **change)


def test_a_model_without_a_half_is_rejected_before_anything_is_written(model, tmp_path):
    for half in ("tokenizer", "generator"):
        with pytest.raises(ValueError, match=f"loaded without a {half}"):
            generate(model.replace(**{half: None}), OPTIONS, COUNT, tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_protocol_beside_the_images_holds_all_options_and_the_weights(whole, model):
    protocol = json.loads((pathlib.Path(whole.folder) / "protocol.json").read_text())
    weights, dtype, precision = (protocol.pop(name) for name in ("weights", "dtype", "precision"))
    assert GenerationOptions(**protocol) == OPTIONS and weights == weights_id(model) and len(weights) == 16
    assert (dtype, precision) == ("float32", "highest")
