"""Spectra, features and quality of images whose faults are known."""

import numpy as np
import pytest

from eqjax.evaluation.filter_bank import filter_features
from eqjax.evaluation.quality import LabeledImages, QualityReference
from eqjax.evaluation.spectrum import energy_kept, octave_power

COLUMN_WIDTH = 16


def textures(seed, count=24):
    """Three classes: smooth gray, noise, and stripes whose phase and height vary."""
    random = np.random.default_rng(seed)
    x = np.arange(64)
    images = []
    for _ in range(count):
        noise = random.normal(size=(3, 32, 64, 3))
        ramp = np.linspace(-40, 40, 32)[:, None, None] * random.uniform(0.5, 1)
        stripes = 60 * np.sin(x / 5 + random.uniform(0, 6))[:, None]
        images.append(128 + np.stack([ramp + 3 * noise[0], 40 * noise[1], stripes + 10 * noise[2]]))
    images = np.stack(images, 1).reshape(-1, 32, 64, 3)
    return LabeledImages(np.clip(images, 0, 255).astype(np.uint8), np.repeat(np.arange(3), count))


def blurred(images):
    x = images.astype(np.float64)
    x = (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, (1, 1), (1, 2))) / 4
    return x.astype(np.uint8)


@pytest.fixture(scope="module")
def reference():
    return QualityReference(textures(0), COLUMN_WIDTH)


@pytest.fixture(scope="module")
def real(reference):
    return reference.measure(textures(1))


def test_other_images_of_the_same_kinds_have_quality_one(real):
    for quality in real.classes.values():
        assert quality.recognized == 1
        np.testing.assert_allclose(quality.energy_kept, 1, atol=0.2)
        assert (quality.border, quality.middle, quality.diversity) == pytest.approx((1, 1, 1), abs=0.35)


def test_blur_loses_energy_the_more_the_finer(reference, real):
    images = textures(1)
    found = reference.measure(LabeledImages(blurred(images.images), images.labels))
    kept = found.classes[1].energy_kept  # Of noise.
    assert (np.diff(kept) < 0).all() and kept[0] > 0.75 and kept[-1] < 0.3
    assert found.frechet > 3 * real.frechet


def test_classes_are_recognized_by_more_than_their_sharpness(reference):
    images = textures(1)
    for _ in range(6):
        images = LabeledImages(blurred(images.images), images.labels)
    assert [found.recognized for found in reference.measure(images).classes.values()] == [1, 1, 1]


def test_classes_are_recognized_by_more_than_their_grain(reference):
    images = textures(1)
    noise = np.random.default_rng(2).normal(0, 20, images.images.shape)
    grainy = LabeledImages(np.clip(images.images + noise, 0, 255).astype(np.uint8), images.labels)
    assert [found.recognized for found in reference.measure(grainy).classes.values()] == [1, 1, 1]


def test_seams_are_found_in_the_class_that_has_them(reference):
    images = textures(1)
    seamed = images.images.copy()
    smooth = images.labels == 0
    seamed[smooth] += 20 * (np.arange(64) // COLUMN_WIDTH % 2)[:, None].astype(np.uint8)
    found = reference.measure(LabeledImages(seamed, images.labels))
    assert found.classes[0].border > 3 and found.classes[1].border == pytest.approx(1, abs=0.1)
    assert found.farthest("border") == found.classes[0].border


def test_paired_originals_replace_the_reference_in_spectra_and_roughness(reference):
    images = textures(1)
    soft = LabeledImages(blurred(images.images), images.labels)
    found = reference.measure(soft, paired=soft)
    assert found.mean("energy_kept").tolist() == pytest.approx([1] * 3) and found.mean("border") == 1


def test_images_that_are_alike_have_no_diversity(reference):
    images = textures(1, count=8)
    alike = images.images[np.repeat([0, 8, 16], 8)]
    assert reference.measure(LabeledImages(alike, images.labels)).mean("diversity") == 0


def test_images_of_other_classes_are_not_recognized(reference):
    images = textures(1)
    assert reference.measure(LabeledImages(images.images, (images.labels + 1) % 3)).mean("recognized") == 0


def test_a_wave_is_in_the_octave_of_its_frequency():
    for cycles, octave in ((3 / 64, 0), (6 / 64, 1), (12 / 64, 2), (24 / 64, 3)):
        for axis in (1, 2):
            wave = np.sin(2 * np.pi * cycles * np.arange(64)).reshape(np.roll([64, 1], axis - 1))
            power = octave_power(np.broadcast_to(wave[None, ..., None], (1, 64, 64, 3)))[0]
            assert power.argmax() == octave and power[octave] > 0.8 * power.sum()


def test_octaves_together_hold_the_variance_above_the_lowest():
    noise = np.random.default_rng(0).normal(size=(16, 64, 64, 1))
    assert octave_power(noise).sum(1).mean() == pytest.approx(np.pi / 4, rel=0.1)  # The disk's area in the square.


def test_what_cannot_be_compared_is_refused(reference):
    with pytest.raises(ValueError, match="8 × 64 pixels are too small"):
        octave_power(np.zeros((1, 8, 64, 3)))
    with pytest.raises(ValueError, match="compared at one size"):
        energy_kept(np.zeros((1, 16, 16, 3)), np.zeros((1, 16, 32, 3)))
    with pytest.raises(ValueError, match=r"uint8 images .*these are float64 \[1, 32, 32, 3\]"):
        filter_features(np.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match=r"H ≥ 32.*\[1, 16, 32, 3\]"):
        filter_features(np.zeros((1, 16, 32, 3), np.uint8))
    images = textures(0, count=1).images
    with pytest.raises(ValueError, match=r"\{0: 3\}.*two or more classes"):
        QualityReference(LabeledImages(images, np.zeros(3, int)), COLUMN_WIDTH)
    with pytest.raises(ValueError, match=r"\{7: 3\}.*\[0, 1, 2\]"):
        reference.measure(LabeledImages(images, np.full(3, 7)))
    with pytest.raises(ValueError, match=r"\{1: 1\}.*two or more of each"):
        reference.measure(LabeledImages(images[:1], np.array([1])))
