"""Panoramas that are steered while they run, and images that grow to both sides."""

import itertools
from typing import Any

import numpy as np
import pytest

from eqjax import outpaint, panorama, two_sides
from eqjax.sampling import streaming
from tests.compilations import count_compilations
from tests.sampling.small_models import local_model, published_model

OPTIONS: dict[str, Any] = dict(guidance_scale=3.0, num_flow_steps=2, strip_columns=5, guidance_schedule="constant")


@pytest.fixture(name="latents")
def _latents(monkeypatch):
    """All latents that decoders receive."""
    received: list[np.ndarray] = []
    receive = streaming.StreamDecoder.receive
    monkeypatch.setattr(
        streaming.StreamDecoder, "receive", lambda self, columns: received.append(columns) or receive(self, columns)
    )
    return received


def joined(strips):
    return np.concatenate(list(strips), axis=-2)


def largest_difference(image, other):
    return np.abs(np.asarray(image, int) - np.asarray(other, int)).max()


def test_a_steering_counts_from_the_next_sampled_column_on(latents):
    m = local_model()
    strips = panorama(m, "cat", seed=3, **OPTIONS)
    next(strips)
    k = strips.sampled
    assert k > strips.emitted == 5
    strips.steer("dog")
    steered = joined(itertools.islice(strips, 6))
    found = np.concatenate(latents)
    latents.clear()
    # A schedule that changes at the same column.
    expected = panorama(m, [("cat", k), ("dog", None)], seed=3, **OPTIONS)
    image = joined(itertools.islice(expected, 7))
    np.testing.assert_allclose(found, np.concatenate(latents), atol=1e-5)
    assert largest_difference(image[:, 10:], steered) <= 1
    unsteered = joined(itertools.islice(panorama(m, "cat", seed=3, **OPTIONS), 7))
    assert largest_difference(unsteered[:, :40], image[:, :40]) <= 1 and (unsteered[:, 40:] != image[:, 40:]).any()


def test_mixes_guidance_and_temperature_are_those_of_schedules_and_options(latents):
    m = local_model()

    def first_latents(strips):
        latents.clear()
        next(strips)
        return latents[0]

    begun = {name: panorama(m, "cat", seed=3, **OPTIONS) for name in ("half", "whole", "cool", "free", "again")}
    begun["half"].steer(("cat", "dog"), mix=0.5)
    begun["whole"].steer(["cat", "dog"], mix=1.0)
    begun["cool"].steer(temperature=0.5)
    begun["free"].steer(guidance_scale=1.0)
    begun["again"].steer("eel")
    begun["again"].steer(0)
    found = {name: first_latents(strips) for name, strips in begun.items()}
    plain = first_latents(panorama(m, "cat", seed=3, **OPTIONS))
    np.testing.assert_array_equal(found["again"], plain)
    np.testing.assert_array_equal(found["whole"], first_latents(panorama(m, "dog", seed=3, **OPTIONS)))
    cool = first_latents(panorama(m, "cat", seed=3, **OPTIONS, temperature=0.5))
    np.testing.assert_allclose(found["cool"], cool, atol=1e-5)
    free = first_latents(panorama(m, "cat", seed=3, **dict(OPTIONS, guidance_scale=1.0)))
    np.testing.assert_allclose(found["free"], free, atol=1e-4)
    # The first column of a transition of one column is half of each class.
    blended = panorama(m, [("cat", 3), ("dog", None)], seed=3, transition=1, **OPTIONS)
    late = panorama(m, "cat", seed=3, **dict(OPTIONS, strip_columns=3))
    late._sample_strip()
    late.steer(("cat", "dog"), mix=0.5)
    np.testing.assert_allclose(late._sample_strip()[0], first_latents(blended)[3], atol=1e-5)
    assert len({values.tobytes() for values in (*found.values(), plain)}) == 5


@pytest.mark.parametrize(("make_model", "seeds"), [(local_model, None), (published_model, (4, 7))])
def test_a_steered_panorama_resumes_with_the_same_pixels(make_model, seeds, tmp_path):
    m = make_model()
    strips = panorama(m, [("cat", 9), ("dog", None)], seeds=seeds, transition=3, **OPTIONS)
    next(strips)
    strips.steer(("eel", "dog"), mix=0.25, guidance_scale=2.0, temperature=0.9)
    next(strips)
    strips.steer(mix=0.5)
    strips.save(tmp_path / "state.npz")
    expected = joined(itertools.islice(strips, 5))
    again = panorama(m, state=tmp_path / "state.npz")
    resumed = joined(itertools.islice(again, 5))  # Strips that were ready come as one.
    np.testing.assert_array_equal(resumed[..., : expected.shape[-2], :], expected)
    again.steer(guidance_scale=5.0)  # What is not given stays.
    assert again.state()["about"].item() != strips.state()["about"].item()
    assert (again._steering.labels, again._steering.mix, again._steering.temperature) == ((2, 1), 0.5, 0.9)


