"""Which symmetries images have: a critic tells transformed images from images, or cannot."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.equivariance import ColumnGeometry, Overlap, flips, identity, measure_overlap, product, scales, shifts
from eqjax.equivariance.data_symmetries import _area_under_roc, _pair

GEOMETRY = ColumnGeometry(stride=8)
STEPS = 25


def sawtooth(seed, mirrored=False, closed=True, count=8):
    """Images of ramps that rise slowly to the right and fall at once, at random places and of random height."""
    rng = np.random.default_rng(seed)
    starts, heights = rng.uniform(0, 16, (2, count)) if closed else (np.zeros(count), np.zeros(count))
    ramps = (np.arange(32) + starts[:, None]) % 16 / 8 - 1
    images = np.broadcast_to((ramps * (0.5 + heights[:, None] / 32))[:, None, :, None], (count, 8, 32, 3))
    if mirrored:
        turned = rng.random(count) < 0.5
        images = np.where(turned[:, None, None, None], images[:, :, ::-1], images)
    return images.astype(np.float32)


def overlap(group, steps=STEPS, **kind):
    seen = [sawtooth(seed, **kind) for seed in range(STEPS)]
    others = [sawtooth(1000 + seed, **kind) for seed in range(6)]
    return measure_overlap(GEOMETRY, group, seen, others, steps=steps)


def test_a_critic_finds_out_whether_images_are_mirrored():
    lacking, having = overlap(flips()), overlap(flips(), mirrored=True)
    assert lacking.fraction < 0.1 and having.fraction > 0.8
    assert lacking.num_images == having.num_images == 48


def test_images_cut_anywhere_have_shifts_and_those_cut_at_one_place_lack_them():
    group = shifts(8)
    assert overlap(group).fraction > 0.8
    assert overlap(group, closed=False).fraction < 0.3


@pytest.mark.slow
def test_squeezed_ramps_are_steeper():
    # Half as wide, and as wide again as they were: the critic compares windows of the narrower width.
    for scale in ("1/2", "2"):
        assert overlap(scales(scale, "1")).fraction < 0.2


def test_windows_of_the_narrower_width_are_anywhere():
    images = jnp.broadcast_to(jnp.arange(32.0)[:, None], (1, 16, 32, 3))
    for scale, at in ((Fraction(1, 2), 0), (Fraction(2), 1)):
        pairs = [_pair(GEOMETRY, scales(scale), scale, jax.random.key(seed), images) for seed in range(12)]
        assert all(real.shape == moved.shape and valid.shape == real.shape[2:3] for real, moved, valid in pairs)
        starts = [round(float(pair[at][0, 0, 0, 0])) for pair in pairs]
        assert min(starts) < 6 and max(starts) > 10


@pytest.mark.slow
def test_a_product_is_had_if_all_of_its_parts_are():
    assert overlap(product(shifts(8), flips())).fraction < 0.2


def test_an_untrained_critic_and_an_untold_seed_repeat_themselves():
    first, second = overlap(flips(), steps=1), overlap(flips(), steps=1)
    assert first == second


def test_batches_are_repeated_and_bytes_are_images_too():
    images = sawtooth(0)
    floats = measure_overlap(GEOMETRY, flips(), [images], iter([images]), steps=3)
    as_bytes = np.round((images + 1) * 127.5).astype(np.uint8)
    found = measure_overlap(GEOMETRY, flips(), (batch for batch in [as_bytes] * 3), [as_bytes], steps=3)
    assert found.auc == pytest.approx(floats.auc, abs=0.05) and found.num_images == 8


def test_the_area_under_the_curve_counts_pairs():
    above, below = np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.5])
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in above for b in below]
    assert _area_under_roc(above, below) == pytest.approx(np.mean(pairs))
    assert [Overlap(auc, 1).fraction for auc in (0.25, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"group": identity()}, ValueError, "the identity alone"),
        ({"group": "flips"}, TypeError, "a Group, such as flips"),
        ({"geometry": 16}, TypeError, "a ColumnGeometry"),
        ({"batches": []}, ValueError, "batches has no batches"),
        ({"batches": iter([sawtooth(0)])}, ValueError, "was exhausted before"),
        ({"held_out": []}, ValueError, "held_out has no batches"),
        ({"held_out": [np.zeros((2, 16, 32, 3), np.int32)]}, TypeError, "held_out holds int32"),
        ({"held_out": [[1, 2]]}, TypeError, "held_out holds list"),
        ({"batches": [np.zeros((16, 32, 3), np.uint8)]}, ValueError, r"shape \(16, 32, 3\)"),
        ({"steps": 0}, ValueError, "steps=0 must be"),
        ({"seed": -1}, ValueError, "seed=-1 must be"),
    ],
)
def test_wrong_input_is_refused(arguments, error, message):
    whole = {"geometry": GEOMETRY, "group": flips(), "batches": [sawtooth(0)], "held_out": [sawtooth(1)], "steps": 2}
    with pytest.raises(error, match=message):
        measure_overlap(**{**whole, **arguments})
