"""Transforms: the laws of the group, of images and of columns alike; round trips; what is valid; what is refused."""

from fractions import Fraction
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from eqjax.equivariance import ColumnGeometry, Warp, act_columns, act_image, compose, inverse, make_action, warps
from eqjax.equivariance.actions import move, move_back

STRIDE, WIDTH = 4, 32
GEOMETRY = ColumnGeometry(stride=STRIDE)
CIRCULAR = ColumnGeometry(stride=STRIDE, boundary="circular", interpolation="fourier")
WARP = Warp(jnp.array([-16.0, -4.0, 5.0, 16.0]), jnp.array([-16.0, -7.0, 6.5, 16.0]))
ELEMENTS = {
    "identity": make_action(),
    "whole shift": make_action(shift=-8),
    "fractional shift": make_action(shift=2.625),
    "flip": make_action(flip=True),
    "warp": make_action(warp=WARP),
    "scale": make_action(scale=0.5),
    "all": make_action(shift=3.5, flip=True, warp=WARP, scale=1.5),
}
pairs = pytest.mark.parametrize(("a", "b"), list(itertools.product(ELEMENTS, ELEMENTS)))
every_element = pytest.mark.parametrize("name", ELEMENTS)


def smooth(size, channels, seed=0):
    """Returns periodic signals [2, size, channels] without energy in the upper half of the frequencies."""
    noise = np.random.default_rng(seed).normal(size=(2, size, channels))
    spectrum = np.fft.rfft(noise, axis=1)
    spectrum[:, size // 4 :] = 0
    return np.fft.irfft(spectrum, size, axis=1).astype(np.float32)


def images():
    return smooth(WIDTH, 3)[:, None].repeat(2, axis=1)


def sides():
    """Returns (act, signal, pixels per sample) for images and for columns."""
    return {"images": (act_image, images(), 1), "columns": (act_columns, smooth(WIDTH // STRIDE, 5), STRIDE)}


both_sides = pytest.mark.parametrize("side", ["images", "columns"])


@pairs
def test_positions_compose(a, b):
    a, b = ELEMENTS[a], ELEMENTS[b]
    positions = np.linspace(-40, 40, 161, dtype=np.float32)
    np.testing.assert_allclose(move(compose(a, b), positions), move(a, move(b, positions)), atol=2e-5)


@every_element
def test_positions_return_by_the_inverse(name):
    element, positions = ELEMENTS[name], np.linspace(-40, 40, 161, dtype=np.float32)
    np.testing.assert_allclose(move(inverse(element), move(element, positions)), positions, atol=2e-5)
    np.testing.assert_allclose(move_back(element, move(element, positions)), positions, atol=2e-5)
    twice = inverse(inverse(element))
    np.testing.assert_allclose(move(twice, positions), move(element, positions), atol=2e-5)
    assert twice.scale == element.scale and inverse(element).scale * element.scale == 1


@both_sides
@pytest.mark.parametrize("a", ["whole shift", "fractional shift", "flip"])
@pytest.mark.parametrize("b", ["whole shift", "fractional shift", "flip"])
def test_the_action_is_a_homomorphism(side, a, b):
    """Acting by b, then by a, is acting by their composition, in any order of flips and shifts."""
    act, x, _ = sides()[side]
    a, b = ELEMENTS[a], ELEMENTS[b]
    one_by_one = act(CIRCULAR, a, act(CIRCULAR, b, x)[0])[0]
    np.testing.assert_allclose(act(CIRCULAR, compose(a, b), x)[0], one_by_one, atol=1e-5)
    if a is not b:
        assert np.abs(one_by_one - x).max() > 0.1


@both_sides
def test_the_identity_is_exact(side):
    act, x, _ = sides()[side]
    for geometry in (GEOMETRY, CIRCULAR):
        moved, valid = act(geometry, make_action(), x)
        np.testing.assert_array_equal(moved, x)
        assert valid.all()


@both_sides
@pytest.mark.parametrize("interpolation", ["linear", "fourier"])
@pytest.mark.parametrize("boundary", ["crop", "circular"])
def test_whole_shifts_and_flips_are_exact(side, boundary, interpolation):
    act, x, pixels = sides()[side]
    axis = x.ndim - 2
    geometry = ColumnGeometry(STRIDE, boundary=boundary, interpolation=interpolation)
    moved, valid = act(geometry, make_action(shift=2 * pixels), x)
    expected = np.roll(x, 2, axis=axis)
    np.testing.assert_array_equal(moved[..., 2:, :], expected[..., 2:, :])
    np.testing.assert_array_equal(valid, (np.arange(x.shape[axis]) >= 2) | (boundary == "circular"))
    if boundary == "circular":
        np.testing.assert_array_equal(moved, expected)
    else:  # What enters is mirrored content.
        np.testing.assert_array_equal(moved[..., :2, :], x[..., 1::-1, :])
    flipped, valid = act(geometry, make_action(flip=True), x)
    np.testing.assert_array_equal(flipped, np.flip(x, axis))
    assert valid.all()


@both_sides
@pytest.mark.parametrize("shift", [0.5, 1.7, 3.0, -2.25])
def test_fourier_shifts_return_and_agree_with_the_fft(side, shift):
    act, x, pixels = sides()[side]
    element = make_action(shift=shift * pixels)
    moved, _ = act(CIRCULAR, element, x)
    back, _ = act(CIRCULAR, inverse(element), moved)
    assert np.linalg.norm(back - x) / np.linalg.norm(x) <= 1e-6
    frequencies = np.fft.rfftfreq(x.shape[-2])[:, None]
    expected = np.fft.irfft(np.fft.rfft(x, axis=-2) * np.exp(-2j * np.pi * shift * frequencies), x.shape[-2], axis=-2)
    np.testing.assert_allclose(moved, expected, atol=2e-6)


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("boundary", ["circular", "crop"])
def test_fourier_interpolation_reproduces_waves(boundary, size):
    """Of odd and even sizes; with the crop boundary those of a cosine transform."""
    geometry = ColumnGeometry(1, boundary=boundary, interpolation="fourier")
    places = np.arange(size) - 0.3  # A shift by 0.3 samples.
    period = size if boundary == "circular" else 2 * size
    for k in range((size + 1) // 2 if boundary == "circular" else size):

        def wave(t, k=k):
            return np.cos(2 * np.pi * k * (t + 0.5) / period)

        x = wave(np.arange(size))[:, None].astype(np.float32)
        moved, _ = act_columns(geometry, make_action(shift=0.3), x)
        np.testing.assert_allclose(moved[:, 0], wave(places), atol=2e-6)


@pytest.mark.parametrize("strength", [0.1, 0.25, 0.5])
def test_warps_of_a_photograph_return(strength):
    photograph = np.asarray(skimage.data.astronaut()[::8], np.float32) / 127.5 - 1
    for seed in range(2):
        element = warps(512, strength=strength).sample(jax.random.key(seed))
        warped, valid = act_image(ColumnGeometry(16), element, photograph)
        back, _ = act_image(ColumnGeometry(16), inverse(element), warped)
        error = np.square(back - photograph)[:, 16:-16].mean()
        assert valid.all() and 10 * np.log10(4 / error) >= 35
        assert 10 * np.log10(4 / np.square(warped - photograph).mean()) < 25


@pytest.mark.parametrize("shift", [0.0, 0.1, -0.1, 1.0, 4.0, 5.5, -12.0, 15.0])
@pytest.mark.parametrize("name", ["identity", "flip", "warp", "scale", "all"])
def test_columns_are_valid_where_all_their_pixels_are(shift, name):
    element = compose(make_action(shift=shift), ELEMENTS[name])
    _, of_pixels = act_image(GEOMETRY, element, images())
    _, of_columns = act_columns(GEOMETRY, element, np.ones((WIDTH // STRIDE, 1), np.float32))
    np.testing.assert_array_equal(of_columns, np.asarray(of_pixels).reshape(-1, STRIDE).all(1))
    assert of_columns.all() == (shift == 0 and name != "all")


def test_scaling_removes_what_the_result_cannot_represent():
    """Alternating samples are above the new Nyquist frequency; their mean remains."""
    x = np.tile([1.0, 0.0], 16)[:, None].astype(np.float32)
    for interpolation in ("linear", "fourier"):
        for boundary in ("circular", "crop"):
            geometry = ColumnGeometry(STRIDE, boundary=boundary, interpolation=interpolation)
            halved, valid = act_columns(geometry, make_action(scale=0.5), x)
            assert halved.shape == (16, 1) and valid.all()
            # Where the mirrored signal breaks the pattern, there are low frequencies.
            np.testing.assert_allclose(halved[2:-2], 0.5, atol=0.06 if boundary == "crop" else 1e-6)


def test_scaling_a_smooth_image_and_back_restores_it():
    geometry = ColumnGeometry(STRIDE, boundary="circular", interpolation="fourier")
    x = images()
    halved, _ = act_image(geometry, make_action(scale=0.5), x)
    np.testing.assert_allclose(act_image(geometry, make_action(scale=2), halved)[0], x, atol=1e-5)


def test_elements_per_image_under_vmap_and_jit_compile_once():
    count = 0

    @jax.jit
    def act(shift, flip, x):
        nonlocal count
        count += 1
        return jax.vmap(lambda s, f, y: act_image(GEOMETRY, make_action(s, f), y)[0])(shift, flip, x)

    x = images()
    for shift, flip in ((4.0, True), (0.5, False)):
        moved = act(np.array([shift, 0], np.float32), np.array([flip, False]), x)
        np.testing.assert_allclose(moved[0], act_image(GEOMETRY, make_action(shift, flip), x[0])[0], atol=1e-6)
        np.testing.assert_array_equal(moved[1], x[1])
    assert count == 1


def test_gradients_pass_and_are_finite():
    """Also at whole-number places, where the trigonometric kernel divides by zero."""
    x = smooth(8, 1)[0]
    for shift in (0.0, 4.0, 1.3):
        gradient = jax.grad(lambda s: act_columns(CIRCULAR, make_action(s), x)[0][2, 0])(jnp.float32(shift))
        step = 1e-2
        ends = [act_columns(CIRCULAR, make_action(shift + d), x)[0][2, 0] for d in (-step, step)]
        assert gradient == pytest.approx(float(ends[1] - ends[0]) / (2 * step), abs=2e-2)


def test_dtypes_stay():
    for dtype in (jnp.float32, jnp.bfloat16):
        assert act_columns(GEOMETRY, make_action(shift=2), jnp.ones((8, 2), dtype))[0].dtype == dtype


@pytest.mark.parametrize(
    ("element", "shape", "message"),
    [
        (make_action(scale=0.25), (1, 2, 24, 3), "scale=1/4 makes 1.5 columns of 6; .* multiple of 4 columns"),
        (make_action(shift=-32), (1, 2, 32, 3), "a shift of 32 pixels leaves nothing of images 32 pixels wide"),
        (make_action(), (1, 2, 30, 3), "images 30 pixels wide do not divide into columns of stride=4 .* to 28 pixels"),
        (make_action(), (1, 2, 3, 3), "resize them to 4 pixels"),
        (make_action(), (0, 2, 32, 3), r"images have shape \(0, 2, 32, 3\); expected one or more"),
        (make_action(), (32, 3), r"images have shape \(32, 3\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(element, shape, message):
    with pytest.raises(ValueError, match=message):
        act_image(GEOMETRY, element, np.zeros(shape, np.float32))


def test_other_wrong_input_is_refused():
    with pytest.raises(TypeError, match="images=<uint8 array of shape .*> must be a floating-point array"):
        act_image(GEOMETRY, make_action(), np.zeros((2, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="are 2 pixels high; the geometry has height=4"):
        act_image(ColumnGeometry(4, height=4), make_action(), images())
    with pytest.raises(ValueError, match=r"latents have shape \(2, 0, 3\)"):
        act_columns(GEOMETRY, make_action(), np.zeros((2, 0, 3), np.float32))
    with pytest.raises(ValueError, match="scale=1/2 makes 3.5 columns of 7"):
        act_columns(GEOMETRY, make_action(scale=0.5), np.zeros((7, 3), np.float32))
    with pytest.raises(ValueError, match="a shift of 28 pixels leaves nothing"):
        act_columns(GEOMETRY, make_action(shift=28), np.zeros((7, 3), np.float32))
    with pytest.raises(ValueError, match="shift=nan must be a finite number"):
        make_action(shift=float("nan"))
    with pytest.raises(ValueError, match="scale=0 must be a finite number > 0"):
        make_action(scale=0)
    with pytest.raises(ValueError, match="scale=0 must be positive"):
        make_action(scale=Fraction(0))
    with pytest.raises(TypeError, match="warp=3 must be a Warp"):
        make_action(warp=3)
    with pytest.raises(TypeError, match="flip=1 must be True or False"):
        make_action(flip=1)


def test_a_circular_image_has_no_shift_that_is_too_large():
    x = images()
    np.testing.assert_allclose(act_image(CIRCULAR, make_action(shift=2 * WIDTH + 4), x)[0], np.roll(x, 4, 2), atol=1e-6)
