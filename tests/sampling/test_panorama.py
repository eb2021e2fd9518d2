"""Endless panoramas equal whole ones, go on from a saved state, and photographs go on on both sides."""

import itertools
import json

import jax
import numpy as np
import pytest

from eqjax import outpaint, panorama, pixels, sample_latents
from eqjax.sampling import sampler, streaming
from eqjax.tokenizer import tiling
from tests.sampling.small_models import model

OPTIONS = dict(guidance_scale=3.0, num_flow_steps=2, solver="adams_bashforth", max_position=7)


def joined(strips):
    return np.concatenate(list(strips), axis=-2)


def test_strips_are_the_whole_image():
    m = model(True)
    classes = [("cat", 20), ("eel", 30), (1, None)]
    whole = m.sample(classes, num_columns=90, seeds=[3], guidance_schedule="constant", transition=4, **OPTIONS)[0]
    strips = list(panorama(m, classes, num_columns=90, seed=3, transition=4, strip_columns=8, **OPTIONS))
    assert {strip.dtype for strip in strips} == {np.dtype(np.uint8)} and strips[0].shape == (16, 16, 3)
    difference = np.abs(joined(strips).astype(int) - np.asarray(whole).astype(int))
    assert difference.max() <= 1 and difference.mean() < 1e-2  # Rounding of values next to a half.


@pytest.mark.parametrize("columns", [5, 30, 61])
def test_decoding_as_it_comes_equals_the_whole_in_floats(columns, monkeypatch):
    m = model(True)
    monkeypatch.setattr(streaming.pixels, "to_uint8", lambda x: x)
    latents = np.asarray(jax.random.normal(jax.random.key(0), (columns, 4)))
    whole = tiling.decode_images(m.tokenizer, m.tokenizer_params, latents[None] / m.latent_scale, tile_columns=999)[0]
    decoder = streaming.StreamDecoder(m.tokenizer, m.tokenizer_params, m.latent_scale, 8)
    cuts = [0, 3, 25, 26, columns]
    parts = [latents[a:b] for a, b in itertools.pairwise(cuts)]
    strips = [strip for i, part in enumerate(parts) for strip in decoder.push(part, last=i == len(parts) - 1)]
    np.testing.assert_allclose(np.concatenate(strips, axis=1), np.clip(whole, -1, 1), atol=1e-5)
    assert len(decoder.held) <= decoder.window


def test_overlapping_windows_by_hand(monkeypatch):
    """A decoder that paints each window in its own brightness shows where and how windows meet."""
    m = model(False)
    painted = itertools.count(1)
    monkeypatch.setattr(streaming.pixels, "to_uint8", lambda x: x)
    monkeypatch.setattr(streaming, "_decode", lambda t, p, x: np.full((1, 16, 2 * x.shape[1], 3), next(painted), float))
    decoder = streaming.StreamDecoder(m.tokenizer, None, 1.0, 99)
    assert decoder.window == 8
    strips = decoder.push(np.zeros((14, 4)), last=True)
    row = np.concatenate(strips, axis=1)[0, :, 0]
    fade = (np.arange(8) + 0.5) / 8
    # Windows at columns 0, 4 and (moved inside) 6; the last fades over what the second had, from column 8 on.
    np.testing.assert_allclose(row, [*np.ones(8), *(1 + fade), *(2 + fade), *np.full(4, 3.0)])


def test_a_published_tokenizer_streams_too():
    m = model(False)
    short = joined(panorama(m, 2, num_columns=8, **OPTIONS))
    whole = m.sample(2, num_columns=8, seeds=[0], guidance_schedule="constant", **OPTIONS)[0]
    assert np.abs(short.astype(int) - np.asarray(whole).astype(int)).max() <= 1  # One window is the whole.
    long = joined(panorama(m, 2, num_columns=21, strip_columns=5, **OPTIONS))
    assert long.shape == (16, 42, 3)
    np.testing.assert_array_equal(long[:, :8], joined(itertools.islice(panorama(m, 2, **OPTIONS), 3))[:, :8])


@pytest.mark.parametrize(("strict", "seeds"), [(True, None), (False, (4, 7))])
def test_save_and_go_on(strict, seeds, tmp_path):
    m, path = model(strict), tmp_path / "state.npz"
    kwargs = dict(transition=3, strip_columns=5, **OPTIONS)
    strips = panorama(m, [("cat", 9), ("dog", None)], seed=4, seeds=seeds, **kwargs)
    beginning = [next(strips) for _ in range(2)]
    strips.save(path)
    expected = joined(itertools.islice(strips, 4))
    again = panorama(m, state=path)
    assert again.emitted == strips.emitted - expected.shape[-2] // 2
    out = joined(itertools.islice(again, 6))[..., : expected.shape[-2], :]
    np.testing.assert_array_equal(out, expected)
    if seeds:  # Each row is the panorama of its seed.
        alone = joined(itertools.islice(panorama(m, [("cat", 9), ("dog", None)], seed=4, **kwargs), 2))
        assert expected.shape[:2] == (2, 16) and (expected[0] != expected[1]).any()
        assert np.abs(joined(beginning)[0].astype(int) - alone.astype(int)).max() <= 1
    assert path.stat().st_size < 60_000 and not list(tmp_path.glob("*.tmp"))


