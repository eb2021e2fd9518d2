"""Families of transforms: random elements, grids, and what is refused."""

from fractions import Fraction

import jax
import numpy as np
import pytest

from eqjax.equivariance import ColumnGeometry, act_image, flips, product, scales, shifts, warps
from eqjax.equivariance.actions import move
from eqjax.equivariance.groups import identity

GROUP = product(shifts(6, step=2), flips(), warps(32, knots=4), scales("1/2", 1))


def draw(group, count, scale=None):
    return jax.jit(jax.vmap(lambda key: group.sample(key, scale)))(jax.random.split(jax.random.key(1), count))


def test_random_elements_are_of_the_family():
    drawn = draw(GROUP, 200, Fraction(1, 2))
    assert set(np.unique(drawn.shift)) == {-6, -4, -2, 0, 2, 4, 6}
    assert 0.4 < drawn.flip.mean() < 0.6 and drawn.scale == Fraction(1, 2)
    assert (np.diff(drawn.warp.target, axis=1) > 0).all()
    np.testing.assert_array_equal(drawn.warp.target[:, [0, -1]], np.tile([-16, 16], (200, 1)))
    # The local scale is exp(strength · unit noise), normalized.
    local = np.log(np.diff(drawn.warp.target, axis=1) / 8)
    assert 0.1 < (local - local.mean(1, keepdims=True)).std() < 0.25
    real = draw(shifts(3), 200)
    assert len(np.unique(real.shift)) > 150 and 2.8 < np.abs(real.shift).max() <= 3
    assert not real.flip.any() and real.warp is None


def test_steps_share_one_program():
    count = 0

    @jax.jit
    def step(key, images):
        nonlocal count
        count += 1
        return act_image(ColumnGeometry(4), product(shifts(6), flips(), warps(32)).sample(key), images)[0]

    images = np.random.default_rng(0).normal(size=(1, 2, 32, 3)).astype(np.float32)
    results = [step(jax.random.key(seed), images) for seed in range(3)]
    assert count == 1 and not np.allclose(results[0], results[1])


def test_all_processes_draw_the_same_scale():
    group = scales("1/4", "1/2", "3/4")
    drawn = [group.draw_scale(7, step) for step in range(60)]
    assert drawn == [group.draw_scale(7, step) for step in range(60)]
    assert set(drawn) == set(group.scales) and drawn != [group.draw_scale(8, step) for step in range(60)]


def test_grids_are_all_combinations():
    grid = GROUP.grid()
    assert len(grid) == 7 * 2 * 8 * 2
    assert {float(e.shift) for e in grid} == {-6, -4, -2, 0, 2, 4, 6}
    assert [float(e.shift) for e in shifts(32).grid(5)] == [-32, -16, 0, 16, 32]
    assert [float(e.shift) for e in shifts(32, step=1).grid(5)] == [-32, -16, 0, 16, 32]
    assert len(identity().grid()) == 1
    straight, first, second = (move(e, np.linspace(-16, 16, 9, dtype=np.float32)) for e in warps(32).grid(3))
    np.testing.assert_allclose(straight, np.linspace(-16, 16, 9), atol=1e-5)
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(first, move(warps(32).grid(3)[1], np.linspace(-16, 16, 9, dtype=np.float32)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: shifts(0), ValueError, "max_pixels=0 must be a finite number > 0"),
        (lambda: shifts(4, step=8), ValueError, "step=8 must be a finite number > 0 and ≤ 4"),
        (lambda: scales(), ValueError, "needs one or more widths"),
        (lambda: scales("a half"), ValueError, "scale='a half' must be a positive number or fraction"),
        (lambda: scales("1/0"), ValueError, "scale='1/0' must be"),
        (lambda: scales(-1), ValueError, "scale=-1 must be"),
        (lambda: warps(0), ValueError, "width=0 must be an integer ≥ 1"),
        (lambda: warps(32, strength=-1), ValueError, "strength=-1 must be"),
        (lambda: product(shifts(4), shifts(8)), ValueError, "have max_shift: 4.0 and 8.0; give one"),
        (lambda: product(3), TypeError, r"groups\[0\]=3 must be a Group"),
        (
            lambda: scales("1/2", 1).sample(jax.random.key(0)),
            ValueError,
            "has the scales 1/2, 1; .*scale=group.draw",
        ),
        (lambda: flips().sample(jax.random.key(0), Fraction(1, 2)), ValueError, "scale=1/2 is not one of"),
        (lambda: flips().grid(0), ValueError, "count=0 must be an integer ≥ 1"),
        (lambda: scales(1).draw_scale(0, -1), ValueError, "step=-1 must be"),
    ],
)
def test_impossible_families_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
