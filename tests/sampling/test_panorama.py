"""Strips of a panorama equal the whole image, and a saved panorama resumes with the same pixels."""

import contextlib
import dataclasses
import itertools
import json
from typing import Any

import jax
import numpy as np
import pytest

from eqjax import npz, panorama, sample_latents
from eqjax.sampling import streaming
from eqjax.sampling.panorama_options import PanoramaOptions
from eqjax.tokenizer import tiling
from tests import bit_flips
from tests.sampling.small_models import local_model, published_model

OPTIONS: dict[str, Any] = dict(guidance_scale=3.0, num_flow_steps=2, solver="adams_bashforth", max_position=7)


def joined(strips):
    return np.concatenate(list(strips), axis=-2)


def largest_difference(image, other):
    return np.abs(np.asarray(image, int) - np.asarray(other, int)).max()


@pytest.mark.parametrize("guidance_schedule", ["linear", "constant"])
def test_strips_equal_the_image_of_model_sample_with_the_same_arguments(guidance_schedule):
    m = local_model()
    classes = [("cat", 20), ("eel", 30), (1, None)]
    options: dict[str, Any] = dict(OPTIONS, num_columns=90, transition=4, guidance_schedule=guidance_schedule)
    whole = m.sample(classes, seeds=[3], **options)[0]
    strips = list(panorama(m, classes, seed=3, strip_columns=8, **options))
    assert {strip.dtype for strip in strips} == {np.dtype(np.uint8)} and strips[0].shape == (16, 16, 3)
    difference = np.abs(joined(strips).astype(int) - np.asarray(whole).astype(int))
    assert difference.max() <= 1 and difference.mean() < 1e-2  # Rounding of values next to a half.


def test_latents_of_a_panorama_equal_those_of_sample_latents(monkeypatch):
    m, received = local_model(), []
    push = streaming.StreamDecoder.push
    monkeypatch.setattr(
        streaming.StreamDecoder, "push", lambda *args, **kwargs: received.append(args[1]) or push(*args, **kwargs)
    )
    list(panorama(m, 2, seed=3, num_columns=20, strip_columns=8, **OPTIONS))
    key = jax.random.key(3)[None]
    whole = sample_latents(
        m.require("generator"), m.generator_params, np.array([2]), num_columns=20, key=key, **OPTIONS
    )
    np.testing.assert_allclose(np.concatenate(received), whole[0], atol=1e-5)


def test_a_linear_scale_without_end_rises_over_one_training_image():
    options = PanoramaOptions(labels=(0,), guidance_scale=3.0)
    np.testing.assert_allclose(options.scales_at(np.arange(6), 4), [1.5, 2, 2.5, 3, 3, 3])
    with_end = PanoramaOptions(labels=(0,), guidance_scale=3.0, num_columns=2)
    np.testing.assert_allclose(with_end.scales_at(np.arange(2), 4), [2, 3])
    # A training image of the small tokenizer is 8 columns wide.
    rising = [*(1 + 2 * np.arange(1, 9) / 8), *[3.0] * 32]
    without_end = joined(itertools.islice(panorama(local_model(), 2, **OPTIONS), 2))
    columns = without_end.shape[1] // 2
    per_column = panorama(local_model(), 2, num_columns=40, **dict(OPTIONS, guidance_scale=rising))
    assert columns > 16 and largest_difference(without_end, joined(per_column)[:, : columns * 2]) <= 1


@pytest.mark.parametrize("columns", [5, 30, 61])
def test_streamed_floats_equal_those_of_the_whole_image(columns, monkeypatch):
    m = local_model()
    monkeypatch.setattr(streaming.pixels, "to_uint8", lambda x: x)
    latents = np.asarray(jax.random.normal(jax.random.key(0), (columns, 4)))
    whole = tiling.decode_images(
        m.require("tokenizer"), m.tokenizer_params, latents[None] / m.latent_scale, tile_columns=999
    )[0]
    decoder = streaming.StreamDecoder(m.require("tokenizer"), m.tokenizer_params, m.latent_scale, 8)
    cuts = [0, 3, 25, 26, columns]
    parts = [latents[a:b] for a, b in itertools.pairwise(cuts)]
    strips = [strip for i, part in enumerate(parts) for strip in decoder.push(part, last=i == len(parts) - 1)]
    np.testing.assert_allclose(np.concatenate(strips, axis=1), np.clip(whole, -1, 1), atol=1e-5)
    assert len(decoder.held) <= decoder.window


def test_overlapping_windows_by_hand(monkeypatch):
    """A decoder that paints each window in its own brightness shows where and how windows meet."""
    m = published_model()
    painted = itertools.count(1)
    monkeypatch.setattr(streaming.pixels, "to_uint8", lambda x: x)

    def paint(_tokenizer, _params, latents, _count, **_):
        return np.full((1, 16, 2 * latents.shape[1], 3), next(painted) / 4, float)

    monkeypatch.setattr(streaming, "decode_window", paint)
    decoder = streaming.StreamDecoder(m.require("tokenizer"), {}, 1.0, 99)
    assert decoder.window == 8
    strips = decoder.push(np.zeros((14, 4)), last=True)
    row = np.concatenate(strips, axis=1)[0, :, 0]
    fade = (np.arange(8) + 0.5) / 8
    # Windows at columns 0, 4 and (moved inside) 6; the last fades over what the second had, from column 8 on.
    np.testing.assert_allclose(4 * row, [*np.ones(8), *(1 + fade), *(2 + fade), *np.full(4, 3.0)])


