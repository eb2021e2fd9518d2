"""Geometries and codecs: what fits, and the message for what does not."""

import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.equivariance import Codec, ColumnGeometry


def mean_colors(images):
    return images.reshape(*images.shape[:2], -1, 4, 3).mean((1, 3))


def flat(latents):
    return jnp.repeat(latents, 4, axis=1)[:, None].repeat(8, axis=1)


IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 16, 3)).astype(np.float32)


def test_a_codec_encodes_and_decodes():
    codec = Codec(mean_colors, flat, ColumnGeometry(4, height=8))
    latents = codec.encode(IMAGES)
    np.testing.assert_array_equal(latents, mean_colors(IMAGES))
    np.testing.assert_array_equal(codec.decode(latents), flat(latents))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stride": 0}, "stride=0 must be an integer ≥ 1"),
        ({"height": 0}, "height=0 must be"),
        ({"boundary": "round"}, "boundary='round' must be one of 'crop', 'circular'"),
        ({"interpolation": "furier"}, "did you mean 'fourier'"),
    ],
)
def test_impossible_geometries_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ColumnGeometry(**fields)


def test_an_encoder_of_another_stride_is_named_with_its_stride():
    codec = Codec(mean_colors, flat, ColumnGeometry(8))
    with pytest.raises(ValueError, match=r"returned shape \(2, 4, 3\) .* are \[2, 2, latent size\]. .* has stride=4"):
        codec.encode(IMAGES)
    with pytest.raises(ValueError, match=r"decoder returned shape \(2, 8, 16, 3\) for 4 columns of stride=8"):
        codec.decode(mean_colors(IMAGES))


def test_functions_that_return_something_else_are_named():
    codec = Codec(lambda x: x, lambda _: None, ColumnGeometry(4))
    with pytest.raises(ValueError, match=r"encoder returned shape \(2, 8, 16, 3\)"):
        codec.encode(IMAGES)
    with pytest.raises(ValueError, match="decoder returned NoneType; expected an array"):
        codec.decode(mean_colors(IMAGES))
    with pytest.raises(ValueError, match=r"expected images of shape \[2, 9, 16, 3\]"):
        Codec(mean_colors, flat, ColumnGeometry(4, height=9)).decode(mean_colors(IMAGES))


def test_wrong_images_and_latents_are_refused():
    codec = Codec(mean_colors, flat, ColumnGeometry(4))
    with pytest.raises(TypeError, match="images=<uint8 array"):
        codec.encode(np.zeros((1, 8, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="must be a floating-point array of shape .images, height, width, 3"):
        codec.encode(IMAGES[:0])
    with pytest.raises(ValueError, match="images 14 pixels wide"):
        codec.encode(IMAGES[:, :, :14])
    with pytest.raises(ValueError, match="latents=<float32 array of shape .2, 0, 3.>"):
        codec.decode(np.zeros((2, 0, 3), np.float32))
    with pytest.raises(TypeError, match="encoder=None must be a function"):
        Codec(None, flat, ColumnGeometry(4))
    with pytest.raises(TypeError, match="geometry=16 must be a ColumnGeometry"):
        Codec(mean_colors, flat, 16)