def test_a_prefix_begins_the_image():
    m = model(True)
    prefix = jax.random.normal(jax.random.key(1), (1, 6, 4))
    whole = m.sample(1, num_columns=20, seeds=[2], prefix=prefix, guidance_schedule="constant", **OPTIONS)[0]
    out = joined(panorama(m, 1, seed=2, num_columns=20, prefix=prefix, **OPTIONS))
    assert np.abs(out.astype(int) - np.asarray(whole).astype(int)).max() <= 1


def test_states_of_another_model_and_other_files(tmp_path):
    strips = panorama(model(True), "cat", **OPTIONS)
    state = strips.state()
    with pytest.raises(ValueError, match=r"another model(.|\n)*generator.window_size: saved 3, this model 2"):
        panorama(model(True, window_size=2), state=state)
    other = model(True).replace(generator_params=jax.tree.map(lambda p: p + 1, model(True).generator_params))
    with pytest.raises(ValueError, match=r"another model(.|\n)*generator weights: saved [0-9a-f]{8}, this model"):
        panorama(other, state=state)
    with pytest.raises(ValueError, match="either labels or state"):
        panorama(model(True), "cat", state=state)
    with pytest.raises(FileNotFoundError, match="no saved panorama at"):
        panorama(model(True), state=tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="text.npz cannot be read as a saved panorama"):
        panorama(model(True), state=tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(ValueError, match="other.npz is not a saved panorama"):
        panorama(model(True), state=tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"another model(.|\n)*latent_scale: saved 0.5, this model 2.0"):
        panorama(model(True).replace(latent_scale=2.0), state=state)
    for name in state:
        with pytest.raises(ValueError, match="this state is not a saved panorama"):
            panorama(model(True), state={key: array for key, array in state.items() if key != name})
    for text in ('{"format": "eqjax-panorama-2"}', "[]", "null", "{", str(state["about"]).replace('"seed"', '"sead"')):
        with pytest.raises(ValueError, match="this state is not a saved panorama"):
            panorama(model(True), state={**state, "about": np.array(text)})
    with pytest.raises(ValueError, match="this state is not a saved panorama"):
        panorama(model(True), state=5)
    old = str(state["about"]).replace("eqjax-panorama-2", "eqjax-panorama-1")
    with pytest.raises(ValueError, match="saved by an earlier version of eqjax .*-1.* reads .*-2"):
        panorama(model(True), state={**state, "about": np.array(old)})


def test_numbers_of_numpy_can_be_saved():
    options = dict(OPTIONS, num_flow_steps=np.int64(2), max_position=np.int32(7), guidance_scale=np.float32(3))
    numbers = dict(seed=np.int64(4), num_columns=np.int64(20), temperature=np.float32(1), strip_columns=np.int16(5))
    strips = panorama(
        model(True), [(np.int64(0), np.int64(9)), ("dog", None)], transition=np.int8(3), **options, **numbers
    )
    plain = dict(seed=4, num_columns=20, temperature=1, strip_columns=5, transition=3)
    same = panorama(model(True), [("cat", 9), ("dog", None)], **OPTIONS, **plain)
    assert strips.settings == same.settings
    assert json.loads(str(strips.state()["about"])) == json.loads(str(same.state()["about"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(labels="cow"), r"classes \['cow'\] are not among this model's: \['cat', 'dog', 'eel'\]"),
        (dict(labels=[("cat", 3)]), "covers columns 0 … 2, and the image has no end"),
        (dict(labels=[("cat", 0), ("dog", None)]), "needs at least 1"),
        (dict(labels=["cat", "dog"]), r"a class schedule is a list of \(label, columns\)"),
        (dict(strip_columns=0), "strip_columns=0 must be ≥ 1"),
        (dict(solver="rk4"), "solver='rk4' is not one of"),
        (dict(num_flow_steps=-1), "num_flow_steps=-1 must be ≥ 1"),
        (dict(num_columns=0), "num_columns=0 must be ≥ 1"),
        (dict(num_columns=2.5), "num_columns=2.5 must be an integer"),
        (dict(seeds=[]), r"seeds=\(\) must be at least one"),
        (dict(seeds=[0.5]), "seed=.*0.5.* must be an integer"),
        (dict(labels=None), "begins with labels, or goes on from a state"),
        (dict(labels=0.7), r"labels must be class names or integers, not \[0.7\]"),
        (dict(labels=[("cat", 3), (0.7, None)]), "labels must be class names or integers"),
    ],
)
def test_bad_panoramas(change, message):
    with pytest.raises(ValueError, match=message):
        panorama(model(True), **{"labels": "cat", **change})


def test_a_generator_that_sees_all_needs_an_end():
    with pytest.raises(ValueError, match="give num_columns"):
        panorama(model(True, window_size=None), "cat")


@pytest.fixture(scope="module")
def photograph():
    ramp = np.linspace(0, 255, 24)[None, :, None] * np.ones((16, 1, 3))
    return ramp.astype(np.uint8)


def test_photographs_go_on_on_both_sides(photograph):
    m = model(True)
    kwargs = dict(seed=3, guidance_scale=2.0, num_flow_steps=2)
    out = outpaint(m, photograph, "dog", left=4, right=5, **kwargs)
    assert out.shape == (16, 24 + 2 * 9, 3)
    np.testing.assert_array_equal(out[:, 10:30], photograph[:, 2:-2])  # But for one column at each border.
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


def test_classes_and_guidance_along_a_continuation(photograph, monkeypatch):
    monkeypatch.setattr(sampler, "CHUNK_COLUMNS", 2)
    m, given, drawn = model(True), 12, []
    scales, kwargs = np.array([1.5, 2.0, 4.0, 3.0, 0.5]), dict(num_flow_steps=2, transition=2)
    out = outpaint(
        m, photograph, [("dog", 2), ("eel", None)], left=4, right=5, seed=3, guidance_scale=scales,
        progress=drawn.append, **kwargs,
    )  # fmt: skip
    assert drawn == [2, 2, 2, 2, 1]  # First to the left, then to the right.
    # Two columns of the first class, then the way to the second one, counted from the image on both sides.
    for columns, seed, picture, side in ((5, 3, photograph, out[:, 32:]), (4, 4, photograph[:, ::-1], out[:, 7::-1])):
        guidance = np.array([9.0] * given + list(scales[:columns]))
        latents = sample_latents(
            m.generator, m.generator_params, np.array([[1, 2]]), num_columns=given + columns, class_columns=(14, None),
            guidance_scale=guidance, prefix=m.encode(picture[None]), key=jax.random.key(seed)[None], **kwargs,
        )  # fmt: skip
        difference = np.abs(side.astype(int) - np.asarray(m.decode(latents))[0, :, 24:])
        assert side.shape == difference.shape and difference.max() <= 1 and difference.mean() < 1e-2


@pytest.mark.parametrize(
    ("image", "change", "message"),
    [
        (np.zeros((16, 24, 4), np.uint8), dict(resize=True), r"shape \(16, 24, 4\); expected .*: convert it to RGB"),
        (np.zeros((16, 24), np.uint8), {}, r"shape \(16, 24\); expected .*: convert it to RGB"),
        (np.zeros((16, 24, 3), np.int64), {}, "images are int.*; expected uint8, or floats"),
        (np.full((16, 24, 3), 255.0), {}, "float64 values from 255 to 255; expected uint8, or floats"),
        (np.full((16, 24, 3), np.nan), {}, "float64 values from nan to nan"),
        (None, dict(guidance_scale=np.ones(2)), r"shape \(2,\); expected a number, or one for each .* \[3\]"),
        (None, dict(label=[("cat", 2)]), "covers columns 0 … 1, and the image has 3 columns"),
        (None, dict(label=["cat", "dog"]), r"a class schedule is a list of \(label, columns\)"),
        (None, dict(label="cow"), r"classes \['cow'\] are not among"),
        (None, dict(label=9), r"labels \[9\] are outside 0 … 3"),
    ],
)
def test_bad_photographs(photograph, image, change, message):
    image = photograph if image is None else image
    with pytest.raises(ValueError, match=message) as raised:
        outpaint(model(True), image, **{"label": 0, "left": 2, "right": 3, **change})
    assert "--resize" not in str(raised.value)


def test_photographs_of_other_sizes(photograph):
    m = model(True)
    with pytest.raises(ValueError, match="image height 32 does not fit .* resize=True"):
        outpaint(m, np.zeros((32, 64, 3), np.uint8), 0, right=2)
    out = outpaint(m, np.zeros((32, 66, 3), np.uint8), 0, right=2, resize=True, num_flow_steps=2)
    assert out.shape == (16, 32 + 4, 3)
    ramp = np.linspace(-1, 1, 32 * 66 * 3).reshape(32, 66, 3)
    kwargs = dict(right=2, resize=True, num_flow_steps=2)
    expected = outpaint(m, np.asarray(pixels.to_uint8(ramp)), 0, **kwargs)
    np.testing.assert_array_equal(outpaint(m, ramp, 0, **kwargs), expected)
    with pytest.raises(ValueError, match="less than a column of 2"):
        outpaint(m, np.zeros((160, 8, 3), np.uint8), 0, right=2, resize=True)
    with pytest.raises(ValueError, match="left=0 and right=0"):
        outpaint(m, photograph, 0)
