"""Weights files: exact round trips, models in one file or two, and one message for every other file."""

import json
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from eqjax import Generator, Tokenizer, load_pretrained, loading, pixels, pretrained
from eqjax.tokenizer import tiling
from tests import hostile_files
from tests.random_params import random_params

TOKENIZER = Tokenizer(
    channels=8, channel_multipliers=(1, 1), num_res_blocks=1, attention_resolutions=(), resolution=16, z_channels=2,
    embed_dim=4, semantic=dict(channels=8, channel_multipliers=[1], num_res_blocks=1, out_channels=8, downsamples=0),
)  # fmt: skip
GENERATOR = Generator(
    width=16, depth=2, num_heads=2, latent_dim=4, num_classes=3, num_cond_tokens=2, window_size=2, flow_width=8,
    flow_depth=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    modules = {"tokenizer": TOKENIZER, "generator": GENERATOR}
    params = {name: random_params(module) for name, module in modules.items()}
    return pretrained.Weights(modules, params, 0.25, ("cat", "dog", "eel"), "made by a test")


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    pretrained.save(path, weights)
    return path


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()) and x.dtype == y.dtype, a, b))


def test_a_saved_file_is_read_back_exactly(path, weights):
    back = pretrained.load(path)
    assert back.modules == weights.modules
    assert equal(back.params, weights.params)
    assert (back.latent_scale, back.class_names, back.notes) == (0.25, ("cat", "dog", "eel"), "made by a test")
    assert not list(path.parent.glob("*.tmp"))


def test_arrays_that_are_not_contiguous_are_saved_right(tmp_path, weights):
    # A converter may return such views.
    params = jax.tree.map(lambda p: np.asfortranarray(p), weights.params)
    pretrained.save(tmp_path / "a.safetensors", pretrained.Weights(weights.modules, params))
    assert equal(pretrained.load(tmp_path / "a.safetensors").params, weights.params)


def test_weights_stored_in_half_precision_are_read_as_float32(tmp_path, weights):
    pretrained.save(tmp_path / "half.safetensors", weights, dtype=np.float16)
    back = pretrained.load(tmp_path / "half.safetensors")
    leaf, exact = back.params["tokenizer"]["quant"]["kernel"], weights.params["tokenizer"]["quant"]["kernel"]
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, exact.astype(np.float16).astype(np.float32))


def test_a_loaded_model_samples_encodes_decodes_and_continues(path):
    model = load_pretrained(path)
    images = model.sample(["dog", 2], num_columns=3, guidance_scale=2.0, num_flow_steps=2, seed=4)
    assert (images.dtype, images.shape) == (jnp.uint8, (2, 16, 6, 3))
    again = model.sample([1, 2], num_columns=3, guidance_scale=2.0, num_flow_steps=2, seed=4)
    assert (images == again).all()
    latents = model.encode(images)
    assert latents.shape == (2, 3, 4)
    as_floats = model.encode(np.asarray(images, np.float32) / 127.5 - 1)
    np.testing.assert_allclose(latents, as_floats, atol=1e-5)
    unscaled = tiling.encode_whole(model.tokenizer, model.tokenizer_params, pixels.from_uint8(images))
    np.testing.assert_allclose(latents, 0.25 * unscaled, atol=1e-5)
    decoded = tiling.decode_whole(model.tokenizer, model.tokenizer_params, unscaled)
    expected = np.round((np.clip(decoded, -1, 1) + 1) * 127.5)
    assert np.abs(np.asarray(model.decode(latents), np.float32) - expected).max() <= 1
    continued = model.sample([1, 2], num_columns=5, num_flow_steps=2, prefix=latents)
    assert continued.shape == (2, 16, 10, 3)


