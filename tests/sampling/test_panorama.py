"""Endless panoramas equal whole ones, go on from a saved state, and photographs go on on both sides."""

import itertools

import jax
import numpy as np
import pytest

from eqjax import continue_photograph, panorama
from eqjax.sampling import streaming
from eqjax.tokenizer import pieces
from tests.sampling.models import model

OPTIONS = dict(guidance_scale=3.0, num_flow_steps=2, solver="adams_bashforth", max_position=7)


def joined(strips):
    return np.concatenate(list(strips), axis=1)


def test_strips_are_the_whole_picture():
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
    whole = pieces.decode_images(m.tokenizer, m.tokenizer_params, latents[None] / m.latent_scale, piece_columns=999)[0]
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


@pytest.mark.parametrize("strict", [True, False])
def test_save_and_go_on(strict, tmp_path):
    m, path = model(strict), tmp_path / "state.npz"
    strips = panorama(m, [("cat", 9), ("dog", None)], seed=4, transition=3, strip_columns=5, **OPTIONS)
    for _ in range(2):
        next(strips)
    strips.save(path)
    expected = joined(itertools.islice(strips, 4))
    again = panorama(m, state=path)
    assert again.emitted == strips.emitted - expected.shape[1] // 2
    out = joined(itertools.islice(again, 6))[:, : expected.shape[1]]
    np.testing.assert_array_equal(out, expected)
    assert path.stat().st_size < 60_000 and not list(tmp_path.glob("*.tmp"))


def test_a_prefix_begins_the_picture():
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(labels="cow"), r"classes \['cow'\] are not among this model's: \['cat', 'dog', 'eel'\]"),
        (dict(labels=[("cat", 3)]), "covers columns 0 … 2, and the picture has no end"),
        (dict(labels=[("cat", 0), ("dog", None)]), "needs at least 1"),
        (dict(labels=["cat", "dog"]), r"a class schedule is a list of \(label, columns\)"),
        (dict(strip_columns=0), "strip_columns=0 must be ≥ 1"),
        (dict(solver="rk4"), "solver='rk4' is not one of"),
        (dict(num_flow_steps=-1), "num_flow_steps=-1 must be ≥ 1"),
        (dict(num_columns=0), "num_columns=0 must be ≥ 1"),
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
    out = continue_photograph(m, photograph, "dog", left=4, right=5, **kwargs)
    assert out.shape == (16, 24 + 2 * 9, 3)
    np.testing.assert_array_equal(out[:, 10:30], photograph[:, 2:-2])  # But for one column at each border.
    right = continue_photograph(m, photograph, "dog", right=5, **kwargs)
    np.testing.assert_array_equal(right[:, :22], photograph[:, :22])
    np.testing.assert_array_equal(right[:, 24:], out[:, 32:])
    # To the left is to the right in the mirror, with the next seed.
    mirrored = continue_photograph(m, photograph[:, ::-1], "dog", right=4, **dict(kwargs, seed=4))
    np.testing.assert_array_equal(out[:, :8], mirrored[:, 24:][:, ::-1])
    rebuilt = continue_photograph(m, photograph, "dog", right=5, keep_pixels=False, **kwargs)
    np.testing.assert_array_equal(rebuilt[:, 24:], right[:, 24:])
    assert (rebuilt[:, :22] != photograph[:, :22]).any()


def test_photographs_of_other_sizes(photograph):
    m = model(True)
    with pytest.raises(ValueError, match="image height 32 does not fit .* resize=True"):
        continue_photograph(m, np.zeros((32, 64, 3), np.uint8), 0, right=2)
    out = continue_photograph(m, np.zeros((32, 66, 3), np.uint8), 0, right=2, resize=True, num_flow_steps=2)
    assert out.shape == (16, 32 + 4, 3)
    with pytest.raises(ValueError, match="less than a column of 2"):
        continue_photograph(m, np.zeros((160, 8, 3), np.uint8), 0, right=2, resize=True)
    with pytest.raises(ValueError, match="left=0 and right=0"):
        continue_photograph(m, photograph, 0)
