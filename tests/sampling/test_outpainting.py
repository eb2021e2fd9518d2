"""Outpainting: prefix and sides, pixels that are kept, schedules counted from the image, and errors."""

from typing import Any

import jax
import numpy as np
import pytest

from eqjax import outpaint, pixels, sample_latents
from eqjax.sampling import chunks
from tests.sampling.small_models import local_model


@pytest.fixture(scope="module", name="photograph")
def _photograph():
    ramp = np.linspace(0, 255, 24)[None, :, None] * np.ones((16, 1, 3))
    return ramp.astype(np.uint8)


def test_an_image_is_continued_on_both_sides(photograph):
    m = local_model()
    kwargs: dict[str, Any] = dict(seed=3, guidance_scale=2.0, num_flow_steps=2)
    out = outpaint(m, photograph, "dog", left=4, right=5, **kwargs)
    assert out.shape == (16, 24 + 2 * 9, 3)
    np.testing.assert_array_equal(out[:, 10:30], photograph[:, 2:-2])  # All but one column at each border.
    right = outpaint(m, photograph, "dog", right=5, **kwargs)
    np.testing.assert_array_equal(right[:, :22], photograph[:, :22])
    np.testing.assert_array_equal(right[:, 24:], out[:, 32:])
    # To the left is to the right in the mirror, with the next seed.
    mirrored = outpaint(m, photograph[:, ::-1], "dog", right=4, **dict(kwargs, seed=4))
    np.testing.assert_array_equal(out[:, :8], mirrored[:, 24:][:, ::-1])
    rebuilt = outpaint(m, photograph, "dog", right=5, keep_pixels=False, **kwargs)
    np.testing.assert_array_equal(rebuilt[:, 24:], right[:, 24:])
    assert (rebuilt[:, :22] != photograph[:, :22]).any()
    floats = np.asarray(pixels.from_uint8(photograph))
    np.testing.assert_array_equal(outpaint(m, floats, "dog", right=5, **kwargs), right)


def test_classes_and_guidance_are_counted_from_the_image_outwards(photograph, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_COLUMNS", 2)
    m, given, sampled = local_model(), 12, []
    scales = np.array([1.5, 2.0, 4.0, 3.0, 0.5])
    kwargs: dict[str, Any] = dict(num_flow_steps=2, transition=2)
    out = outpaint(
        m, photograph, [("dog", 2), ("eel", None)], left=4, right=5, seed=3, guidance_scale=scales,
        progress=sampled.append, **kwargs,
    )  # fmt: skip
    assert sampled == [0, 2, 2, 0, 2, 2, 1]  # First to the left, then to the right.
    # Two columns of the first class, then the transition to the second one, counted from the image on both sides.
    for columns, seed, image, side in ((5, 3, photograph, out[:, 32:]), (4, 4, photograph[:, ::-1], out[:, 7::-1])):
        guidance = np.array([9.0] * given + list(scales[:columns]))
        latents = sample_latents(
            m.require("generator"), m.generator_params, np.array([[1, 2]]), num_columns=given + columns,
            class_columns=(14, None), guidance_scale=guidance, prefix=m.encode(image[None]),
            key=jax.random.key(seed)[None], **kwargs,
        )  # fmt: skip
        difference = np.abs(side.astype(int) - np.asarray(m.decode(latents))[0, :, 24:])
        assert side.shape == difference.shape and difference.max() <= 1 and difference.mean() < 1e-2


@pytest.mark.parametrize(
    ("image", "change", "message"),
    [
        (np.zeros((16, 24, 4), np.uint8), dict(resize=True), r"shape \(16, 24, 4\); expected .*: convert it to RGB"),
        (np.zeros((16, 24), np.uint8), {}, r"shape \(16, 24\); expected .*: convert it to RGB"),
        (np.zeros((16, 24, 3), np.int64), {}, "image is int.*; expected uint8, or floats"),
        (np.full((16, 24, 3), 255.0), {}, "image has values from 255 to 255; expected floats in"),
        (np.full((16, 24, 3), np.nan), {}, "image has values that are not finite"),
        (None, dict(guidance_scale=np.ones(2)), r"shape \(2,\); expected a number, or one for each .* \[3\]"),
        (None, dict(label=[("cat", 2)]), "covers columns 0 … 1, and the image has 3 columns"),
        (None, dict(label=["cat", "dog"]), r"a class schedule is a list of \(label, columns\)"),
        (None, dict(label="cow"), r"classes \['cow'\] are not among"),
        (None, dict(label=9), r"labels \[9\] are outside 0 … 3"),
    ],
)
def test_a_bad_argument_is_refused_by_name(photograph, image, change, message):
    image = photograph if image is None else image
    arguments: dict[str, Any] = {"label": 0, "left": 2, "right": 3, **change}
    with pytest.raises(ValueError, match=message) as raised:
        outpaint(local_model(), image, **arguments)
    assert "--resize" not in str(raised.value)


def test_images_of_other_sizes_are_resized_on_request(photograph):
    m = local_model()
    with pytest.raises(ValueError, match="image height 32 does not fit .* resize=True"):
        outpaint(m, np.zeros((32, 64, 3), np.uint8), 0, right=2)
    out = outpaint(m, np.zeros((32, 66, 3), np.uint8), 0, right=2, resize=True, num_flow_steps=2)
    assert out.shape == (16, 32 + 4, 3)
    ramp = np.linspace(-1, 1, 32 * 66 * 3).reshape(32, 66, 3)
    kwargs: dict[str, Any] = dict(right=2, resize=True, num_flow_steps=2)
    expected = outpaint(m, np.asarray(pixels.to_uint8(ramp)), 0, **kwargs)
    np.testing.assert_array_equal(outpaint(m, ramp, 0, **kwargs), expected)
    with pytest.raises(ValueError, match="less than a column of 2"):
        outpaint(m, np.zeros((160, 8, 3), np.uint8), 0, right=2, resize=True)
    with pytest.raises(ValueError, match="an image of 650000 × 1 pixels would be 10400000 wide .*: cut out"):
        outpaint(m, np.broadcast_to(np.uint8(0), (1, 650_000, 3)), 0, right=2, resize=True)
    with pytest.raises(ValueError, match="left=0 and right=0"):
        outpaint(m, photograph, 0)