def test_a_loaded_model_refuses_unknown_classes_and_wrong_shapes(path):
    model = load_pretrained(path)
    with pytest.raises(ValueError, match=r"classes \['cow'\] are not among this model's: \['cat', 'dog', 'eel'\]"):
        model.sample("cow", num_columns=2)
    with pytest.raises(ValueError, match=r"labels \[7\] are outside 0 … 3"):
        model.sample(7, num_columns=2)
    with pytest.raises(ValueError, match="image height 20"):
        model.encode(np.zeros((1, 20, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="image width 17"):
        model.encode(np.zeros((1, 16, 17, 3), np.uint8))
    for shape in ((4,), (1, 2, 5)):
        with pytest.raises(ValueError, match=rf"latents=<float32 array of shape \({shape[0]},.*\[batch, columns, 4\]"):
            model.decode(np.zeros(shape, np.float32))


def save_half(folder, weights, name, latent_scale=None):
    half = pretrained.Weights({name: weights.modules[name]}, {name: weights.params[name]}, latent_scale)
    file = folder / f"{name}_{latent_scale}.safetensors"
    pretrained.save(file, half)
    return file


def test_tokenizer_and_generator_may_be_in_two_files(tmp_path, weights):
    tokenizer, generator = (save_half(tmp_path, weights, name) for name in ("tokenizer", "generator"))
    model = load_pretrained(tokenizer, generator)
    assert equal(jax.tree.map(np.asarray, model.generator_params), weights.params["generator"])
    assert model.latent_scale == 0.05493  # Published, if no file has one.
    alone = load_pretrained(tokenizer)
    with pytest.raises(ValueError, match="loaded without a generator"):
        alone.sample([0], num_columns=2)


def test_latent_scales_of_two_files_must_agree(tmp_path, weights):
    generator = save_half(tmp_path, weights, "generator", 0.25)
    assert load_pretrained(save_half(tmp_path, weights, "tokenizer"), generator).latent_scale == 0.25
    with pytest.raises(pretrained.WeightsError, match="latent scale is 0.5, but the generator was trained with 0.25"):
        load_pretrained(save_half(tmp_path, weights, "tokenizer", 0.5), generator)


def test_latent_sizes_of_two_files_must_agree(tmp_path, weights):
    other = GENERATOR.clone(latent_dim=5)
    file = tmp_path / "other.safetensors"
    pretrained.save(file, pretrained.Weights({"generator": other}, {"generator": random_params(other)}))
    with pytest.raises(pretrained.WeightsError, match="have 4 channels, the generator's 5"):
        load_pretrained(save_half(tmp_path, weights, "tokenizer"), file)


def test_a_directory_holds_its_model(path):
    assert load_pretrained(path.parent).generator == GENERATOR


def test_a_path_without_weights_is_refused_with_the_names_of_the_shipped_models(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file at .*absent"):
        load_pretrained(tmp_path / "absent.safetensors")
    message = r"no weights file at photo: .* models \['photos', 'places-large'\]; did you mean 'photos'"
    with pytest.raises(FileNotFoundError, match=message):
        load_pretrained("photo")


def test_a_run_that_has_not_ended_is_named(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="run holds checkpoints .* but no model.safetensors.* the run resumes"):
        load_pretrained(tmp_path / "run")


def test_a_folder_of_the_same_name_does_not_hide_the_shipped_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert pathlib.Path(loading.resolve_path("photos")).is_relative_to(pathlib.Path(pretrained.__file__).parent)


@pytest.mark.parametrize("name", ["truncated", "text", "empty"])
def test_files_that_are_not_safetensors_are_refused(tmp_path, path, name):
    content = path.read_bytes()
    contents = {"truncated": content[: len(content) // 2], "text": b"hello", "empty": b""}
    (tmp_path / name).write_bytes(contents[name])
    with pytest.raises(pretrained.WeightsError, match=f"{name} cannot be read as safetensors.*eqjax convert"):
        pretrained.load(tmp_path / name)


def test_a_flipped_bit_anywhere_is_refused(tmp_path, path):
    content, rng = path.read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    assert b'"checksum"' in content[:header]
    places = [*rng.integers(header, size=200), *rng.integers(header, len(content), 100), header, len(content) - 1]
    damaged = tmp_path / "damaged.safetensors"
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(8)
        damaged.write_bytes(flipped)
        message = f"{damaged} is damaged: " if place >= header else str(damaged)
        with pytest.raises(pretrained.WeightsError, match=re.escape(message)):
            pretrained.load(damaged)


def test_a_file_without_a_checksum_is_read(tmp_path, path, weights):
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    del metadata["checksum"]
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), tmp_path / "old.safetensors", metadata)
    assert equal(pretrained.load(tmp_path / "old.safetensors").params, weights.params)


def test_the_shipped_file_has_a_checksum():
    with safetensors.safe_open(loading.resolve_path("photos"), framework="numpy") as file:
        assert "checksum" in file.metadata()


def test_safetensors_without_a_configuration_are_refused(tmp_path):
    safetensors.numpy.save_file({"x": np.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(pretrained.WeightsError, match="without an eqjax configuration"):
        pretrained.load(tmp_path / "foreign")


def test_arrays_that_do_not_fit_the_configuration_are_listed(tmp_path, weights):
    wrong = {"generator": GENERATOR.clone(depth=3)}
    pretrained.save(tmp_path / "w", pretrained.Weights(wrong, {"generator": weights.params["generator"]}))
    with pytest.raises(pretrained.WeightsError, match=r"blocks.*: file \(2, 16\), configuration \(3, 16\)"):
        pretrained.load(tmp_path / "w")


def test_arrays_of_the_wrong_names_are_listed(tmp_path, weights):
    params = dict(weights.params["generator"], surplus=np.zeros(3, np.float32))
    del params["null_embedding"]
    pretrained.save(tmp_path / "w", pretrained.Weights({"generator": GENERATOR}, {"generator": params}))
    with pytest.raises(pretrained.WeightsError, match=r"(?s)null_embedding: file None.*surplus: file \(3,\), .*None"):
        pretrained.load(tmp_path / "w")


def test_unknown_fields_of_the_configuration_are_refused(tmp_path):
    config = {"format": "eqjax-1", "generator": {"widht": 3}}
    safetensors.numpy.save_file({"x": np.zeros(3)}, tmp_path / "v", metadata={"eqjax": json.dumps(config)})
    with pytest.raises(pretrained.WeightsError, match="field of the generator 'widht'; did you mean 'width'"):
        pretrained.load(tmp_path / "v")


def test_a_failed_save_leaves_the_old_file(tmp_path, path, weights, monkeypatch):
    target = tmp_path / "model.safetensors"
    target.write_bytes(path.read_bytes())

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        pretrained.save(target, weights)
    assert target.read_bytes() == path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def rewrite(source, target, change):
    """Copies a weights file with a changed header, without its checksum: `change` edits header and configuration."""
    content = source.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    config = json.loads(header["__metadata__"].pop("eqjax"))
    config = change(header, config) or config
    header["__metadata__"] = {"eqjax": config if isinstance(config, str) else json.dumps(config)}
    hostile_files.write_safetensors(target, header, content[8 + length :])
    return target


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("tokenizer", "posterior_std", float("nan"), "it has NaN, which is no number of JSON"),
        ("tokenizer", "posterior_std", float("inf"), "it has Infinity, which is no number of JSON"),
        ("tokenizer", "posterior_std", -1, "posterior_std=-1 must be a finite number ≥ 0"),
        ("tokenizer", "posterior_std", True, "posterior_std=True must be"),
        ("tokenizer", "channels", "8", "tokenizer.channels='8' must be an integer ≥ 1"),
        ("tokenizer", "channels", 8.0, r"channels=8\.0 must be an integer"),
        ("tokenizer", "channels", 2**31, "channels=2147483648 must be an integer ≥ 1, at most 2147483647"),
        ("tokenizer", "channels", None, "channels=None must be an integer"),
        ("tokenizer", "channel_multipliers", [1] * 33, "channel_multipliers=.* must be a sequence .1 to 32, "),
        ("tokenizer", "channel_multipliers", [1, "x" * 10**5], "channel_multipliers.1.='xxx.* must be an integer"),
        ("tokenizer", "channel_multipliers", 3, "channel_multipliers=3 must be a sequence"),
        ("tokenizer", "num_res_blocks", 10**9, "num_res_blocks .* make 4000000003 blocks; at most 128 are built"),
        ("tokenizer", "attention_window", "all", "attention_window='all' must be an integer ≥ 0, or None"),
        ("tokenizer", "dtype", None, "dtype=None must be a floating-point dtype"),
        ("tokenizer", "dtype", "int32", "dtype='int32' must be a floating-point dtype"),
        ("tokenizer", "dtype", "float31", "dtype='float31' must be a floating-point dtype"),
        ("tokenizer", "norm", [], r"norm=\[\] must be one of \'group\'"),
        ("tokenizer", "semantic", 3, "semantic=3 must be a dict with the fields channels, "),
        ("tokenizer", "semantic", {}, "tokenizer.semantic lacks tokenizer.semantic.channels: Base width"),
        ("semantic", "num_res_blocks", 10**9, "num_res_blocks .* make 1000000006 blocks; at most 128 are built"),
        ("semantic", "channels", 0, "semantic.channels=0 must be an integer ≥ 1"),
        ("semantic", "channels", "8", "semantic.channels='8' must be an integer"),
        ("semantic", "channel_multipliers", [], r"semantic.channel_multipliers=\[\] must be a sequence .1 to 32"),
        ("semantic", "out_channels", 2**31 - 1, "tokenizer arrays in .* do not fit|cannot be built"),
        ("semantic", "widht", 1, "tokenizer.semantic has no field tokenizer.semantic.widht"),
        ("generator", "flow_depth", 10**6, "flow_depth of the generator make 1000000 blocks; at most 128"),
        ("generator", "depth", 10**9, "generator arrays in .* do not fit"),
        ("generator", "num_classes", 2**31 - 1, "the generator of its configuration cannot be built"),
        ("generator", "remat", 3, "generator.remat=3 must be one of 'none'"),
        ("generator", "remat", "x", "generator.remat='x' must be one of"),
        ("generator", "dropout_rate", None, "dropout_rate=None must be a finite number"),
        ("generator", "num_heads", 0, "generator.num_heads=0 must be an integer ≥ 1"),
        (None, "generator", [1], r"generator=\[1\] must be its fields by name"),
        (None, "latent_scale", "1", "latent_scale='1' must be a finite number > 0, or None"),
        (None, "latent_scale", float("nan"), "it has NaN, which is no number of JSON"),
        (None, "latent_scale", 0, "latent_scale=0 must be a finite number > 0"),
        (None, "class_names", "cat", "class_names='cat' must be a sequence"),
        (None, "class_names", ["cat", 1], r"class_names\[1\]=1 must be a string"),
        (None, "class_names", ["x" * 10**5] * 4, "class_names has 4 names for the 3 classes"),
        (None, "notes", None, "notes=None must be a string"),
        (None, "author", "x", "configuration's entry 'author'. Known: .*notes"),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_with_file_and_field(tmp_path, path, part, field, value, message):
    def change(_, config):
        config["semantic"] = config["tokenizer"]["semantic"]
        (config[part] if part else config)[field] = value
        del config["semantic"]

    start = time.process_time()
    with pytest.raises(pretrained.WeightsError, match=f"(?s){message}") as error:
        pretrained.load(rewrite(path, tmp_path / "v.safetensors", change))
    assert time.process_time() - start < hostile_files.SECONDS
    assert str(tmp_path / "v.safetensors") in str(error.value)
    assert len(str(error.value)) < 6000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, _: header.update(w=header.pop("generator/null_embedding")), "an array called 'w'; names begin"),
        (
            lambda header, _: header.update(generator=header.pop("generator/null_embedding")),
            "an array called 'generator'; names begin with tokenizer/ or generator/",
        ),
        (lambda header, _: header.update({"a/b": header.pop("generator/null_embedding")}), "an array called 'a/b'"),
        (
            lambda header, _: header["generator/null_embedding"].update(dtype="I32"),
            r"generator/null_embedding has type I32; weights are of \('F64'",
        ),
        (lambda _, config: config.pop("tokenizer") and None, "an array called 'tokenizer/"),
        (lambda *_: {"format": "eqjax-1"}, "configures neither a tokenizer nor a generator"),
        (lambda *_: [1], "without an eqjax configuration of format 'eqjax-1' .found None"),
        (lambda *_: "[" * 5000, "cannot be read as safetensors .it is nested more than 64 deep"),
        (lambda *_: "[" * 66 + "]" * 66, "cannot be read as safetensors .it is nested more than 64 deep"),
        (lambda *_: " " * 2**20 + "{}", r"has a header of \d+ bytes; weights files have at most 1048576"),
    ],
)
def test_odd_headers_are_refused(tmp_path, path, change, message):
    target = rewrite(path, tmp_path / "v.safetensors", change)
    with open(target, "ab") as file:
        file.truncate(max(target.stat().st_size, 2**21) if "header" in message else target.stat().st_size)
    with pytest.raises(pretrained.WeightsError, match=rf"v\.safetensors.*{message}"):
        pretrained.load(target)


def test_arrays_are_read_only_if_all_fit(tmp_path, path, monkeypatch):
    target = rewrite(path, tmp_path / "v.safetensors", lambda _, config: config["generator"].update(width=32))
    monkeypatch.setattr(pretrained, "_read_tensors", None)
    with pytest.raises(pretrained.WeightsError, match="do not fit"):
        pretrained.load(target)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e30])
def test_weights_that_are_none_are_neither_saved_nor_loaded(tmp_path, weights, value, monkeypatch):
    params = jax.tree.map(np.array, weights.params["generator"])
    params["null_embedding"][0, 3] = value
    broken = pretrained.Weights({"generator": GENERATOR}, {"generator": params})
    message = "w.safetensors: generator/null_embedding has values from "
    with pytest.raises(pretrained.WeightsError, match=f"{message}.*Nothing was written"):
        pretrained.save(tmp_path / "w.safetensors", broken)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "MAX_WEIGHT", np.inf)
        if np.isfinite(value):
            pretrained.save(tmp_path / "w.safetensors", broken)
    if np.isfinite(value):
        with pytest.raises(pretrained.WeightsError, match=f"{message}.*damaged file, or"):
            pretrained.load(tmp_path / "w.safetensors")
