"""Implicit and explicit losses, what they reach, how explicit ones collapse, and the guard against it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqjax.equivariance import (
    Codec,
    CollapseGuard,
    ColumnGeometry,
    act_image,
    explicit_losses,
    implicit_loss,
    latent_spread,
    make_action,
    transformed_pair,
)
from tests.equivariance.toy_codecs import columns_codec, photograph_rows

IMAGES = photograph_rows(4, 32)


def l1(x, y):
    return jnp.mean(jnp.abs(x - y))


def scaled_codec(size):
    """`columns_codec` with latents of another size, which its decoder undoes."""
    codec = columns_codec()
    return Codec(lambda x: size * codec.encode(x), lambda z: codec.decode(z / size), codec.geometry)


def test_the_implicit_loss_is_the_plain_one_of_the_transformed_image_for_an_equivariant_codec():
    codec, action = columns_codec(), make_action(shift=8, flip=True)
    moved, valid = act_image(codec.geometry, action, IMAGES)
    inside = np.asarray(valid)
    expected = np.abs(moved - codec.decode(codec.encode(moved)))[:, :, inside].sum() / IMAGES.size
    assert float(implicit_loss(codec, IMAGES, action, l1)) == pytest.approx(float(expected), rel=1e-5)


def test_what_entered_the_image_is_no_difference():
    codec, action = columns_codec(), make_action(shift=6)
    target, decoded = transformed_pair(codec.geometry, action, IMAGES, codec.encode(IMAGES), codec.decode)
    valid = np.asarray(act_image(codec.geometry, action, IMAGES)[1])
    assert valid.sum() == 26 and (target[:, :, ~valid] == decoded[:, :, ~valid]).all()
    assert not np.isclose(target[:, :, valid], decoded[:, :, valid]).all(axis=(0, 1, 3)).any()


def test_the_implicit_loss_transforms_latents_and_the_encoder_sees_images_alone():
    seen = []
    codec = columns_codec()
    watched = Codec(lambda x: seen.append(x) or codec.encode(x), codec.decoder, codec.geometry)
    implicit_loss(watched, IMAGES, make_action(scale=0.5), l1)
    assert len(seen) == 1 and (seen[0] == IMAGES).all()


def test_explicit_losses_vanish_for_an_equivariant_codec_alone():
    whole = explicit_losses(columns_codec(), IMAGES, make_action(shift=8, flip=True))
    assert max(whole) < 1e-10
    half = explicit_losses(columns_codec(), IMAGES, make_action(shift=2))
    assert min(half) > 1e-3


def test_relative_errors_do_not_fall_with_the_size_of_latents():
    def losses(size, relative):
        return explicit_losses(scaled_codec(size), IMAGES, make_action(shift=2), relative=relative)

    assert losses(0.1, True).encoder == pytest.approx(float(losses(1.0, True).encoder), rel=1e-5)
    assert losses(0.1, False).encoder == pytest.approx(0.01 * float(losses(1.0, False).encoder), rel=1e-5)
    raw = jax.grad(lambda size: losses(size, False).encoder)
    assert float(raw(1.0)) > 0


def test_targets_are_constant_and_the_decoders_error_does_not_reach_the_encoder():
    codec, action = columns_codec(), make_action(shift=2)

    def decoder(offset, stop):
        moved = Codec(lambda x: codec.encode(x) * (1 + offset), codec.decoder, codec.geometry)
        return explicit_losses(moved, IMAGES, action, stop_gradient=stop, relative=False).decoder

    assert float(jax.grad(decoder)(0.0, True)) == 0 != float(jax.grad(decoder)(0.0, False))

    def encoder(offset, stop):
        # Transformed images alone have an offset: its gradient is that of E(T x); the target's would cancel a part.
        shifted = Codec(lambda x: codec.encode(x) + offset, codec.decoder, codec.geometry)
        return explicit_losses(shifted, IMAGES, action, stop_gradient=stop, relative=False).encoder

    assert abs(float(jax.grad(encoder)(0.0, False))) < 0.1 * abs(float(jax.grad(encoder)(0.0, True)))


# ── Collapse ────────────────────────────────────────────────────────────────────────────────────

STRIDE, LATENTS, NOISE = 4, 24, 0.3


def linear_codec(params):
    """One product of each column, and one back."""

    def encode(x):
        columns = jnp.asarray(x).reshape(len(x), 16, -1, STRIDE, 3).transpose(0, 2, 1, 3, 4)
        return columns.reshape(*columns.shape[:2], -1) @ params["encoder"]

    def decode(z):
        columns = (z @ params["decoder"]).reshape(*z.shape[:2], 16, STRIDE, 3)
        return columns.transpose(0, 2, 1, 3, 4).reshape(len(z), 16, -1, 3)

    return Codec(encode, decode, ColumnGeometry(STRIDE, 16))


@functools.partial(jax.jit, static_argnums=2)
def fine_tune(params, weight, threshold):
    """Trains on squared errors and the raw explicit loss, summed per image; posterior noise makes latents keep size."""
    images = jnp.asarray(photograph_rows(16, 64, seed=1))
    optimizer = optax.adam(3e-3)

    def loss(params, key, factor):
        codec = linear_codec(params)
        latents = codec.encode(images)
        noisy = latents + NOISE * jax.random.normal(key, latents.shape)
        reconstruction = jnp.sum(jnp.square(codec.decode(noisy) - images)) / len(images)
        size = 0.01 * jnp.sum(jnp.square(latents)) / len(images)  # KL.
        raw = explicit_losses(codec, images, make_action(shift=2), relative=False, stop_gradient=False).encoder
        return reconstruction + size + factor * weight * raw, latent_spread(latents)

    def step(carry, key):
        params, state, guard = carry
        grads, spread = jax.grad(loss, has_aux=True)(params, key, guard.weight)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers.
            updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state, guard.update(spread, threshold)), None

    start = params, optimizer.init(params), CollapseGuard.init()
    (params, _, guard), _ = jax.lax.scan(step, start, jax.random.split(jax.random.key(0), 400))
    codec = linear_codec(params)
    latents = codec.encode(images)
    noisy = latents + NOISE * jax.random.normal(jax.random.key(1), latents.shape)
    return params, guard, -10 * jnp.log10(jnp.mean(jnp.square(codec.decode(noisy) - images)) / 4)


@pytest.fixture(name="trained", scope="module")
def _trained():
    rng = np.random.default_rng(0)
    size = 16 * STRIDE * 3
    shapes = {"encoder": (size, LATENTS), "decoder": (LATENTS, size)}
    params = {name: jnp.asarray(rng.normal(size=shape) / 14, jnp.float32) for name, shape in shapes.items()}
    params, _, _ = fine_tune(params, 0.0, 0.0)
    return params, float(fine_tune(params, 0.0, 0.0)[2])


def test_the_raw_explicit_loss_collapses_without_the_guard_and_not_with_it(trained):
    params, plain = trained
    _, unguarded, collapsed = fine_tune(params, 30.0, 0.0)
    assert not unguarded.fired and unguarded.spread < 0.5 * unguarded.start
    assert float(collapsed) < plain - 2
    _, guard, rescued = fine_tune(params, 30.0, 0.5)
    assert guard.fired and guard.spread > 0.5 * guard.start
    assert float(rescued) > plain - 1


def test_the_guard_stays_fired_and_a_threshold_of_0_never_fires():
    guard, off = CollapseGuard.init(), CollapseGuard.init()
    for spread in (1.0, 0.9, 0.6, 0.0, 0.0, 0.0):
        guard, off = guard.update(spread), off.update(spread, threshold=0.0)
    assert not guard.fired and float(guard.weight) == 1  # A running mean, as single batches differ.
    for spread in (0.0, 0.0, 0.0, 0.0, 5.0, 5.0):
        guard, off = guard.update(spread), off.update(spread, threshold=0.0)
    assert guard.fired and float(guard.weight) == 0 and not off.fired
    assert float(guard.start) == 1


def test_the_spread_is_of_channels_over_all_columns():
    latents = np.random.default_rng(0).normal(5, 2, (64, 8, 16)).astype(np.float32)
    assert float(latent_spread(latents)) == pytest.approx(2, rel=0.02)
    assert float(latent_spread(np.broadcast_to(latents[:1, :1], latents.shape))) < 1e-5


def test_wrong_input_is_refused():
    with pytest.raises(TypeError, match="codec=3 must be a Codec"):
        implicit_loss(3, IMAGES, make_action(), l1)
    with pytest.raises(TypeError, match="action=None must be an Action"):
        explicit_losses(columns_codec(), IMAGES, None)
    with pytest.raises(ValueError, match="scale=1/3 makes .* columns of 8; .* a multiple of 3 columns"):
        implicit_loss(columns_codec(), IMAGES, make_action(scale=1 / 3), l1)
    with pytest.raises(ValueError, match="images are 16 pixels high; the geometry has height=32"):
        implicit_loss(Codec(lambda x: x, lambda z: z, ColumnGeometry(4, 32)), IMAGES, make_action(), l1)
    with pytest.raises(ValueError, match="threshold=2 must be"):
        CollapseGuard.init().update(1.0, threshold=2)
