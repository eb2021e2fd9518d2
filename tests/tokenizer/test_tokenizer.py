"""Wrong images, latents and fields end in one message with the value found and the one expected."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from eqjax import Tokenizer
from eqjax.tokenizer.decoder import Refine

TOKENIZER = Tokenizer(
    channels=8, channel_multipliers=(1, 1), num_res_blocks=1, attention_resolutions=(), resolution=16, z_channels=2,
    embed_dim=4,
)  # fmt: skip


def encode(shape):
    return jax.eval_shape(lambda x: TOKENIZER.init_with_output(jax.random.key(0), x, method="encode"), jnp.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 20, 16, 3), "image height 20 .* 16 pixels high"),
        ((1, 16, 17, 3), "image width 17 is not a positive multiple of the column width 2; crop or resize to 16"),
        ((1, 16, 0, 3), "image width 0"),
        ((16, 16, 3), r"images have shape \(16, 16, 3\); expected \[batch ≥ 1, height, width, 3\]"),
        ((1, 16, 16, 1), "expected .batch ≥ 1, height, width, 3"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        encode(shape)


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 0, 4), (4, 4)])
def test_latents_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="embed_dim=4"):
        TOKENIZER.init(jax.random.key(0), jnp.zeros(shape), method="decode")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(norm="batch"), r"norm='batch' must be one of 'group', 'pixel'"),
        (dict(resolution=250), "resolution=250 is not a multiple of the row stride 16"),
        (dict(patch_size=3), "resolution=256 is not .* of 5 levels on patches of 3"),
        (dict(patch_size=0), "patch_size=0 must be an integer ≥ 1"),
        (dict(attention_window=-1), "attention_window=-1"),
        (dict(refine_channels=0), "refine_channels=0 must be an integer ≥ 1"),
        (dict(resample="fft"), "resample='fft' wraps around at the ends of an image, and padding='reflect' does not"),
        (dict(square_downsamples=-1), "square_downsamples=-1 must be an integer ≥ 0"),
        (dict(channels=10), r"10 channels cannot be halved by \(2, 2\): its channels must be a multiple of 4"),
        (dict(attention_resolutions=(17,)), r"\[17\] are not among the levels' heights \[256, 128, 64, 32, 16\]"),
        (dict(embed_dim=0), "embed_dim=0 must be an integer ≥ 1"),
        (dict(channel_multipliers=()), r"channel_multipliers=\(\) must be a sequence .1 to 32"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer(**fields)


def test_widths_only_have_to_be_divisible_where_they_are_halved():
    assert Tokenizer(channels=10, channel_multipliers=(2, 1), attention_resolutions=(128,)).column_width == 2


def test_fields_from_json_give_a_hashable_module():
    semantic = dict(channels=8, channel_multipliers=[1], num_res_blocks=1, out_channels=8, downsamples=0)
    loaded = Tokenizer(channel_multipliers=[1, 2], attention_resolutions=[], semantic=semantic)
    again = Tokenizer(channel_multipliers=(1, 2), attention_resolutions=(), semantic=semantic)
    assert hash(loaded) == hash(again) and loaded == again


@pytest.mark.parametrize("refine_channels", [None, 4])
def test_the_last_layer_writes_the_image(refine_channels):
    tokenizer = TOKENIZER.clone(refine_channels=refine_channels)
    params: Any = tokenizer.init_params(jax.random.key(0))
    last: Any = tokenizer.last_layer(params)
    last["bias"] += 1.0
    latents = jnp.zeros((1, 3, 4))
    decoded: Any = tokenizer.apply({"params": params}, latents, method="decode")
    changed = decoded.images
    last["bias"] -= 1.0
    decoded = tokenizer.apply({"params": params}, latents, method="decode")
    assert jnp.allclose(changed, decoded.images + 1.0, atol=1e-5)


def test_the_refining_block_reaches_three_pixels():
    features = jnp.zeros((1, 8, 8, 4))
    refine: Any = Refine()
    params = refine.init(jax.random.key(0), features)
    changed = refine.apply(params, features.at[0, 2, 3].set(1.0)) - refine.apply(params, features)
    touched = jnp.abs(changed).sum((0, 1, 3)) > 0
    assert touched.tolist() == [True] * 7 + [False]


def test_any_multiple_of_the_stride_is_encoded():
    for columns in (1, 3, 10):
        posterior, _ = encode((2, 16, 2 * columns, 3))
        assert posterior.mean.shape == (2, columns, 4)