def test_a_tokenizer_without_halo_fades_between_windows():
    m = published_model()
    options: dict[str, Any] = dict(OPTIONS, guidance_schedule="constant")
    short = joined(panorama(m, 2, num_columns=8, **options))
    whole = m.sample(2, num_columns=8, seeds=[0], **options)[0]
    assert largest_difference(short, whole) <= 1  # One window is the whole image.
    long = joined(panorama(m, 2, num_columns=21, strip_columns=5, **options))
    assert long.shape == (16, 42, 3)
    np.testing.assert_array_equal(long[:, :8], joined(itertools.islice(panorama(m, 2, **options), 3))[:, :8])


@pytest.mark.parametrize(("make_model", "seeds"), [(local_model, None), (published_model, (4, 7))])
def test_a_saved_panorama_resumes_with_the_same_pixels(make_model, seeds, tmp_path):
    m, path = make_model(), tmp_path / "state.npz"
    kwargs: dict[str, Any] = dict(transition=3, strip_columns=5, **OPTIONS)
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
        assert largest_difference(joined(beginning)[0], alone) <= 1
    assert path.stat().st_size < 60_000 and not list(tmp_path.glob("*.tmp"))


def test_a_prefix_begins_the_image():
    m = local_model()
    prefix = jax.random.normal(jax.random.key(1), (1, 6, 4))
    whole = m.sample(1, num_columns=20, seeds=[2], prefix=prefix, **OPTIONS)[0]
    out = joined(panorama(m, 1, seed=2, num_columns=20, prefix=prefix, **OPTIONS))
    assert largest_difference(out, whole) <= 1
    with pytest.raises(ValueError, match=r"prefix has shape \(1, 6, 4\); expected .* \[2, columns, 4\]"):
        panorama(m, 1, seeds=[2, 3], prefix=prefix)


def test_a_state_of_another_model_or_another_file_is_refused(tmp_path):
    strips = panorama(local_model(), "cat", **OPTIONS)
    state = strips.state()
    with pytest.raises(ValueError, match=r"another model(.|\n)*generator.window_size: saved 3, this model 2"):
        panorama(local_model(window_size=2), state=state)
    other = dataclasses.replace(
        local_model(), generator_params=jax.tree.map(lambda p: p + 1, local_model().generator_params)
    )
    with pytest.raises(ValueError, match=r"another model(.|\n)*generator_weights: saved '[0-9a-f]{64}', this model"):
        panorama(other, state=state)
    with pytest.raises(ValueError, match="either labels or state"):
        panorama(local_model(), "cat", state=state)
    with pytest.raises(FileNotFoundError, match="no saved panorama at"):
        panorama(local_model(), state=tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="text.npz cannot be read as a saved panorama"):
        panorama(local_model(), state=tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(ValueError, match="other.npz is not a saved panorama"):
        panorama(local_model(), state=tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"another model(.|\n)*latent_scale: saved 0.5, this model 2.0"):
        panorama(dataclasses.replace(local_model(), latent_scale=2.0), state=state)
    for name in state:
        with pytest.raises(ValueError, match="this state is not a saved panorama"):
            panorama(local_model(), state={key: array for key, array in state.items() if key != name})
    for text in (
        '{"format": "eqjax-panorama-1"}',
        '{"format": "other"}',
        "[]",
        "null",
        "{",
        str(state["about"]).replace('"seed"', '"sead"'),
    ):
        with pytest.raises(ValueError, match="this state is not a saved panorama"):
            panorama(local_model(), state={**state, "about": np.array(text)})
    with pytest.raises(ValueError, match="this state is not a saved panorama"):
        panorama(local_model(), state={})


def test_flipped_bits_of_a_state_are_found_or_change_nothing(tmp_path):
    m, path, refused = local_model(), tmp_path / "state.npz", 0
    strips = panorama(m, "cat", strip_columns=5, **OPTIONS)
    next(strips)
    strips.save(path)
    state = strips.state()
    for place, bit in bit_flips.flipped(path, 100):
        try:
            again = panorama(m, state=path).state()
        except ValueError:
            refused += 1
            continue
        for name, array in state.items():
            np.testing.assert_array_equal(again[name], array, err_msg=f"{name} after bit {bit} of byte {place}")
    assert 40 < refused < 100


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("latent", np.zeros((2, 3), "f4"), r"latent has shape \(2, 3\) .*; expected 1 × 4"),
        ("cache_keys", np.zeros(3, "i4"), "cache_keys has shape .* of kind 'i'; expected .* kind 'f'"),
        ("decoder_held", np.zeros((500, 4), "f4"), "decoder_held has shape"),
        ("ready", np.zeros((16, 2000, 3), "u1"), "ready has shape"),
        ("decoder_emitted", np.array(77), "77 of .* columns are decoded"),
        ("decoder_received", np.array(70), "of 70 columns are decoded, and the last"),
        ("sampled", -1, "-1 columns are sampled"),
        ("sampled", "3", "sampled"),
        ("next_column", 2**40, "the next one is 1099511627776"),
        ("options", {"labels": [0], "seed": "x"}, "seed"),
        ("options", [], "is not a saved panorama"),
        ("model", [], "is not a saved panorama"),
    ],
)
def test_a_signed_state_of_other_shapes_or_numbers_is_refused_in_one_sentence(tmp_path, name, value, message):
    strips = panorama(local_model(), "cat", strip_columns=5, **OPTIONS)
    next(strips)
    state = strips.state()
    about, intact = npz.signed_values(state.pop("about"), state)
    assert intact
    (about if name in about else state)[name] = value
    npz.write(tmp_path / "s.npz", state, "about", about)
    with pytest.raises(ValueError, match=message) as caught:
        panorama(local_model(), state=tmp_path / "s.npz")
    assert len(str(caught.value)) < 1000


