"""Canonicalizers make any codec exactly equivariant, also one of random weights that commutes with nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from eqjax.equivariance import (
    CanonicalCodec,
    Chain,
    Codec,
    ColumnGeometry,
    FlipCanonicalizer,
    PolyphaseAnchor,
    anchor_consistency,
)
from tests.compilations import count_compilations

STRIDE, WIDTH, COLUMNS, DIM = 8, 64, 8, 5
GEOMETRY = ColumnGeometry(STRIDE, boundary="circular")


def random_codec():
    """Returns a codec that mixes all pixels of an image with random weights."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)  # noqa: E731
    inward, outward = draw(4 * WIDTH * 3, COLUMNS * DIM), draw(COLUMNS * DIM, 4 * WIDTH * 3)
    return Codec(
        lambda x: jnp.tanh(x.reshape(len(x), -1) @ inward).reshape(len(x), COLUMNS, DIM),
        lambda z: jnp.tanh(z.reshape(len(z), -1) @ outward).reshape(len(z), 4, WIDTH, 3),
        GEOMETRY,
    )


def strided_codec():
    """Returns a codec that commutes with shifts by whole columns, and with no others."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(4 * STRIDE * 3, DIM)), jnp.float32)

    def encode(x):
        patches = x.reshape(len(x), 4, COLUMNS, STRIDE, 3).transpose(0, 2, 1, 3, 4).reshape(len(x), COLUMNS, -1)
        return jnp.tanh(patches @ weights) + 0.5 * jnp.roll(jnp.tanh(patches @ weights), 1, axis=1)

    def decode(z):
        patches = (z @ weights.T).reshape(len(z), COLUMNS, 4, STRIDE, 3).transpose(0, 2, 1, 3, 4)
        return patches.reshape(len(z), 4, WIDTH, 3)

    return Codec(encode, decode, GEOMETRY)


@pytest.fixture(scope="module", name="images")
def _images():
    picture = skimage.data.astronaut()[100:104, 100 : 100 + WIDTH] / 127.5 - 1
    noise = np.random.default_rng(1).uniform(-1, 1, (1, 4, WIDTH, 3))
    return jnp.asarray(np.concatenate([picture[None], noise]), jnp.float32)


def run(canonical):
    @jax.jit
    def both(images):
        code = canonical.encode(images)
        return code.latents, code.element.shift, canonical.decode(code)

    return both


@pytest.mark.parametrize("energy", ["l2", "gradient"])
def test_an_anchored_strided_codec_commutes_with_all_shifts(energy, images):
    codec = strided_codec()
    both = run(CanonicalCodec(codec, PolyphaseAnchor(STRIDE, energy)))
    latents, phase, decoded = both(images)
    plain = codec.encode(images)
    with count_compilations() as compiled:
        for shift in range(1, 33):
            moved, phase2, decoded2 = both(jnp.roll(images, shift, 2))
            columns, rest = np.divmod(np.asarray(phase) + shift, STRIDE)
            np.testing.assert_array_equal(phase2, rest)
            for row, by in enumerate(columns.astype(int)):
                np.testing.assert_allclose(moved[row], jnp.roll(latents[row], by, 0), atol=1e-5)
            np.testing.assert_allclose(decoded2, jnp.roll(decoded, shift, 2), atol=1e-5)
    assert not [name for name in compiled if "both" in name]  # Elements are data.
    moved = codec.encode(jnp.roll(images, STRIDE // 2, 2))
    assert jnp.linalg.norm(moved - plain) > 0.3 * jnp.linalg.norm(plain)  # The codec by itself does not.


def test_anchored_positions_make_any_codec_commute_with_all_shifts(images):
    both = run(CanonicalCodec(random_codec(), PolyphaseAnchor(STRIDE, positions=True)))
    latents, place, decoded = both(images)
    for shift in range(1, 33):
        moved, place2, decoded2 = both(jnp.roll(images, shift, 2))
        np.testing.assert_array_equal(place2, (place + shift) % WIDTH)
        columns = np.asarray(place2 // STRIDE - place // STRIDE).astype(int)
        for row, by in enumerate(columns):
            np.testing.assert_allclose(moved[row], jnp.roll(latents[row], by, 0), atol=1e-5)
        np.testing.assert_allclose(decoded2, jnp.roll(decoded, shift, 2), atol=1e-5)


@pytest.mark.parametrize("score", ["gradient", "position", lambda x: jnp.tanh(x[:, 1, 5]).sum(-1)])
def test_any_codec_becomes_equivariant_to_flips(score, images):
    both = run(CanonicalCodec(random_codec(), FlipCanonicalizer(score)))
    latents, _, decoded = both(images)
    moved, _, decoded2 = both(images[:, :, ::-1])
    np.testing.assert_allclose(moved, latents[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(decoded2, decoded[:, :, ::-1], atol=1e-5)
    plain = random_codec().encode(images)
    assert jnp.linalg.norm(random_codec().encode(images[:, :, ::-1]) - plain[:, ::-1]) > 0.3 * jnp.linalg.norm(plain)


def test_a_symmetric_image_is_not_flipped():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 8, 3)), jnp.float32)
    assert not FlipCanonicalizer().element(image + image[:, :, ::-1]).flip.any()


@pytest.mark.slow
def test_flips_and_shifts_together(images):
    both = run(CanonicalCodec(random_codec(), Chain(FlipCanonicalizer(), PolyphaseAnchor(STRIDE, positions=True))))
    _, _, decoded = both(images)
    for shift in (0, 3, 8, 21):
        _, _, moved = both(jnp.roll(images[:, :, ::-1], shift, 2))
        np.testing.assert_allclose(moved, jnp.roll(decoded[:, :, ::-1], shift, 2), atol=1e-5)


def test_canonicalizers_work_one_image_at_a_time(images):
    anchor = PolyphaseAnchor(STRIDE)
    alone = jax.vmap(lambda x: anchor.element(x[None]).shift[0])(images)
    np.testing.assert_array_equal(alone, anchor.element(images).shift)


def test_crops_keep_their_anchor_more_often_than_by_chance():
    names = ("astronaut", "chelsea", "coffee", "rocket")
    images = np.stack([getattr(skimage.data, name)()[100:132, :200] for name in names]) / 127.5 - 1
    images = images.astype(np.float32)
    consistency = anchor_consistency(PolyphaseAnchor(STRIDE, "gradient", "crop"), images, 160, [0, 8, 1])
    assert consistency[0] == 1.0
    assert consistency[1] > 1 / STRIDE
    circular = anchor_consistency(PolyphaseAnchor(STRIDE, "gradient"), images, 160, [1])
    assert circular[1] < consistency[1]  # The jump from the last pixel to the first decides.
    with pytest.raises(ValueError, match="crops 160 pixels wide need images of 260 pixels"):
        anchor_consistency(PolyphaseAnchor(STRIDE), images, 160, [100])


def test_wrong_input_is_named():
    codec = strided_codec()
    anchored = CanonicalCodec(codec, PolyphaseAnchor(STRIDE))
    with pytest.raises(ValueError, match=r"images=.*shape \(0, 4, 64, 3\)"):
        anchored.encode(jnp.zeros((0, 4, WIDTH, 3)))
    with pytest.raises(ValueError, match="images 60 pixels wide do not divide into columns of stride=8"):
        PolyphaseAnchor(STRIDE).element(jnp.zeros((1, 4, 60, 3)))
    with pytest.raises(TypeError, match="images=.*floating-point"):
        FlipCanonicalizer().element(np.zeros((1, 4, 64, 3), np.uint8))
    other = Codec(codec.encoder, codec.decoder, ColumnGeometry(16))
    with pytest.raises(ValueError, match=r"columns of stride=16 .*An encoder of 8 columns has stride=8"):
        CanonicalCodec(other, PolyphaseAnchor(16)).encode(jnp.zeros((1, 4, WIDTH, 3)))
    with pytest.raises(ValueError, match="energy='l3' must be one of"):
        PolyphaseAnchor(8, "l3")
    with pytest.raises(TypeError, match="canonicalizer=3 .*method element"):
        CanonicalCodec(codec, 3)
    with pytest.raises(ValueError, match="score='left'"):
        FlipCanonicalizer("left")
