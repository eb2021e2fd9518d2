"""Passes over images and sources of images: results, stored features, and rejected input."""

import io
import zipfile

import numpy as np
from PIL import Image
import pytest

from eqjax import data
from eqjax.evaluation import Extractor, compare, image_sets
from eqjax.evaluation.features import stored_images
from eqjax.evaluation.statistics import StatisticsError
from tests import hostile_files
from tests.evaluation import tiny_models


@pytest.fixture(scope="module")
def extractor():
    return Extractor(tiny_models.network(), per_device_batch_size=2)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), np.uint8)


def test_a_pass_equals_numpy_in_any_batches(extractor, images):
    pool = np.concatenate([extractor(images[i : i + 8])["pool"] for i in range(0, 30, 8)])
    for sizes in ([30], [1, 13, 16]):
        batches = np.split(images, np.cumsum(sizes)[:-1])
        found = extractor.collect(iter(batches), 30, num_stored_features=20).statistics
        np.testing.assert_allclose(found.mean, pool.mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.covariance, np.cov(pool.astype(np.float64), rowvar=False), rtol=1e-6)
        np.testing.assert_array_equal(found.features, pool[stored_images(30, 20)])
        assert found.count == 30 and found.protocol["image_size"] == [16, 16] and found.spatial_mean.shape == (4,)