def test_options_of_numpy_are_saved_as_python_values():
    options: dict[str, Any] = dict(
        OPTIONS, num_flow_steps=np.int64(2), max_position=np.int32(7), guidance_scale=np.float32(3)
    )
    numbers: dict[str, Any] = dict(
        seed=np.int64(4), num_columns=np.int64(20), temperature=np.float32(1), strip_columns=np.int16(5)
    )
    strips = panorama(
        local_model(), [(np.int64(0), np.int64(9)), ("dog", None)], transition=np.int8(3), **options, **numbers
    )
    plain: dict[str, Any] = dict(seed=4, num_columns=20, temperature=1, strip_columns=5, transition=3)
    same = panorama(local_model(), [("cat", 9), ("dog", None)], **OPTIONS, **plain)
    assert strips.options == same.options
    assert json.loads(str(strips.state()["about"])) == json.loads(str(same.state()["about"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(labels="cow"), r"classes \['cow'\] are not among this model's: \['cat', 'dog', 'eel'\]"),
        (dict(labels=[("cat", 3)]), "covers columns 0 … 2, and the image has no end"),
        (dict(labels=[("cat", 0), ("dog", None)]), r"class_columns\[0\]=0 must be an integer ≥ 1"),
        (dict(labels=["cat", "dog"]), r"a class schedule is a list of \(label, columns\)"),
        (dict(strip_columns=0), "strip_columns=0 must be an integer ≥ 1"),
        (dict(solver="rk4"), "solver='rk4' must be one of"),
        (dict(num_flow_steps=-1), "num_flow_steps=-1 must be an integer ≥ 1"),
        (dict(num_columns=0), "num_columns=0 must be an integer ≥ 1"),
        (dict(num_columns=2.5), "num_columns=2.5 must be an integer ≥ 1"),
        (dict(seeds=[]), r"seeds=\[\] must be a sequence \(one or more"),
        (dict(seeds=[0.5]), r"seeds\[0\]=0.5 must be an integer"),
        (dict(labels=None), "begins with labels, or resumes from a state"),
        (dict(labels=0.7), r"labels must be class names or integers, not \[0.7\]"),
        (dict(labels=[("cat", 3), (0.7, None)]), "labels must be class names or integers"),
    ],
)
def test_a_bad_argument_is_refused_by_name(change, message):
    arguments: dict[str, Any] = {"labels": "cat", **change}
    with pytest.raises((TypeError, ValueError), match=message):
        panorama(local_model(), **arguments)


def test_a_generator_without_window_needs_an_end():
    with pytest.raises(ValueError, match="give num_columns"):
        panorama(local_model(window_size=None), "cat")


def test_an_interrupted_strip_is_made_again(monkeypatch):
    options: dict[str, Any] = dict(OPTIONS, num_columns=40, strip_columns=8, seed=3)
    whole = joined(panorama(local_model(), 2, **options))
    interrupted, calls = panorama(local_model(), 2, **options), itertools.count()
    decode = interrupted._decoder._decode_window

    def interrupt(*args):
        if next(calls) in (1, 3, 6):
            raise KeyboardInterrupt
        return decode(*args)

    monkeypatch.setattr(interrupted._decoder, "_decode_window", interrupt)
    strips = []
    for _ in range(20):
        with contextlib.suppress(KeyboardInterrupt, StopIteration):
            strips.append(next(interrupted))
    assert next(calls) > 6
    np.testing.assert_array_equal(joined(strips), whole)


def test_latents_that_are_not_finite_end_a_panorama():
    model = local_model()
    diverged = dataclasses.replace(model, generator_params=jax.tree.map(lambda x: x * np.nan, model.generator_params))
    with pytest.raises(ValueError, match="latents are not finite"):
        next(panorama(diverged, 2, **OPTIONS))