def test_steering_compiles_nothing():
    m = local_model()
    strips = panorama(m, "cat", **OPTIONS)
    next(strips)
    with count_compilations() as compiled:
        for labels in ("dog", ("eel", "cat"), 1, (0, 1)):
            strips.steer(labels, guidance_scale=4.0, temperature=0.75)
            strips.steer(mix=0.5) if isinstance(labels, tuple) else None
            next(strips)
    assert not compiled


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(), "nothing to steer: give labels, mix, guidance_scale or temperature"),
        (dict(labels="dgo"), r"classes \['dgo'\] are not among this model's: .*; did you mean 'dog'"),
        (dict(labels=7), r"labels \[7\] are outside 0 … 3"),
        (dict(labels=[]), "labels must be class names or integers"),
        (dict(labels=("cat", "dog", "eel")), "labels has 3 classes; a panorama is steered to one class, or to two"),
        (dict(mix=0.5), r"mix=0.5 is the share of a second class, and there is none: give labels=\(first, second\)"),
        (dict(labels="cat", mix=0.5), "there is none"),
        (dict(labels=("cat", "dog"), mix=1.5), "mix=1.5 must be"),
        (dict(temperature=-1), "temperature=-1 must be"),
        (dict(guidance_scale="x"), "guidance_scale='x' must be"),
    ],
)
def test_a_bad_steering_is_refused_by_name_and_changes_nothing(changes, message):
    strips = panorama(local_model(), "cat", **OPTIONS)
    before = strips.state()["about"].item()
    with pytest.raises((TypeError, ValueError), match=message):
        strips.steer(**changes)
    assert strips.state()["about"].item() == before


def test_guidance_cannot_begin_later():
    strips = panorama(local_model(), "cat", num_flow_steps=2)
    strips.steer("dog", guidance_scale=1.0)
    with pytest.raises(ValueError, match="guidance_scale=2 needs the rows of the null class, and this .* begun"):
        strips.steer(guidance_scale=2.0)


def test_an_image_grows_to_both_sides_as_in_outpaint():
    m, image = local_model(), np.random.default_rng(0).integers(0, 256, (16, 10, 3), np.uint8)
    options = {name: value for name, value in OPTIONS.items() if name != "strip_columns"}
    labels = [("cat", 2), ("dog", None)]
    whole = outpaint(m, image, labels, left=50, right=50, seed=7, transition=2, **options)
    sides = two_sides(m, image, labels, seed=7, transition=2, **OPTIONS)
    np.testing.assert_array_equal(sides.center, image[:, 2:-2])
    right = joined(itertools.islice(sides.right, 4))
    left = [next(sides.left) for _ in range(4)][::-1]
    found = np.concatenate([*left, sides.center, right], axis=1)
    start = 2 * 50 + 2 - joined(left).shape[1]
    different = np.abs(found.astype(int) - whole[:, start : start + found.shape[1]]).max((0, 2)) > 1
    # At the seams outpaint fades reconstructions that leave the range of pixels.
    seams = 100 - start + np.array([0, 1, 8, 9])
    assert not set(np.flatnonzero(different)) - set(seams.tolist())
    floats = two_sides(m, image / np.float32(127.5) - 1, labels, seed=7, transition=2, **OPTIONS)
    np.testing.assert_array_equal(joined(itertools.islice(floats.right, 4)), right)
    # The seam lies between the image and its reconstruction.
    rebuilt = outpaint(m, image, labels, right=50, seed=7, transition=2, keep_pixels=False, **options)[:, 8:10]
    weight = np.array([0.75, 0.25])[:, None]
    assert largest_difference(right[:, :2], np.round(weight * image[:, 8:] + (1 - weight) * rebuilt)) <= 1
    sides.steer("eel")
    assert {side.panorama._steering.labels for side in (sides.left, sides.right)} == {(2,)}
    with pytest.raises(ValueError, match="the image has 2 columns of 2 pixels; expected 3 at least"):
        two_sides(m, image[:, :4], "cat", **OPTIONS)