def test_stored_images_are_of_all_classes_of_sorted_files():
    stored = stored_images(50_000, 10_000)
    assert len(set(stored)) == 10_000 and (np.diff(stored) > 0).all()
    per_class = np.bincount(stored // 50, minlength=1000)  # Fifty images per class, class after class.
    assert (per_class > 0).all() and per_class.max() < 30
    np.testing.assert_array_equal(stored, stored_images(50_000, 10_000))
    np.testing.assert_array_equal(stored_images(30, 50), np.arange(30))
    assert len(stored_images(30, 0)) == 0


@pytest.mark.parametrize(
    ("num_stored", "rule"), [(30, None), (0, None), (20, "of 20 images, uniformly by RandomState(2020)")]
)
def test_the_protocol_records_which_features_were_stored(extractor, images, num_stored, rule):
    found = extractor.collect(iter([images]), 30, num_stored_features=num_stored).statistics
    assert found.protocol.get("features") == rule


def test_the_same_images_have_distance_zero(extractor, images):
    found = extractor.collect(iter([images]), 30, num_stored_features=30)
    result = compare(found.statistics, found.statistics, subset_size=10, num_subsets=2)
    assert result["fid"] == pytest.approx(0, abs=1e-6) and result["precision"] == result["recall"] == 1
    few = extractor.collect(iter([images[:5]]), 5)
    assert few.scores == {}  # Ten splits need ten images.


def test_bad_images_are_rejected(extractor, images):
    wrong = images.astype(np.float32)
    wrong[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"images \[3\] of a batch of 30 hold NaN"):
        extractor.collect(iter([wrong]), 30)
    with pytest.raises(ValueError, match="images are float32 .* eqjax.pixels.to_uint8"):
        extractor.collect(iter([images / np.float32(255)]), 30)
    with pytest.raises(ValueError, match="mixed sizes: 16 × 16 first, then 16 × 8"):
        extractor.collect(iter([images[:20], images[20:, :, :8]]), 30)
    for count in (29, 31):
        with pytest.raises(
            ValueError, match=f"30 images arrived; expected num_images={count}|more than num_images={count}"
        ):
            extractor.collect(iter([images]), count)


def test_sources_of_images(tmp_path, images):
    for name, image in (("b/2.png", images[1]), ("a/1.png", images[0])):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "set" / name)
    found = image_sets.from_path(tmp_path / "set")
    np.testing.assert_array_equal(np.concatenate(list(found.batches())), images[:2])
    Image.fromarray(images[2, :8]).save(tmp_path / "set" / "c.png")
    with pytest.raises(ValueError, match="mixed sizes: .*1.png is 16 × 16, .*c.png is 8 × 16"):
        list(image_sets.from_path(tmp_path / "set").batches())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        image_sets.from_path(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no folder and no npz"):
        image_sets.from_path(tmp_path / "absent")
    config = data.default_config()
    config.update(height=16, width=32)
    photos = image_sets.from_data(config, num_images=13, batch_size=5)
    assert photos.source == "photos, evaluation crops"
    config.update(source="folder", root=str(tmp_path / "set"), resize=16, classes=("a", "b"))
    assert image_sets.from_data(config).source == f"folder {tmp_path / 'set'}, shorter side 16, evaluation crops"
    assert [batch.shape for batch in photos.batches()] == [(5, 16, 32, 3), (5, 16, 32, 3), (3, 16, 32, 3)]


def test_a_broken_image_is_named(tmp_path, images):
    Image.fromarray(images[0]).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    (tmp_path / "3.jpg").write_text("no image")
    for name in ("2.png", "3.jpg"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as an image .*: repair or remove it"):
            list(image_sets.from_folder(tmp_path).batches())
        (tmp_path / name).unlink()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_byte_of_an_npz_is_reported_or_harmless(tmp_path, images, save):
    save(tmp_path / "s.npz", images)
    whole = (tmp_path / "s.npz").read_bytes()
    for place in (len(whole) // 2, 60, 150):  # Among the images, in the zip's header, in the array's.
        (tmp_path / "s.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        error, found = None, []
        try:
            found = list(image_sets.from_path(tmp_path / "s.npz").batches())
        except StatisticsError as raised:
            error = str(raised)
        if error is None:
            assert place != len(whole) // 2 and len(np.concatenate(found)) == 30
        else:
            assert "s.npz" in error


def test_an_npz_with_fewer_images_than_its_header_promises_is_rejected(tmp_path, images):
    whole = io.BytesIO()
    np.save(whole, images)
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as archive:
        archive.writestr("arr_0.npy", whole.getvalue()[:-1])
    with pytest.raises(StatisticsError, match=r"s.npz: arr_0 \(30, 16, 16, 3\) of uint8 does not have the 23167 bytes"):
        list(image_sets.from_npz(tmp_path / "s.npz").batches())


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((2**15, 512, 512, 3), 0, "does not have the"),
        ((4000, 64, 64, 3), 4000 * 64 * 64 * 3, "more than 256 times its size"),
        ((1, 40_000, 20_000, 3), 0, "does not have the"),
        ((2**62, 2**62, 4, 3), 0, "does not have the"),
        ((-1, 4, 4, 3), 48, r"has shape \(-1, 4, 4, 3\)"),
    ],
)
def test_an_npz_that_would_expand_without_bound_is_refused(tmp_path, shape, size, message):
    with zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", hostile_files.npy("|u1", shape, bytes(size)))
    with pytest.raises(StatisticsError, match=rf"s\.npz.*{message}"):
        image_sets.from_npz(tmp_path / "s.npz")


def test_large_images_come_in_smaller_batches(tmp_path, images, monkeypatch):
    np.savez(tmp_path / "s.npz", images)
    monkeypatch.setattr(image_sets, "_BATCH_BYTES", 8 * 16 * 16 * 3)
    found = list(image_sets.from_npz(tmp_path / "s.npz").batches())
    assert [len(batch) for batch in found] == [8, 8, 8, 6]
    np.testing.assert_array_equal(np.concatenate(found), images)
    monkeypatch.setattr(image_sets.image_files, "MAX_PIXELS", 200)
    with pytest.raises(StatisticsError, match="more than 200 pixels per image"):
        image_sets.from_npz(tmp_path / "s.npz")


def test_an_npz_without_images_is_rejected(tmp_path):
    np.savez(tmp_path / "two.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(StatisticsError, match=r"holds the arrays \['mu', 'sigma'\]; images are expected in arr_0"):
        image_sets.from_path(tmp_path / "two.npz")
    np.savez(tmp_path / "flat.npz", np.zeros((3, 4)))
    with pytest.raises(StatisticsError, match=r"arr_0 in .* is float64 \(3, 4\); images are uint8"):
        image_sets.from_path(tmp_path / "flat.npz")
    np.savez(tmp_path / "objects.npz", np.array([object()]))
    with pytest.raises(StatisticsError, match="objects.npz cannot be read as npz .arr_0 holds Python objects"):
        image_sets.from_path(tmp_path / "objects.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(StatisticsError, match="text.npz cannot be read as npz"):
        image_sets.from_path(tmp_path / "text.npz")
    np.savez(tmp_path / "none.npz", np.zeros((0, 4, 4, 3), np.uint8))
    with pytest.raises(StatisticsError, match=r"arr_0 in .*none.npz is uint8 \(0, 4, 4, 3\): empty"):
        image_sets.from_path(tmp_path / "none.npz")
    nan = np.full((2, 4, 4, 3), np.nan, np.float32)
    np.savez(tmp_path / "nan.npz", nan)
    found = image_sets.from_path(tmp_path / "nan.npz")
    with pytest.raises(ValueError, match=r"images \[0, 1\] of a batch of 2 hold NaN"):
        Extractor(tiny_models.network()).collect(found.batches(), found.count)
